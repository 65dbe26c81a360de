// The way of what was traced from the tracer's thread to JS, bounded: while JS is far behind, the traced program waits. See tracer.h.
#include "tracer.h"

namespace ferry {
namespace {

constexpr size_t kMostBytes = 64 << 20;

}  // namespace

void TraceQueue::Put(TracedCall call) {
  std::unique_lock<std::mutex> held(lock_);
  changed_.wait(held, [this] { return bytes_ < kMostBytes; });
  bytes_ += call.Bytes();
  calls_.push_back(std::move(call));
  changed_.notify_all();
}

void TraceQueue::Started(int err, const char* what, pid_t pid) {
  std::lock_guard<std::mutex> held(lock_);
  started_ = true;
  err_ = err;
  what_ = what;
  pid_ = pid;
  changed_.notify_all();
}

void TraceQueue::Ended(int status) {
  std::lock_guard<std::mutex> held(lock_);
  ended_ = true;
  status_ = status;
  changed_.notify_all();
}

std::vector<TracedCall> TraceQueue::Take(bool* ended, int* status) {
  std::unique_lock<std::mutex> held(lock_);
  changed_.wait(held, [this] { return ended_ || !calls_.empty(); });
  std::vector<TracedCall> taken;
  taken.swap(calls_);
  bytes_ = 0;
  // The end is told when there is nothing before it any more.
  *ended = ended_ && taken.empty();
  *status = status_;
  changed_.notify_all();
  return taken;
}

int TraceQueue::WaitStarted(std::string* what, pid_t* pid) {
  std::unique_lock<std::mutex> held(lock_);
  changed_.wait(held, [this] { return started_; });
  *what = what_;
  *pid = pid_;
  return err_;
}

}  // namespace ferry
