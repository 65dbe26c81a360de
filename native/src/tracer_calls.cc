// See tracer_calls.h: which calls, and fds. What an ioctl's argument holds is tracer_ioctl.cc's. Names of calls are those of their
// manual pages.
#include "tracer_calls.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>

#include <algorithm>
#include <cstring>

#include "tracer_memory.h"

namespace ferry {
namespace {

/** Calls that move bytes: where their buffer is, and whether into the file. */
struct Transfer {
  int number;
  const char* name;
  bool vector;
  bool writes;
};
constexpr Transfer kTransfers[] = {
    {SYS_read, "read", false, false},       {SYS_write, "write", false, true},     {SYS_pread64, "pread", false, false},
    {SYS_pwrite64, "pwrite", false, true},  {SYS_readv, "readv", true, false},     {SYS_writev, "writev", true, true},
    {SYS_preadv, "preadv", true, false},    {SYS_pwritev, "pwritev", true, true},  {SYS_preadv2, "preadv2", true, false},
    {SYS_pwritev2, "pwritev2", true, true},
};

const Transfer* TransferOf(int number) {
  for (const Transfer& each : kTransfers) {
    if (each.number == number) return &each;
  }
  return nullptr;
}

ByteList BufferOf(const TracedThread& thread, const Transfer& transfer, size_t length) {
  return transfer.vector ? ReadVector(thread.tid, thread.args[1], thread.args[2], length)
                         : ReadMemory(thread.tid, thread.args[1], length);
}

constexpr size_t kMostPolled = 4096;
constexpr int kRestart = 512;  // ERESTARTSYS and its like up to 516 never reach a program. linux/errno.h

}  // namespace

TracerCalls::TracerCalls(const TraceRules& rules, TraceQueue* queue) : rules_(rules), queue_(queue), files_(rules), epoch_(0) {
  epoch_ = Now();
}

double TracerCalls::Now() const {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec + now.tv_nsec / 1e9 - epoch_;
}

TracedCall TracerCalls::Begin(const TracedThread& thread, const char* call, int fd, const std::shared_ptr<OpenFile>& file) const {
  TracedCall told;
  told.call = call;
  told.pid = thread.pid;
  told.tid = thread.tid;
  told.at = Now();
  told.fd = fd;
  if (file) {
    told.file = file->id;
    told.kind = file->kind;
  }
  return told;
}

/** The kernel takes the low half of the register as an fd. */
std::shared_ptr<OpenFile> TracerCalls::FileAt(const TracedThread& thread, uint64_t fd) const {
  auto found = thread.files->find(static_cast<int>(fd));
  return found == thread.files->end() ? nullptr : found->second;
}

bool TracerCalls::Entered(TracedThread* thread, int number, const uint64_t* args) {
  thread->number = number;
  memcpy(thread->args, args, sizeof thread->args);
  thread->file = nullptr;
  thread->at = Now();
  switch (number) {
    case SYS_open: case SYS_openat: case SYS_openat2: case SYS_creat: case SYS_pidfd_getfd: case SYS_unshare:
      return true;
    case SYS_close:
      // At the entry: when it has ended, another thread may have been given the number already.
      Close(thread, static_cast<uint32_t>(args[0]), static_cast<uint32_t>(args[0]));
      return false;
    case SYS_close_range:
      if ((args[2] & CLOSE_RANGE_CLOEXEC) == 0) Close(thread, static_cast<uint32_t>(args[0]), static_cast<uint32_t>(args[1]));
      return false;
    case SYS_recvmsg: {
      msghdr header;
      return ReadValue(thread->tid, args[1], &header) && header.msg_control != nullptr;
    }
    case SYS_recvmmsg:
      return true;
    case SYS_dup2: case SYS_dup3:
      thread->file = FileAt(*thread, args[0]);
      return thread->file != nullptr || FileAt(*thread, args[1]) != nullptr;
    case SYS_poll: case SYS_ppoll:
      return EnterPoll(thread);
    case SYS_mmap:
      thread->file = FileAt(*thread, args[4]);
      return thread->file != nullptr;
    default:
      break;
  }
  thread->file = FileAt(*thread, args[0]);
  if (thread->file == nullptr) return false;
  if (number == SYS_ioctl) EnterIoctl(thread);
  if (TransferOf(number) != nullptr) EnterTransfer(thread);
  return true;
}

void TracerCalls::Left(TracedThread* thread, int64_t result) {
  if (result <= -kRestart && result >= -kRestart - 4 && thread->file == nullptr) return;
  switch (thread->number) {
    case SYS_open: case SYS_openat: case SYS_openat2: case SYS_creat:
      LeaveOpen(thread, result);
      break;
    case SYS_pidfd_getfd:
      if (result >= 0) Arrived(thread, static_cast<int>(result), "pidfd_getfd");
      break;
    case SYS_unshare:
      if (result == 0 && (thread->args[0] & CLONE_FILES) != 0) {
        thread->files = files_.Copy(*thread->files);
        files_.Owner(thread->files, thread->tid);
      }
      break;
    case SYS_recvmsg:
      if (result >= 0) LeaveReceive(thread, thread->args[1]);
      break;
    case SYS_recvmmsg:
      for (int64_t i = 0; i < result; i++) LeaveReceive(thread, thread->args[1] + i * sizeof(mmsghdr));
      break;
    case SYS_dup: case SYS_dup2: case SYS_dup3: case SYS_fcntl:
      LeaveDup(thread, result);
      break;
    case SYS_poll: case SYS_ppoll:
      LeavePoll(thread, result);
      break;
    case SYS_ioctl:
      LeaveIoctl(thread, result);
      break;
    case SYS_mmap:
      thread->told = Begin(*thread, "mmap", static_cast<int>(thread->args[4]), thread->file);
      [[fallthrough]];
    default:
      LeaveTransfer(thread, result);
  }
  thread->file = nullptr;
}

void TracerCalls::Lost(TracedThread* thread) {
  if (thread->file == nullptr) return;
  if (thread->number == SYS_ioctl || TransferOf(thread->number) != nullptr) {
    thread->told.answered = false;
    thread->told.seconds = Now() - thread->at;
    Tell(std::move(thread->told));
  }
  thread->file = nullptr;
}

void TracerCalls::Close(TracedThread* thread, uint64_t first, uint64_t last) {
  FdTable& table = *thread->files;
  if (first > static_cast<uint64_t>(INT32_MAX)) return;
  auto each = table.lower_bound(static_cast<int>(first));
  while (each != table.end() && static_cast<uint64_t>(each->first) <= last) {
    Tell(Begin(*thread, "close", each->first, each->second));
    each = table.erase(each);
  }
}

void TracerCalls::LeaveOpen(TracedThread* thread, int64_t result) {
  unsigned pathAt = thread->number == SYS_open || thread->number == SYS_creat ? 0 : 1;
  uint32_t kind = 0;
  if (result < 0) {
    // That it could not be opened is worth knowing; by which other name it was tried is not known.
    std::string path = ReadText(thread->tid, thread->args[pathAt]);
    if (!files_.Matches(path, &kind)) return;
    TracedCall told = Begin(*thread, "open", -1, nullptr);
    told.kind = kind;
    told.path = path;
    told.result = result;
    told.at = thread->at;
    told.seconds = Now() - thread->at;
    Tell(std::move(told));
    return;
  }
  int fd = static_cast<int>(result);
  std::string link = LinkOf(thread->tid, fd);
  if (!files_.Matches(link, &kind)) {
    thread->files->erase(fd);
    return;
  }
  std::shared_ptr<OpenFile> file = files_.Add(link, kind);
  (*thread->files)[fd] = file;
  TracedCall told = Begin(*thread, "open", fd, file);
  told.path = link;
  told.result = result;
  told.at = thread->at;
  told.seconds = Now() - thread->at;
  Tell(std::move(told));
}

void TracerCalls::EnterTransfer(TracedThread* thread) {
  const Transfer& transfer = *TransferOf(thread->number);
  thread->told = Begin(*thread, transfer.name, static_cast<int>(thread->args[0]), thread->file);
  // Now, since a sibling may overwrite it meanwhile.
  if (transfer.writes) thread->told.payload = BufferOf(*thread, transfer, transfer.vector ? kPayload : thread->args[2]);
}

void TracerCalls::LeaveTransfer(TracedThread* thread, int64_t result) {
  TracedCall& told = thread->told;
  const Transfer* transfer = TransferOf(thread->number);
  memcpy(told.args, thread->args, sizeof told.args);
  told.result = result;
  told.at = thread->at;
  told.seconds = Now() - thread->at;
  size_t moved = result > 0 ? static_cast<size_t>(result) : 0;
  if (transfer != nullptr && !transfer->writes) told.payload = BufferOf(*thread, *transfer, moved);
  if (told.payload.size() > moved) told.payload.resize(moved);
  Tell(std::move(told));
}

bool TracerCalls::EnterPoll(TracedThread* thread) {
  if (thread->files->empty()) return false;
  ByteList raw = ReadMemory(thread->tid, thread->args[0], std::min<uint64_t>(thread->args[1], kMostPolled) * sizeof(pollfd));
  for (size_t i = 0; i + sizeof(pollfd) <= raw.size(); i += sizeof(pollfd)) {
    pollfd each;
    memcpy(&each, raw.data() + i, sizeof each);
    if (thread->files->count(each.fd) != 0) return true;
  }
  return false;
}

/** One for each fd of interest: its pollfd is the answer. */
void TracerCalls::LeavePoll(TracedThread* thread, int64_t result) {
  ByteList raw = ReadMemory(thread->tid, thread->args[0], std::min<uint64_t>(thread->args[1], kMostPolled) * sizeof(pollfd));
  for (size_t i = 0; i + sizeof(pollfd) <= raw.size(); i += sizeof(pollfd)) {
    pollfd each;
    memcpy(&each, raw.data() + i, sizeof each);
    std::shared_ptr<OpenFile> file = FileAt(*thread, each.fd);
    if (!file) continue;
    TracedCall told = Begin(*thread, "poll", each.fd, file);
    told.after.assign(raw.begin() + i, raw.begin() + i + sizeof(pollfd));
    told.result = result;
    told.at = thread->at;
    told.seconds = Now() - thread->at;
    Tell(std::move(told));
  }
}

void TracerCalls::LeaveDup(TracedThread* thread, int64_t result) {
  if (result < 0) return;
  int made = static_cast<int>(result);
  bool same = static_cast<int>(thread->args[0]) == made;
  if (!same && thread->files->count(made) != 0) Close(thread, made, made);
  if (!thread->file) return;
  (*thread->files)[made] = thread->file;
  TracedCall told = Begin(*thread, thread->number == SYS_fcntl ? "fcntl(F_DUPFD)" : "dup", static_cast<int>(thread->args[0]), thread->file);
  told.result = result;
  told.at = thread->at;
  told.seconds = Now() - thread->at;
  told.madeFd = made;
  told.madeFile = thread->file->id;
  told.madeKind = thread->file->kind;
  Tell(std::move(told));
}

void TracerCalls::LeaveReceive(TracedThread* thread, uint64_t address) {
  msghdr header;
  if (!ReadValue(thread->tid, address, &header) || header.msg_controllen == 0) return;
  ByteList control = ReadMemory(thread->tid, reinterpret_cast<uint64_t>(header.msg_control), header.msg_controllen);
  size_t at = 0;
  while (at + sizeof(cmsghdr) <= control.size()) {
    cmsghdr head;
    memcpy(&head, control.data() + at, sizeof head);
    if (head.cmsg_len < sizeof head || head.cmsg_len > control.size() - at) return;
    if (head.cmsg_level == SOL_SOCKET && head.cmsg_type == SCM_RIGHTS) {
      for (size_t i = CMSG_LEN(0); i + sizeof(int) <= head.cmsg_len; i += sizeof(int)) {
        int fd;
        memcpy(&fd, control.data() + at + i, sizeof fd);
        Arrived(thread, fd, "recvmsg");
      }
    }
    at += CMSG_ALIGN(head.cmsg_len);
  }
}

void TracerCalls::Arrived(TracedThread* thread, int fd, const char* how) {
  std::shared_ptr<OpenFile> file = files_.Find(thread->tid, fd);
  if (!file) {
    thread->files->erase(fd);
    return;
  }
  (*thread->files)[fd] = file;
  TracedCall told = Begin(*thread, how, fd, file);
  told.path = file->link;
  Tell(std::move(told));
}

void TracerCalls::Inherit(TracedThread* thread) {
  for (int fd : OpenFds(thread->tid)) {
    if (thread->files->count(fd) == 0) Arrived(thread, fd, "inherit");
  }
}

void TracerCalls::AfterExec(TracedThread* thread) {
  thread->files = files_.Copy(*thread->files);
  files_.Owner(thread->files, thread->tid);
  FdTable& table = *thread->files;
  for (auto each = table.begin(); each != table.end();) {
    if (LinkOf(thread->tid, each->first).empty()) {
      Tell(Begin(*thread, "close", each->first, each->second));
      each = table.erase(each);
    } else {
      ++each;
    }
  }
}

void TracerCalls::EndOf(const TracedThread& thread, int64_t result) {
  TracedCall told = Begin(thread, "end", -1, nullptr);
  told.result = result;
  Tell(std::move(told));
}

}  // namespace ferry
