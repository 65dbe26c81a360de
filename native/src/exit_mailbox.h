// Where vCPU threads leave word for the JS thread (an exit to answer, a post to replay, "I am parked"), and how they wake it: an
// eventfd that the event loop polls, written only when the JS thread is neither awake nor about to be. Producers: vCPU threads.
// Consumer: the JS thread, in vcpu_loop.cc.
#pragma once
#include <atomic>
#include <cstdint>

namespace ferry {

class ExitMailbox {
 public:
  static constexpr uint32_t kMaxVcpus = 64;

  ExitMailbox();
  ~ExitMailbox();
  ExitMailbox(const ExitMailbox&) = delete;
  ExitMailbox& operator=(const ExitMailbox&) = delete;

  /** -1 when there was none to be had. */
  int fd() const { return fd_; }

  // vCPU threads.
  void LeaveExit(uint32_t index) {
    exits_.fetch_or(uint64_t{1} << index, std::memory_order_seq_cst);
    Notify();
  }
  void LeaveParked() {
    parked_.store(true, std::memory_order_seq_cst);
    Notify();
  }
  /** The ring has `used` entries after a post. While the JS thread drains by its timer, only a half-full ring is worth a wake-up. */
  void LeavePosted(uint32_t used, uint32_t capacity) {
    if (!draining.load(std::memory_order_seq_cst) || used == capacity / 2) Notify();
  }

  // JS thread.
  uint64_t TakeExits() { return exits_.exchange(0, std::memory_order_seq_cst); }
  bool TakeParked() { return parked_.load(std::memory_order_relaxed) && parked_.exchange(false, std::memory_order_seq_cst); }
  bool HasWord() const {
    return exits_.load(std::memory_order_seq_cst) != 0 || parked_.load(std::memory_order_seq_cst);
  }
  /** Reads the eventfd. From now on until Sleep() producers do not write it: the consumer looks by itself. */
  void Woken();
  /** Producers wake the consumer again. The caller looks once more afterwards, and Wakes itself if there is word. */
  void Sleep() { awake_.store(false, std::memory_order_seq_cst); }
  void Wake() { Notify(); }

  /** JS thread writes, vCPU threads read: posts are being drained by a timer. */
  std::atomic<bool> draining{false};

 private:
  void Notify();

  int fd_;
  std::atomic<uint64_t> exits_{0};
  std::atomic<bool> parked_{false};
  std::atomic<bool> awake_{false};
};

}  // namespace ferry
