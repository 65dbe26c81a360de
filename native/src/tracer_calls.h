// What a system call of a tracee means for its fds, and what of it is told. Called by tracer_loop.cc at the entry and at the end of each
// call that the filter stops at. Tracer's thread; while it looks, the calling thread stands still, but its siblings may run.
#pragma once
#include "tracer_files.h"

namespace ferry {

struct TracedThread {
  pid_t tid = 0;
  pid_t pid = 0;
  std::shared_ptr<FdTable> files;
  /** Seen before its parent's fork was: it waits. */
  bool held = false;
  /** The call that it is in, where its end is waited for. */
  bool inCall = false;
  int number = 0;
  uint64_t args[6] = {};
  double at = 0;
  std::shared_ptr<OpenFile> file;
  TracedCall told;
};

class TracerCalls {
 public:
  TracerCalls(const TraceRules& rules, TraceQueue* queue);

  /** True: the end of the call is wanted. */
  bool Entered(TracedThread* thread, int number, const uint64_t* args);
  void Left(TracedThread* thread, int64_t result);
  /** The thread died in a call. */
  void Lost(TracedThread* thread);

  /** The fds that COMMAND is given by its parent. */
  void Inherit(TracedThread* thread);
  /** After exec: what was closed by it is gone. */
  void AfterExec(TracedThread* thread);
  void EndOf(const TracedThread& thread, int64_t result);
  TracedFiles& files() { return files_; }

 private:
  TracedCall Begin(const TracedThread& thread, const char* call, int fd, const std::shared_ptr<OpenFile>& file) const;
  void Tell(TracedCall call) { queue_->Put(std::move(call)); }
  double Now() const;
  std::shared_ptr<OpenFile> FileAt(const TracedThread& thread, uint64_t fd) const;

  void EnterIoctl(TracedThread* thread);
  void EnterTransfer(TracedThread* thread);
  bool EnterPoll(TracedThread* thread);
  void Close(TracedThread* thread, uint64_t first, uint64_t last);

  void LeaveOpen(TracedThread* thread, int64_t result);
  void LeaveIoctl(TracedThread* thread, int64_t result);
  void LeaveTransfer(TracedThread* thread, int64_t result);
  void LeavePoll(TracedThread* thread, int64_t result);
  void LeaveDup(TracedThread* thread, int64_t result);
  void LeaveReceive(TracedThread* thread, uint64_t header);
  void Arrived(TracedThread* thread, int fd, const char* how);
  void ReadPointed(TracedThread* thread, bool after);
  void FindMade(TracedThread* thread, int64_t result);

  const TraceRules& rules_;
  TraceQueue* queue_;
  TracedFiles files_;
  double epoch_;
};

}  // namespace ferry
