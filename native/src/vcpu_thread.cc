// The body of a vCPU thread. No allocation and no syscall but KVM_RUN between two fast exits (and the one of a device fd); one futex wait for
// an exit that JS answers.
#include "vcpu_thread.h"

#include <linux/futex.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdio>

namespace ferry {
namespace {

int KickSignal() { return SIGRTMIN + 1; }

void FutexWait(std::atomic<uint32_t>* word, uint32_t expected) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), FUTEX_WAIT_PRIVATE, expected, nullptr, nullptr, 0);
}
void FutexWake(std::atomic<uint32_t>* word) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

/** The handler does nothing: that the signal is handled is what ends KVM_RUN. Once a process. */
void InstallKickHandler() {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, [] {
    struct sigaction action = {};
    action.sa_handler = [](int) {};
    sigemptyset(&action.sa_mask);
    sigaction(KickSignal(), &action, nullptr);
  });
}

}  // namespace

VcpuThread::VcpuThread(std::shared_ptr<VcpuShared> shared, uint32_t index, int fd, std::shared_ptr<Mapping> run)
    : index(index), fd(fd), run(std::move(run)), shared_(std::move(shared)) {}

VcpuThread::~VcpuThread() {
  QuitAndJoin();
  close(fd);
}

int VcpuThread::Launch() {
  InstallKickHandler();
  // Every other signal stays with Node's threads.
  sigset_t all, old;
  sigfillset(&all);
  sigdelset(&all, KickSignal());
  pthread_sigmask(SIG_SETMASK, &all, &old);
  int failed = pthread_create(
      &thread_, nullptr,
      [](void* self) -> void* {
        static_cast<VcpuThread*>(self)->Main();
        return nullptr;
      },
      this);
  pthread_sigmask(SIG_SETMASK, &old, nullptr);
  if (failed != 0) return failed;
  launched_ = true;
  while (tid_.load(std::memory_order_acquire) == 0) FutexWait(&tid_, 0);
  return 0;
}

void VcpuThread::Go() {
  held = false;
  state_.store(kRunning, std::memory_order_seq_cst);
  FutexWake(&state_);
}

void VcpuThread::SetImmediateExit(uint8_t value) { __atomic_store_n(&Run()->immediate_exit, value, __ATOMIC_SEQ_CST); }

void VcpuThread::Kick() {
  // immediate_exit closes the gap between the thread's last look at `pausing` and its entry into KVM_RUN.
  SetImmediateExit(1);
  if (state() == kRunning) syscall(SYS_tgkill, getpid(), tid(), KickSignal());
}

void VcpuThread::QuitAndJoin() {
  if (!launched_) return;
  launched_ = false;
  quit_.store(true, std::memory_order_seq_cst);
  Kick();
  Go();
  pthread_join(thread_, nullptr);
}

void VcpuThread::SleepWhileNotRunning() {
  for (;;) {
    uint32_t seen = state_.load(std::memory_order_seq_cst);
    // A quitter sets quit_ first and state_ second; we have set state_ before we look at quit_.
    if (seen == kRunning || quit_.load(std::memory_order_seq_cst)) return;
    FutexWait(&state_, seen);
  }
}

void VcpuThread::Park() {
  state_.store(kParked, std::memory_order_seq_cst);
  shared_->mailbox.LeaveParked();
  SleepWhileNotRunning();
}

void VcpuThread::Wait(int failure) {
  failure_ = failure;
  state_.store(kWaiting, std::memory_order_seq_cst);
  shared_->mailbox.LeaveExit(index);
  SleepWhileNotRunning();
}

bool VcpuThread::AnswerFast() {
  Access access;
  if (!AccessOf(Run(), &access)) return false;
  uint32_t used = 0;
  switch (shared_->fast.Handle(access, &hazard, &used)) {
    case FastResult::kRead:
      fastReads.fetch_add(1, std::memory_order_relaxed);
      return true;
    case FastResult::kPosted:
      posted.fetch_add(1, std::memory_order_relaxed);
      shared_->mailbox.LeavePosted(used, PostedRing::kCapacity);
      return true;
    case FastResult::kPassed:
      passed.fetch_add(1, std::memory_order_relaxed);
      return true;
    case FastResult::kMissed:
      break;
  }
  return false;
}

void VcpuThread::Main() {
  char name[16];
  snprintf(name, sizeof name, "vcpu%u", index);
  pthread_setname_np(pthread_self(), name);
  tid_.store(static_cast<uint32_t>(syscall(SYS_gettid)), std::memory_order_release);
  FutexWake(&tid_);
  SleepWhileNotRunning();
  for (bool parked = true; !quit_.load(std::memory_order_seq_cst);) {
    if (parked) {
      // The kicker sets `pausing` first and immediate_exit second; we clear immediate_exit first and look at `pausing` second.
      SetImmediateExit(0);
      if (shared_->pausing.load(std::memory_order_seq_cst) || quit_.load(std::memory_order_seq_cst)) SetImmediateExit(1);
      parked = false;
    }
    if (ioctl(fd, KVM_RUN, 0) == 0) {
      if (AnswerFast()) continue;
      exits.fetch_add(1, std::memory_order_relaxed);
      Wait(0);
    } else if (errno == EINTR) {
      // Whatever access was outstanding is complete now: KVM_RUN finishes it before it looks at immediate_exit.
      if (shared_->pausing.load(std::memory_order_seq_cst) && !quit_.load(std::memory_order_seq_cst)) Park();
      parked = true;
    } else if (errno != EAGAIN) {
      Wait(errno);
      parked = true;
    }
  }
}

}  // namespace ferry
