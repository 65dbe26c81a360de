// One vCPU: its fd, its kvm_run page, and the native thread that calls KVM_RUN. The thread parks, runs and waits by one futex word;
// the JS thread (vcpu_loop.cc) starts, kicks, answers and joins it. KVM api.rst, KVM_RUN and immediate_exit.
#pragma once
#include <linux/kvm.h>
#include <pthread.h>

#include <atomic>
#include <memory>

#include "exit_mailbox.h"
#include "fast_path.h"
#include "guest_ram.h"

namespace ferry {

/** What all vCPU threads of one machine share. */
struct VcpuShared {
  ExitMailbox mailbox;
  FastPath fast;
  /** Set by the JS thread before it kicks: whoever leaves KVM_RUN with EINTR parks. */
  std::atomic<bool> pausing{true};
};

class VcpuThread {
 public:
  enum State : uint32_t {
    /** Between exits, nothing outstanding. Registers may be read and written. */
    kParked = 0,
    kRunning = 1,
    /** An exit lies in kvm_run and the mailbox names it. */
    kWaiting = 2,
  };

  VcpuThread(std::shared_ptr<VcpuShared> shared, uint32_t index, int fd, std::shared_ptr<Mapping> run);
  ~VcpuThread();
  VcpuThread(const VcpuThread&) = delete;
  VcpuThread& operator=(const VcpuThread&) = delete;

  /** JS thread: makes the thread, parked; 0 or the errno of pthread_create. */
  int Launch();

  // JS thread.
  State state() const { return static_cast<State>(state_.load(std::memory_order_seq_cst)); }
  /** Parked or waiting -> running. */
  void Go();
  /** A vCPU whose KVM_RUN failed: waiting -> parked, without another KVM_RUN. */
  void ParkFailed() { state_.store(kParked, std::memory_order_seq_cst); }
  /** Out of KVM_RUN, whatever the guest does; the next KVM_RUN completes the outstanding access and returns EINTR. */
  void Kick();
  void QuitAndJoin();

  const uint32_t index;
  const int fd;
  const std::shared_ptr<Mapping> run;
  pid_t tid() const { return static_cast<pid_t>(tid_.load(std::memory_order_acquire)); }
  /** Valid while waiting: errno of KVM_RUN, 0 for an exit. */
  int failure() const { return failure_; }
  /** JS thread only: exit() has been called and said false, or failed() was called. */
  bool held = false;

  FastPath::Hazard hazard{nullptr};
  std::atomic<uint64_t> exits{0};
  std::atomic<uint64_t> fastReads{0};
  std::atomic<uint64_t> posted{0};
  std::atomic<uint64_t> passed{0};

 private:
  void Main();
  void SleepWhileNotRunning();
  void Park();
  void Wait(int failure);
  bool AnswerFast();
  struct kvm_run* Run() const { return reinterpret_cast<struct kvm_run*>(run->base); }
  void SetImmediateExit(uint8_t value);

  std::shared_ptr<VcpuShared> shared_;
  std::atomic<uint32_t> state_{kParked};
  std::atomic<uint32_t> tid_{0};
  std::atomic<bool> quit_{false};
  bool launched_ = false;
  int failure_ = 0;
  pthread_t thread_{};
};

}  // namespace ferry
