// The tracer's thread: starts COMMAND, waits for its stops and lets it go on. Every thread and child of COMMAND is followed from its first
// instruction, before it can use an fd. When this thread or process dies, COMMAND does (PTRACE_O_EXITKILL). ptrace(2), PTRACE_SEIZE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstring>
#include <set>

#include "tracer_calls.h"
#include "tracer_memory.h"

namespace ferry {
namespace {

constexpr unsigned long kOptions = PTRACE_O_TRACESECCOMP | PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK |
                                   PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC | PTRACE_O_EXITKILL;
constexpr int kSyscallStop = SIGTRAP | 0x80;
constexpr int kNoExec = 127;

/** What the child does until it is COMMAND. Node's mask and its ignored SIGPIPE are not for COMMAND. */
[[noreturn]] void BeCommand(int go, int status, char* const* argv, uint32_t ioctlType) {
  char word = 0;
  if (read(go, &word, 1) != 1) _exit(kNoExec);
  for (int signal = 1; signal < NSIG; signal++) {
    if (signal != SIGKILL && signal != SIGSTOP) ::signal(signal, SIG_DFL);
  }
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  // Node keeps even these from children of ours.
  for (int fd = 0; fd <= 2; fd++) fcntl(fd, F_SETFD, 0);
  int err = InstallTraceFilter(ioctlType);
  if (err == 0) {
    execvp(argv[0], argv);
    err = errno;
  } else {
    err = -err;  // the filter's, not exec's
  }
  ssize_t written = write(status, &err, sizeof err);
  _exit(written == sizeof err ? kNoExec : kNoExec - 1);
}

class Tracer {
 public:
  Tracer(const TraceRules& rules, TraceQueue* queue) : queue_(queue), calls_(rules, queue) {}

  void Run(const std::vector<std::string>& command, uint32_t ioctlType) {
    std::vector<char*> argv;
    for (const std::string& word : command) argv.push_back(const_cast<char*>(word.c_str()));
    argv.push_back(nullptr);
    int go[2];
    int status[2];
    if (pipe2(go, O_CLOEXEC) != 0) return queue_->Started(errno, "pipe2", 0);
    if (pipe2(status, O_CLOEXEC) != 0) {
      int err = errno;
      close(go[0]);
      close(go[1]);
      return queue_->Started(err, "pipe2", 0);
    }
    root_ = fork();
    if (root_ == 0) BeCommand(go[0], status[1], argv.data(), ioctlType);
    int err = root_ < 0 ? errno : 0;
    const char* what = "fork";
    close(go[0]);
    close(status[1]);
    if (err == 0 && ptrace(PTRACE_SEIZE, root_, nullptr, kOptions) != 0) {
      err = errno;
      what = "ptrace(PTRACE_SEIZE)";
    }
    if (err == 0) {
      TracedThread* root = Add(root_, root_, calls_.files().NewTable());
      calls_.files().Owner(root->files, root_);
      ssize_t written = write(go[1], "", 1);
      static_cast<void>(written);  // a child that is dead already says so by itself
    }
    close(go[1]);
    if (err == 0) {
      Follow();
      if (!execed_) {
        int told = 0;
        bool read_ = read(status[0], &told, sizeof told) == sizeof told;
        err = !read_ ? ECHILD : told < 0 ? -told : told;
        what = read_ && told < 0 ? "seccomp" : "exec";
      }
    } else if (root_ > 0) {
      waitpid(root_, nullptr, __WALL);
    }
    close(status[0]);
    if (!execed_) return queue_->Started(err, what, 0);
    queue_->Ended(rootStatus_);
  }

 private:
  void Follow() {
    for (;;) {
      int status = 0;
      // Not the children of Node's own threads.
      pid_t tid = waitpid(-1, &status, __WALL | __WNOTHREAD);
      if (tid < 0 && errno == EINTR) continue;
      if (tid < 0) return;
      if (WIFSTOPPED(status)) {
        Stopped(tid, status);
      } else {
        Ended(tid, status);
      }
    }
  }

  void Stopped(pid_t tid, int status) {
    auto found = threads_.find(tid);
    if (found == threads_.end()) {
      // Its parent's event is yet to come, and with it whose fds it has.
      Add(tid, tid, nullptr)->held = true;
      return;
    }
    TracedThread* thread = &found->second;
    if (thread->held) return;
    int signal = WSTOPSIG(status);
    switch (status >> 16) {
      case PTRACE_EVENT_SECCOMP:
        Entered(thread);
        return Resume(thread, 0);
      case PTRACE_EVENT_FORK:
      case PTRACE_EVENT_VFORK:
      case PTRACE_EVENT_CLONE:
        Cloned(thread);
        return Resume(thread, 0);
      case PTRACE_EVENT_EXEC:
        return Resume(Execed(thread), 0);
      case PTRACE_EVENT_STOP:
        // A stopping signal: the whole process stays stopped, as it would without us.
        if (signal != SIGTRAP) {
          ptrace(PTRACE_LISTEN, tid, nullptr, nullptr);
          return;
        }
        return Resume(thread, 0);
      case 0:
        if (signal != kSyscallStop) return Resume(thread, signal);
        Left(thread);
        return Resume(thread, 0);
      default:
        return Resume(thread, 0);
    }
  }

  void Entered(TracedThread* thread) {
    __ptrace_syscall_info info{};
    ptrace(PTRACE_GET_SYSCALL_INFO, thread->tid, sizeof info, &info);
    if (info.op != PTRACE_SYSCALL_INFO_SECCOMP) return;
    uint64_t args[6];
    for (int i = 0; i < 6; i++) args[i] = info.seccomp.args[i];
    thread->inCall = calls_.Entered(thread, static_cast<int>(info.seccomp.nr), args);
  }

  void Left(TracedThread* thread) {
    __ptrace_syscall_info info{};
    ptrace(PTRACE_GET_SYSCALL_INFO, thread->tid, sizeof info, &info);
    if (!thread->inCall || info.op != PTRACE_SYSCALL_INFO_EXIT) return;
    thread->inCall = false;
    calls_.Left(thread, info.exit.rval);
  }

  /** The new thread or process has the flags of the call that made it. */
  void Cloned(TracedThread* parent) {
    unsigned long message = 0;
    if (ptrace(PTRACE_GETEVENTMSG, parent->tid, nullptr, &message) != 0) return;
    uint64_t flags = CloneFlags(parent->tid);
    pid_t tid = static_cast<pid_t>(message);
    pid_t pid = (flags & CLONE_THREAD) != 0 ? parent->pid : tid;
    std::shared_ptr<FdTable> files = (flags & CLONE_FILES) != 0 ? parent->files : calls_.files().Copy(*parent->files);
    if ((flags & CLONE_FILES) == 0) calls_.files().Owner(files, tid);
    auto found = threads_.find(tid);
    bool held = found != threads_.end() && found->second.held;
    TracedThread* child = Add(tid, pid, files);
    if (held) Resume(child, 0);
  }

  uint64_t CloneFlags(pid_t tid) {
    user_regs_struct registers{};
    if (ptrace(PTRACE_GETREGS, tid, nullptr, &registers) != 0) return 0;
    if (registers.orig_rax == SYS_clone) return registers.rdi;
    uint64_t flags = 0;
    if (registers.orig_rax == SYS_clone3) ReadValue(tid, registers.rdi, &flags);  // struct clone_args, flags
    return flags;
  }

  /** The thread that called exec is the only one left, under its process's number. */
  TracedThread* Execed(TracedThread* thread) {
    unsigned long message = 0;
    ptrace(PTRACE_GETEVENTMSG, thread->tid, nullptr, &message);
    auto former = threads_.find(static_cast<pid_t>(message));
    if (former != threads_.end() && former->first != thread->tid) {
      thread->files = former->second.files;
      threads_.erase(former);
    }
    thread->inCall = false;
    thread->file = nullptr;
    calls_.AfterExec(thread);
    if (thread->tid == root_ && !execed_) {
      execed_ = true;
      calls_.Inherit(thread);
      queue_->Started(0, "", root_);
    }
    return thread;
  }

  void Ended(pid_t tid, int status) {
    auto found = threads_.find(tid);
    if (found != threads_.end()) {
      TracedThread* thread = &found->second;
      if (thread->inCall) calls_.Lost(thread);
      bool told = tid == root_ || (thread->tid == thread->pid && thread->files && !thread->files->empty());
      if (told && execed_) calls_.EndOf(*thread, WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status));
      threads_.erase(found);
    }
    if (tid == root_) rootStatus_ = status;
    // Whoever was killed in fork will not tell of its child.
    for (auto& [other, thread] : threads_) {
      if (!thread.held) continue;
      thread.held = false;
      thread.files = calls_.files().NewTable();
      calls_.files().Owner(thread.files, other);
      calls_.Inherit(&thread);
      Resume(&thread, 0);
    }
  }

  TracedThread* Add(pid_t tid, pid_t pid, std::shared_ptr<FdTable> files) {
    TracedThread* thread = &threads_[tid];
    thread->tid = tid;
    thread->pid = pid;
    thread->files = std::move(files);
    thread->held = false;
    return thread;
  }

  /** ESRCH: it was killed meanwhile, and its end will be reported. */
  void Resume(TracedThread* thread, int signal) {
    ptrace(thread->inCall ? PTRACE_SYSCALL : PTRACE_CONT, thread->tid, nullptr, static_cast<unsigned long>(signal));
  }

  TraceQueue* queue_;
  TracerCalls calls_;
  std::map<pid_t, TracedThread> threads_;
  pid_t root_ = -1;
  bool execed_ = false;
  int rootStatus_ = 0;
};

}  // namespace

void RunTracer(const std::vector<std::string>& command, const TraceRules& rules, TraceQueue* queue) {
  Tracer(rules, queue).Run(command, rules.ioctlType);
}

}  // namespace ferry
