// Eventfds, fds and their watching on the JS thread's event loop (uv_poll: 3 us from write to callback where a pool thread takes 20;
// node-performance.md section 2). JS thread only.
#include <fcntl.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <uv.h>

#include <cerrno>

#include "addon.h"
#include "errors.h"

namespace ferry {
namespace {

struct Watch {
  uv_poll_t poll;
  Napi::Env env = nullptr;
  Napi::FunctionReference callback;
  int fd = -1;
  /** True: the callback gets the eventfd's counter, which has been read for it. */
  bool counted = false;
  /** Dies with the JS object's finalizer and the uv handle, whichever is later. */
  bool handleClosed = false;
  bool released = false;
};

void CloseWatch(Watch* watch) {
  if (uv_is_closing(reinterpret_cast<uv_handle_t*>(&watch->poll))) return;
  uv_close(reinterpret_cast<uv_handle_t*>(&watch->poll), [](uv_handle_t* handle) {
    auto* watch = static_cast<Watch*>(handle->data);
    watch->callback.Reset();
    watch->handleClosed = true;
    if (watch->released) delete watch;
  });
}

void OnReadable(uv_poll_t* poll, int status, int) {
  auto* watch = static_cast<Watch*>(poll->data);
  Napi::HandleScope scope(watch->env);
  uint64_t count = 0;
  if (watch->counted && read(watch->fd, &count, sizeof count) != sizeof count) {
    // Somebody else took the count. A fd that is gone would be reported for ever: the watch ends.
    if (errno != EAGAIN && errno != EINTR) CloseWatch(watch);
    return;
  }
  // uv_poll ends by itself on an error (EBADF); for a plain fd the callback's own read will meet the error.
  if (status < 0) CloseWatch(watch);
  Napi::Function callback = watch->callback.Value();
  if (watch->counted) {
    CallFromLoop(watch->env, callback, {Napi::BigInt::New(watch->env, count)});
  } else {
    CallFromLoop(watch->env, callback, {});
  }
}

Napi::Value StartWatch(const Napi::CallbackInfo& info, bool counted) {
  Napi::Env env = info.Env();
  std::optional<int> fd = ReadFd(info[0], "fd");
  if (!fd) return env.Undefined();
  if (!info[1].IsFunction()) return ThrowType(env, "a callback is needed");
  uv_loop_t* loop = nullptr;
  napi_get_uv_event_loop(env, &loop);
  auto* watch = new Watch;
  int failed = uv_poll_init(loop, &watch->poll, *fd);
  if (failed != 0) {
    delete watch;
    return ThrowSys(env, "uv_poll_init", -failed);
  }
  watch->poll.data = watch;
  watch->env = env;
  watch->callback = Napi::Persistent(info[1].As<Napi::Function>());
  watch->fd = *fd;
  watch->counted = counted;
  uv_poll_start(&watch->poll, UV_READABLE, OnReadable);
  Napi::Object handle = Napi::Object::New(env);
  // The External only ties the struct's life to the function that names it.
  auto held = Napi::External<Watch>::New(env, watch, [](Napi::Env, Watch* watch) {
    watch->released = true;
    if (watch->handleClosed) delete watch;
  });
  handle.Set("close", Napi::Function::New(
                          env,
                          [](const Napi::CallbackInfo& info) {
                            auto* watch = static_cast<Watch*>(info.Data());
                            if (!watch->handleClosed) CloseWatch(watch);
                          },
                          "close", watch));
  handle.DefineProperty(Napi::PropertyDescriptor::Value("held", held, napi_default));
  return handle;
}

Napi::Value WatchEvent(const Napi::CallbackInfo& info) { return StartWatch(info, true); }
Napi::Value WatchFd(const Napi::CallbackInfo& info) { return StartWatch(info, false); }

Napi::Value EventFd(const Napi::CallbackInfo& info) {
  int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (fd < 0) return ThrowSys(info.Env(), "eventfd", errno);
  return Napi::Number::New(info.Env(), fd);
}

Napi::Value EventSignal(const Napi::CallbackInfo& info) {
  std::optional<int> fd = ReadFd(info[0], "fd");
  if (!fd) return info.Env().Undefined();
  uint64_t one = 1;
  if (write(*fd, &one, sizeof one) != sizeof one) return ThrowSys(info.Env(), "write(eventfd)", errno);
  return info.Env().Undefined();
}

Napi::Value EventTake(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  std::optional<int> fd = ReadFd(info[0], "fd");
  if (!fd) return env.Undefined();
  uint64_t count = 0;
  if (read(*fd, &count, sizeof count) != sizeof count) {
    if (errno != EAGAIN) return ThrowSys(env, "read(eventfd)", errno);
    count = 0;
  }
  return Napi::BigInt::New(env, count);
}

Napi::Value CloseFd(const Napi::CallbackInfo& info) {
  std::optional<int> fd = ReadFd(info[0], "fd");
  if (fd && close(*fd) != 0) return ThrowSys(info.Env(), "close", errno);
  return info.Env().Undefined();
}

Napi::Value DupFd(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  std::optional<int> fd = ReadFd(info[0], "fd");
  if (!fd) return env.Undefined();
  int copy = fcntl(*fd, F_DUPFD_CLOEXEC, 3);
  if (copy < 0) return ThrowSys(env, "fcntl(F_DUPFD_CLOEXEC)", errno);
  return Napi::Number::New(env, copy);
}

Napi::Value CpuCount(const Napi::CallbackInfo& info) {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  // A machine with more than 1024 CPUs refuses the small set: then there are enough.
  int count = sched_getaffinity(0, sizeof allowed, &allowed) == 0 ? CPU_COUNT(&allowed) : CPU_SETSIZE;
  return Napi::Number::New(info.Env(), count);
}

}  // namespace

void InitFdWatch(Napi::Env env, Napi::Object exports) {
  exports.Set("eventFd", Napi::Function::New(env, EventFd, "eventFd"));
  exports.Set("eventSignal", Napi::Function::New(env, EventSignal, "eventSignal"));
  exports.Set("eventTake", Napi::Function::New(env, EventTake, "eventTake"));
  exports.Set("closeFd", Napi::Function::New(env, CloseFd, "closeFd"));
  exports.Set("dupFd", Napi::Function::New(env, DupFd, "dupFd"));
  exports.Set("watchEvent", Napi::Function::New(env, WatchEvent, "watchEvent"));
  exports.Set("watchFd", Napi::Function::New(env, WatchFd, "watchFd"));
  exports.Set("cpuCount", Napi::Function::New(env, CpuCount, "cpuCount"));
}

}  // namespace ferry
