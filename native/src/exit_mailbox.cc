// The eventfd of exit_mailbox.h. The pattern against lost wake-ups: a producer leaves its word, then looks at awake_; the consumer
// clears awake_, then looks for word. Both are sequentially consistent, so at least one of them sees the other.
#include "exit_mailbox.h"

#include <sys/eventfd.h>
#include <unistd.h>

namespace ferry {

ExitMailbox::ExitMailbox() : fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}
ExitMailbox::~ExitMailbox() {
  if (fd_ >= 0) close(fd_);
}

void ExitMailbox::Notify() {
  if (awake_.load(std::memory_order_seq_cst) || awake_.exchange(true, std::memory_order_seq_cst)) return;
  uint64_t one = 1;
  // Cannot fail: the counter is read each time before it is written again.
  (void)!write(fd_, &one, sizeof one);
}

void ExitMailbox::Woken() {
  awake_.store(true, std::memory_order_seq_cst);
  uint64_t count;
  (void)!read(fd_, &count, sizeof count);
}

}  // namespace ferry
