// The lookup of fast_path.h, on vCPU threads, and its change, on the JS thread. No allocation and no lock in Handle, but for the
// ring's mutex when a write is posted; a driver may take its time over what is passed on to it.
#include "fast_path.h"

#include <sched.h>

#include <algorithm>
#include <cstring>

namespace ferry {
namespace {

using Windows = std::vector<std::shared_ptr<const FastWindow>>;

const FastWindow* Find(const Windows& windows, uint64_t address) {
  size_t low = 0;
  size_t high = windows.size();
  while (low < high) {
    size_t middle = (low + high) / 2;
    const FastWindow* window = windows[middle].get();
    if (address < window->base) {
      high = middle;
    } else if (address - window->base >= window->size) {
      low = middle + 1;
    } else {
      return window;
    }
  }
  return nullptr;
}

/** Whether each byte of the access is in the set. */
bool Covers(const std::vector<uint64_t>& bits, uint64_t offset, uint32_t width, uint64_t size) {
  if (bits.empty() || width > size - offset) return false;
  for (uint64_t at = offset; at < offset + width; at++) {
    if (((bits[at / 64] >> (at % 64)) & 1) == 0) return false;
  }
  return true;
}

/** A whole value where it is aligned: the JS thread may be writing it. */
void ReadShadow(const uint8_t* from, uint32_t width, uint8_t* into) {
  bool aligned = reinterpret_cast<uintptr_t>(from) % width == 0;
  if (width == 4 && aligned) {
    uint32_t value = __atomic_load_n(reinterpret_cast<const uint32_t*>(from), __ATOMIC_RELAXED);
    memcpy(into, &value, 4);
  } else if (width == 2 && aligned) {
    uint16_t value = __atomic_load_n(reinterpret_cast<const uint16_t*>(from), __ATOMIC_RELAXED);
    memcpy(into, &value, 2);
  } else {
    for (uint32_t i = 0; i < width; i++) into[i] = __atomic_load_n(from + i, __ATOMIC_RELAXED);
  }
}

/** Whether the file takes it; then it has been asked. */
bool PassOn(const FastFile& file, const Access& access, uint64_t offset, uint64_t size) {
  if (access.width > size - offset) return false;
  for (const FastFile::Part& part : file.except) {
    if (offset < part.start + part.length && offset + access.width > part.start) return false;
  }
  if (access.write) {
    file.device.WriteAt(access.data, access.width, file.offset + offset);
    return true;
  }
  ssize_t got = file.device.ReadAt(access.data, access.width, file.offset + offset);
  // Decode off, or gone: all-ones, as from any bus.
  if (got != static_cast<ssize_t>(access.width)) memset(access.data, 0xff, access.width);
  return true;
}

}  // namespace

bool PostedRing::Push(const PostedWrite& write, uint32_t* used) {
  std::lock_guard<std::mutex> held(producers_);
  uint32_t head = head_.load(std::memory_order_relaxed);
  uint32_t taken = head - tail_.load(std::memory_order_acquire);
  if (taken == kCapacity) return false;
  slots_[head % kCapacity] = write;
  // seq_cst: pairs with the consumer's "nothing left, going to sleep" check in exit_mailbox.cc.
  head_.store(head + 1, std::memory_order_seq_cst);
  *used = taken + 1;
  return true;
}

bool PostedRing::Pop(PostedWrite* write) {
  uint32_t tail = tail_.load(std::memory_order_relaxed);
  if (head_.load(std::memory_order_seq_cst) == tail) return false;
  *write = slots_[tail % kCapacity];
  tail_.store(tail + 1, std::memory_order_release);
  return true;
}

bool AccessOf(struct kvm_run* run, Access* access) {
  if (run->exit_reason == KVM_EXIT_IO) {
    if (run->io.count != 1) return false;
    *access = {false, run->io.direction == KVM_EXIT_IO_OUT, run->io.port, run->io.size,
               reinterpret_cast<uint8_t*>(run) + run->io.data_offset};
    return true;
  }
  if (run->exit_reason != KVM_EXIT_MMIO) return false;
  uint32_t width = run->mmio.len;
  if (width != 1 && width != 2 && width != 4 && width != 8) return false;
  *access = {true, run->mmio.is_write != 0, run->mmio.phys_addr, width, run->mmio.data};
  return true;
}

FastResult FastPath::Handle(const Access& access, Hazard* hazard, uint32_t* used) {
  const FastTable* table = current_.load(std::memory_order_seq_cst);
  for (;;) {
    if (table == nullptr) return FastResult::kMissed;
    hazard->store(table, std::memory_order_seq_cst);
    const FastTable* again = current_.load(std::memory_order_seq_cst);
    if (again == table) break;
    table = again;
  }
  const FastWindow* window = Find(access.mmio ? table->mmio : table->pio, access.address);
  FastResult result = window == nullptr ? FastResult::kMissed : Answer(*window, access, used);
  hazard->store(nullptr, std::memory_order_release);
  return result;
}

FastResult FastPath::Answer(const FastWindow& window, const Access& access, uint32_t* used) {
  uint64_t offset = access.address - window.base;
  bool wide = access.width > sizeof(PostedWrite::value);
  if (access.write && !wide && Covers(window.posts, offset, access.width, window.size)) {
    PostedWrite write = {window.range, static_cast<uint32_t>(offset), access.width, 0};
    memcpy(&write.value, access.data, access.width);
    return ring.Push(write, used) ? FastResult::kPosted : FastResult::kMissed;
  }
  if (!access.write && !wide && window.shadow != nullptr && Covers(window.reads, offset, access.width, window.size)) {
    ReadShadow(window.shadow + offset, access.width, access.data);
    return FastResult::kRead;
  }
  bool passed = window.file != nullptr && PassOn(*window.file, access, offset, window.size);
  return passed ? FastResult::kPassed : FastResult::kMissed;
}

void FastPath::Clear() {
  current_.store(nullptr, std::memory_order_seq_cst);
  tables_.clear();
}

void FastPath::Swap(std::unique_ptr<FastTable> next) {
  current_.store(next.get(), std::memory_order_seq_cst);
  tables_.push_back(std::move(next));
}

const char* FastPath::Add(bool mmio, std::shared_ptr<const FastWindow> window) {
  auto next = tables_.empty() ? std::make_unique<FastTable>() : std::make_unique<FastTable>(*tables_.back());
  Windows& windows = mmio ? next->mmio : next->pio;
  auto after = std::find_if(windows.begin(), windows.end(), [&](const auto& other) { return other->base > window->base; });
  if (after != windows.end() && (*after)->base - window->base < window->size) return "overlaps a fast window";
  if (after != windows.begin() && window->base - (*std::prev(after))->base < (*std::prev(after))->size) {
    return "overlaps a fast window";
  }
  windows.insert(after, std::move(window));
  Swap(std::move(next));
  return nullptr;
}

bool FastPath::Remove(uint32_t range, const std::vector<Hazard*>& hazards) {
  if (tables_.empty()) return false;
  auto next = std::make_unique<FastTable>(*tables_.back());
  bool found = false;
  for (Windows* windows : {&next->pio, &next->mmio}) {
    auto at = std::find_if(windows->begin(), windows->end(), [&](const auto& window) { return window->range == range; });
    if (at == windows->end()) continue;
    windows->erase(at);
    found = true;
  }
  if (!found) return false;
  Swap(std::move(next));
  const FastTable* newest = tables_.back().get();
  // A lookup is a fraction of a microsecond; the yield is for a vCPU thread that lost its CPU in the middle of one, or waits for a driver.
  for (Hazard* hazard : hazards) {
    const FastTable* used = hazard->load(std::memory_order_seq_cst);
    while (used != nullptr && used != newest) {
      sched_yield();
      used = hazard->load(std::memory_order_seq_cst);
    }
  }
  tables_.erase(tables_.begin(), tables_.end() - 1);
  return true;
}

}  // namespace ferry
