// What a vCPU thread answers by itself, knowing no device: reads from a shadow page, writes posted to one ring, the rest of a window by
// pread and pwrite of a device fd. The table of windows is immutable and swapped by pointer; vCPU threads read it lock-free under a hazard
// pointer, the JS thread makes and retires tables.
#pragma once
#include <linux/kvm.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "region_fd.h"

namespace ferry {

/** One write that the guest has done and no device has seen yet. */
struct PostedWrite {
  uint32_t range;
  uint32_t offset;
  uint32_t width;
  uint32_t value;
};

/**
 * Posted writes of all vCPUs in one order. Producers take a mutex, so whatever a guest thread has finished is visible to the one
 * consumer (the JS thread) without waiting for anybody: an entry is in the ring before its vCPU re-enters the guest.
 */
class PostedRing {
 public:
  static constexpr uint32_t kCapacity = 4096;
  /** False when it is full: the write then exits the slow way, and is replayed after everything in the ring. */
  bool Push(const PostedWrite& write, uint32_t* used);
  bool Pop(PostedWrite* write);
  bool Empty() const { return head_.load(std::memory_order_seq_cst) == tail_.load(std::memory_order_relaxed); }

 private:
  std::mutex producers_;
  std::atomic<uint32_t> head_{0};
  std::atomic<uint32_t> tail_{0};
  PostedWrite slots_[kCapacity];
};

/** The device fd behind a window; contract.ts, FastFile. */
struct FastFile {
  struct Part {
    uint64_t start;
    uint64_t length;
  };
  explicit FastFile(int fd) : device(fd) {}
  RegionFd device;
  /** Of the window's first byte. */
  uint64_t offset = 0;
  /** Not by this way. */
  std::vector<Part> except;
};

struct FastWindow {
  uint32_t range = 0;
  uint64_t base = 0;
  uint64_t size = 0;
  /** Null: no fast reads. Memory of a Uint8Array that the loop keeps referenced. */
  const uint8_t* shadow = nullptr;
  /** One bit an offset. */
  std::vector<uint64_t> reads;
  std::vector<uint64_t> posts;
  /** Null: what is neither read from the shadow nor posted is missed. */
  std::unique_ptr<const FastFile> file;
};

/** Sorted by base, without overlap. */
struct FastTable {
  std::vector<std::shared_ptr<const FastWindow>> pio;
  std::vector<std::shared_ptr<const FastWindow>> mmio;
};

/** One guest access as the kernel reports it. */
struct Access {
  bool mmio;
  bool write;
  uint64_t address;
  uint32_t width;
  /** In kvm_run: read by a write, filled by a read. */
  uint8_t* data;
};

/** False when the exit is no single access of 1, 2, 4 or 8 bytes (string I/O goes to JS in one exit). */
bool AccessOf(struct kvm_run* run, Access* access);

enum class FastResult { kMissed, kRead, kPosted, kPassed };

class FastPath {
 public:
  /** Which table a vCPU thread is reading; one a vCPU. */
  using Hazard = std::atomic<const FastTable*>;

  /** vCPU thread. `used`: entries in the ring after a post. */
  FastResult Handle(const Access& access, Hazard* hazard, uint32_t* used);

  /** JS thread, and no vCPU thread any more: the device fds go with the tables. */
  void Clear();
  /** JS thread. Null on success, else why not. */
  const char* Add(bool mmio, std::shared_ptr<const FastWindow> window);
  /** JS thread. When it returns no vCPU thread uses the window any more; its last posts may still be in the ring. */
  bool Remove(uint32_t range, const std::vector<Hazard*>& hazards);
  PostedRing ring;

 private:
  void Swap(std::unique_ptr<FastTable> next);
  FastResult Answer(const FastWindow& window, const Access& access, uint32_t* used);

  std::atomic<const FastTable*> current_{nullptr};
  /** All tables but the newest wait here until a Remove, or the end, proves them unused. */
  std::vector<std::unique_ptr<FastTable>> tables_;
};

}  // namespace ferry
