// The receiving half of page_pump.h. Records are parsed out of the read buffer; a page moves only after its header was checked. Pages
// that are absent go in by pwritev (no page fault, and the kernel need not clear what is overwritten whole), present ones by memcpy.
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <emmintrin.h>
#include <endian.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

#include "page_pump.h"

namespace ferry {
namespace {

constexpr size_t kMaxRun = 512;

/**
 * One page past the cache: nobody looks at it before the guest runs, and a store through the cache would read the line first (measured: 1 GiB of
 * pages in 55 ms, not 130). `into` is page-aligned. Intel SDM 1, 11.4.4.2 (MOVNTDQ).
 */
void CopyPage(uint8_t* into, const uint8_t* from) {
  for (size_t at = 0; at < kPageSize; at += 64) {
    __m128i parts[4];
    for (size_t i = 0; i < 4; i++) parts[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + at + 16 * i));
    for (size_t i = 0; i < 4; i++) _mm_stream_si128(reinterpret_cast<__m128i*>(into + at + 16 * i), parts[i]);
  }
}

constexpr char kDoing[] = "reading RAM pages";

bool Bit(const std::vector<uint64_t>& bits, uint64_t at) { return (bits[at / 64] >> (at % 64)) & 1; }
void SetBit(std::vector<uint64_t>& bits, uint64_t at) { bits[at / 64] |= uint64_t{1} << (at % 64); }

Failure Refused(const char* format, uint64_t header) {
  char sentence[160];
  snprintf(sentence, sizeof sentence, format, header & kPageMask, header & ~kPageMask);
  return Failure::Stream(sentence);
}

}  // namespace

void PageReceiver::Adopt(const ReceivePagesRequest& request) {
  if (ram_ == request.ram && block_ == request.block) return;
  ram_ = request.ram;
  block_ = request.block;
  named_ = false;
  positional_ = ram_->fd >= 0;
  size_t words = (ram_->size / kPageSize + 63) / 64;
  touched_.assign(words, 0);
  resident_.assign(words, 0);
  looked_.assign(words / kChunkWords / 64 + 1, 0);
  run_.reserve(kMaxRun);
}

/** At least `length` bytes of the stream in the buffer; those that wait in it for their pwritev go first, since it may move. */
Failure PageReceiver::Ready(RxWire& wire, size_t length) {
  if (wire.available() >= length) return {};
  Failure failure = LandRun();
  return failure.ok() ? wire.Need(length, kDoing) : failure;
}

Failure PageReceiver::ReadHeader(RxWire& wire, uint64_t& header) {
  Failure failure = Ready(wire, sizeof header);
  if (!failure.ok()) return failure;
  memcpy(&header, wire.data(), sizeof header);
  header = be64toh(header);
  wire.Account(wire.data(), sizeof header);
  wire.Skip(sizeof header);
  return {};
}

Failure PageReceiver::Check(RxWire& wire, uint64_t header) {
  uint64_t kind = header & kPageMask & ~static_cast<uint64_t>(kContinue);
  if (kind != kZero && kind != kPage) {
    return Refused("the stream has a RAM record with flags 0x%" PRIx64 " (offset 0x%" PRIx64 ") that are unknown here", header);
  }
  if ((header & kContinue) == 0) {
    Failure failure = TakeName(wire);
    if (!failure.ok()) return failure;
  } else if (!named_) {
    return Refused("the stream has a RAM record (flags 0x%" PRIx64 ", offset 0x%" PRIx64 ") before any block was named", header);
  }
  if ((header & ~kPageMask) > ram_->size - kPageSize) {
    return Refused("the stream has a RAM record (flags 0x%" PRIx64 ") at offset 0x%" PRIx64 ", outside of the block", header);
  }
  return {};
}

Failure PageReceiver::TakeName(RxWire& wire) {
  Failure failure = Ready(wire, 1);
  if (!failure.ok()) return failure;
  size_t length = wire.data()[0];
  failure = Ready(wire, 1 + length);
  if (!failure.ok()) return failure;
  bool same = length == block_.size() && memcmp(wire.data() + 1, block_.data(), length) == 0;
  if (!same) {
    std::string name;
    for (size_t i = 1; i <= length; i++) name += wire.data()[i] >= 0x20 && wire.data()[i] < 0x7f ? static_cast<char>(wire.data()[i]) : '?';
    return Failure::Stream("the stream has a RAM record for the block \"" + name + "\"; this machine has \"" + block_ + "\"");
  }
  wire.Account(wire.data(), 1 + length);
  wire.Skip(1 + length);
  named_ = true;
  return {};
}

Failure PageReceiver::TakeBody(RxWire& wire, uint64_t header, PageCounts& counts) {
  uint64_t page = header / kPageSize;
  size_t length = (header & kZero) != 0 ? 1 : kPageSize;
  Failure failure = Ready(wire, length);
  if (!failure.ok()) return failure;
  if (length == 1) {
    uint8_t value = wire.data()[0];
    wire.Account(wire.data(), 1);
    failure = Fill(page, value);
    counts.zeroPages++;
  } else {
    failure = Land(page, wire.data());
    counts.pages++;
  }
  wire.Skip(length);
  return failure;
}

/** Once per 2 MiB, before the first record there is followed: what is resident now may have been written by somebody else. */
void PageReceiver::LookAt(uint64_t page) {
  uint64_t chunk = page / kChunkPages;
  if (Bit(looked_, chunk)) return;
  SetBit(looked_, chunk);
  uint64_t start = chunk * kChunkPages;
  uint64_t pages = std::min(kChunkPages, ram_->size / kPageSize - start);
  unsigned char present[kChunkPages];
  if (mincore(ram_->base + start * kPageSize, pages * kPageSize, present) < 0) memset(present, 1, sizeof present);
  for (uint64_t i = 0; i < pages; i++) {
    if ((present[i] & 1) == 0) continue;
    SetBit(touched_, start + i);
    SetBit(resident_, start + i);
  }
}

Failure PageReceiver::Land(uint64_t page, const uint8_t* bytes) {
  LookAt(page);
  SetBit(touched_, page);
  if (!positional_ || Bit(resident_, page)) {
    CopyPage(ram_->base + page * kPageSize, bytes);
    return {};
  }
  if (!run_.empty() && (page != run_page_ + run_.size() || run_.size() == kMaxRun)) {
    Failure failure = LandRun();
    if (!failure.ok()) return failure;
  }
  if (run_.empty()) run_page_ = page;
  run_.push_back({const_cast<uint8_t*>(bytes), kPageSize});
  return {};
}

Failure PageReceiver::LandRun() {
  if (run_.empty()) return {};
  size_t length = run_.size() * kPageSize;
  ssize_t wrote = positional_ ? pwritev(ram_->fd, run_.data(), static_cast<int>(run_.size()), run_page_ * kPageSize) : -1;
  if (wrote != static_cast<ssize_t>(length)) {
    // hugetlbfs has no write(2); and what a short write means is best told by the fault it would be (SIGBUS aside, ENOMEM is rare).
    if (wrote < 0 && (errno == ENOMEM || errno == ENOSPC)) return Failure::Sys("pwritev(guest RAM)", errno);
    positional_ = false;
    for (size_t i = 0; i < run_.size(); i++) memcpy(ram_->base + (run_page_ + i) * kPageSize, run_[i].iov_base, kPageSize);
  }
  run_.clear();
  return {};
}

Failure PageReceiver::Fill(uint64_t page, uint8_t value) {
  LookAt(page);
  // A page that nobody has written is zero, and stays unallocated.
  if (!Bit(touched_, page) && value == 0) return {};
  Failure failure = LandRun();
  if (!failure.ok()) return failure;
  uint8_t* at = ram_->base + page * kPageSize;
  if (value != 0 || !AllZero(at, kPageSize)) memset(at, value, kPageSize);
  SetBit(touched_, page);
  return {};
}

Failure PageReceiver::Run(RxWire& wire, const ReceivePagesRequest& request, PageCounts& counts) {
  Adopt(request);
  run_.clear();
  // What went past the cache is in order with whatever this thread tells others.
  struct Fence {
    ~Fence() { _mm_sfence(); }
  } fence;
  const uint64_t before = wire.bytes.load(std::memory_order_relaxed) - (request.first.has_value() ? sizeof(uint64_t) : 0);
  for (bool given = request.first.has_value();; given = false) {
    uint64_t header = request.first.value_or(0);
    if (!given) {
      Failure failure = ReadHeader(wire, header);
      if (!failure.ok()) return failure;
    }
    if (header == kEndOfSection) {
      counts.bytes = wire.bytes.load(std::memory_order_relaxed) - before;
      return LandRun();
    }
    Failure failure = Check(wire, header);
    if (failure.ok()) failure = TakeBody(wire, header, counts);
    if (!failure.ok()) return failure;
  }
}

}  // namespace ferry
