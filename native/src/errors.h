// How native code says that something failed: SysError and StreamError of native/errno.ts (handed in at load), TypeError and
// RangeError for arguments refused at the door; and the readers of arguments that do the refusing. JS thread only.
// The addon is built without C++ exceptions: after a Throw... return at once, and check env.IsExceptionPending() after calls into JS.
#pragma once
#include <napi.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

namespace ferry {

class TaskPort;

/** What one Node environment keeps: classes that came from JS, constructors of the wrapped classes. */
struct AddonData {
  Napi::FunctionReference sysError;
  Napi::FunctionReference streamError;
  Napi::FunctionReference guestRam;
  Napi::FunctionReference hostMapping;
  Napi::FunctionReference pageBitmap;
  Napi::FunctionReference vcpuLoop;
  Napi::FunctionReference channel;
  std::shared_ptr<TaskPort> tasks;
  static AddonData* Of(Napi::Env env) { return env.GetInstanceData<AddonData>(); }
};

/** new SysError(syscall, errno), for a reject. */
Napi::Value SysErrorValue(Napi::Env env, const std::string& syscall, int err);
/** new StreamError(message), for a reject. */
Napi::Value StreamErrorValue(Napi::Env env, const std::string& message);

/** Each throws and returns undefined, so that `return ThrowSys(...)` reads well. */
Napi::Value ThrowSys(Napi::Env env, const std::string& syscall, int err);
Napi::Value ThrowType(Napi::Env env, const std::string& message);
Napi::Value ThrowRange(Napi::Env env, const std::string& message);

/**
 * A promise and what settles it. Napi::Promise::Deferred would do, but for a Worker that is being terminated: JS still runs a little way while
 * no promise can be made, and that class then hands out what was never written. Here JS gets undefined, and nobody is told.
 */
class Deferred {
 public:
  static Deferred New(Napi::Env env);
  Napi::Value Promise() const { return Napi::Value(env_, promise_); }
  void Resolve(napi_value value) const;
  void Reject(napi_value reason) const;

 private:
  explicit Deferred(napi_env env) : env_(env) {}
  napi_env env_;
  napi_deferred deferred_ = nullptr;
  napi_value promise_ = nullptr;
};

/** Readers of arguments: nullopt with a TypeError/RangeError pending. `what` names the argument. */
std::optional<uint64_t> ReadSize(const Napi::Value& value, const char* what);
std::optional<int> ReadFd(const Napi::Value& value, const char* what);

struct Bytes {
  uint8_t* data;
  size_t length;
};
std::optional<Bytes> ReadBytes(const Napi::Value& value, const char* what);

/** A property of an object argument, undefined where it is not one. */
Napi::Value PropertyOf(const Napi::Value& object, const char* name);

/**
 * Calls into JS from the event loop: an exception becomes an uncaughtException, as for any Node callback, and microtasks run when it
 * was the outermost call. `self` is the callback's this; null: the global object.
 */
Napi::Value CallFromLoop(Napi::Env env, const Napi::Function& callback, std::initializer_list<napi_value> args,
                         napi_value self = nullptr);

}  // namespace ferry
