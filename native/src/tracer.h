// A tracer of another program by ptrace, for `ferry vfio trace -- COMMAND`: sees every call on VFIO and iommufd fds, in threads and
// children too, of static programs as well. A seccomp filter stops the program at the calls that may matter only; all else runs at full
// speed. One native thread owns the tracees (ptrace is per thread): tracer_loop.cc. What is of interest is told by the caller as tables:
// this code knows system calls and file descriptors, not VFIO. ptrace(2), seccomp(2); x86-64 programs only.
#pragma once
#include <sys/types.h>

#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace ferry {

/** Whatever has this in a table means "any" or "none". */
constexpr uint32_t kAny = 0xffffffff;

/** The caller's tables; columns as in native/addon.ts, TraceRules. */
struct TraceRules {
  struct Path {
    std::string prefix;
    bool exact = false;
    uint32_t kind = 0;
  };
  /** Memory that an ioctl's argument points to. */
  struct Pointer {
    uint32_t kind, request, feature, flags, at, length, a, b, after;
  };
  /** An ioctl that gives a new fd: as its result (at is kAny), or in the argument. */
  struct Maker {
    uint32_t kind, request, feature, at, made;
  };
  /** Arguments that do not begin with their own size. */
  struct Size {
    uint32_t request, bytes;
  };
  std::vector<Path> paths;
  std::vector<Pointer> pointers;
  std::vector<Maker> makers;
  std::vector<Size> sizes;
  /** The type byte of the ioctls that matter. */
  uint32_t ioctlType = 0;
};

/** Pointer.length: how long what is pointed to is. a and b are offsets in the argument, b also the size of an element. */
enum PointedLength : uint32_t { kCountTimes = 0, kSize32 = 1, kSize64 = 2, kBitmap = 3 };

/** One open file of interest, whatever fds of whatever process name it. */
struct OpenFile {
  uint32_t id = 0;
  uint32_t kind = 0;
  /** As /proc/PID/fd shows it. */
  std::string link;
};
using FdTable = std::map<int, std::shared_ptr<OpenFile>>;

using ByteList = std::vector<uint8_t>;

struct TracedMemory {
  uint32_t at = 0;
  bool after = false;
  ByteList bytes;
};

/** A call that has ended, or something else that happened to an fd ("inherit", "arrive", "end"). Times in seconds since the start. */
struct TracedCall {
  const char* call = "";
  pid_t pid = 0;
  pid_t tid = 0;
  double at = 0;
  double seconds = 0;
  int fd = -1;
  uint32_t file = 0;
  uint32_t kind = 0;
  uint64_t args[6] = {};
  /** As the kernel returns it: -errno. */
  int64_t result = 0;
  /** False: the thread died in it. */
  bool answered = true;
  std::string path;
  bool hasArgument = false;
  ByteList before;
  ByteList after;
  std::vector<TracedMemory> memory;
  /** What was read or written, at most kPayload bytes of it. */
  ByteList payload;
  int madeFd = -1;
  uint32_t madeFile = 0;
  uint32_t madeKind = 0;

  size_t Bytes() const { return sizeof *this + before.size() + after.size() + payload.size() + path.size(); }
};

/** Enough for what devices give at once (1 MiB), with room. */
constexpr size_t kPayload = 16 << 20;

/** Between the tracer's thread and the JS thread. */
class TraceQueue {
 public:
  /** Tracer's thread: waits while JS is far behind, so that memory stays bounded. */
  void Put(TracedCall call);
  void Started(int err, const char* what, pid_t pid);
  void Ended(int status);
  /** Any other thread: waits until there is something, or the end. */
  std::vector<TracedCall> Take(bool* ended, int* status);
  /** JS thread: until COMMAND runs, or has failed to. 0, or errno of `what`. */
  int WaitStarted(std::string* what, pid_t* pid);

 private:
  std::mutex lock_;
  std::condition_variable changed_;
  std::vector<TracedCall> calls_;
  size_t bytes_ = 0;
  bool started_ = false;
  bool ended_ = false;
  int err_ = 0;
  const char* what_ = "";
  pid_t pid_ = 0;
  int status_ = 0;
};

/** Starts COMMAND and follows it to its end: the whole life of the tracer's thread. */
void RunTracer(const std::vector<std::string>& command, const TraceRules& rules, TraceQueue* queue);

/** In the child, before exec: 0, or errno. Only async-signal-safe calls. */
int InstallTraceFilter(uint32_t ioctlType);

}  // namespace ferry
