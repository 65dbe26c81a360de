// Making the error objects of errors.h and reading arguments. JS thread only.
#include "errors.h"

#include <cmath>

namespace ferry {
namespace {

constexpr double kMaxSafe = 9007199254740991.0;  // Number.MAX_SAFE_INTEGER

Napi::Value Raise(Napi::Env env, const Napi::Value& error) {
  if (!env.IsExceptionPending()) napi_throw(env, error);
  return env.Undefined();
}

}  // namespace

Napi::Value SysErrorValue(Napi::Env env, const std::string& syscall, int err) {
  AddonData* data = AddonData::Of(env);
  if (data->sysError.IsEmpty()) return Napi::Error::New(env, syscall + ": errno " + std::to_string(err)).Value();
  return data->sysError.New({Napi::String::New(env, syscall), Napi::Number::New(env, err)});
}

Napi::Value StreamErrorValue(Napi::Env env, const std::string& message) {
  AddonData* data = AddonData::Of(env);
  if (data->streamError.IsEmpty()) return Napi::Error::New(env, message).Value();
  return data->streamError.New({Napi::String::New(env, message)});
}

Napi::Value ThrowSys(Napi::Env env, const std::string& syscall, int err) {
  return Raise(env, SysErrorValue(env, syscall, err));
}
Napi::Value ThrowType(Napi::Env env, const std::string& message) {
  return Raise(env, Napi::TypeError::New(env, message).Value());
}
Napi::Value ThrowRange(Napi::Env env, const std::string& message) {
  return Raise(env, Napi::RangeError::New(env, message).Value());
}

Deferred Deferred::New(Napi::Env env) {
  Deferred made(env);
  if (napi_create_promise(env, &made.deferred_, &made.promise_) != napi_ok) made.promise_ = env.Undefined();
  return made;
}
void Deferred::Resolve(napi_value value) const {
  if (deferred_ != nullptr) napi_resolve_deferred(env_, deferred_, value);
}
void Deferred::Reject(napi_value reason) const {
  if (deferred_ != nullptr) napi_reject_deferred(env_, deferred_, reason);
}

std::optional<uint64_t> ReadSize(const Napi::Value& value, const char* what) {
  Napi::Env env = value.Env();
  if (value.IsBigInt()) {
    bool lossless = false;
    uint64_t wide = value.As<Napi::BigInt>().Uint64Value(&lossless);
    if (lossless) return wide;
  } else if (value.IsNumber()) {
    double number = value.As<Napi::Number>().DoubleValue();
    if (number >= 0 && number <= kMaxSafe && std::floor(number) == number) return static_cast<uint64_t>(number);
  } else {
    ThrowType(env, std::string(what) + " must be a number");
    return std::nullopt;
  }
  ThrowRange(env, std::string(what) + " must be a whole number from 0 to 2^53-1");
  return std::nullopt;
}

std::optional<int> ReadFd(const Napi::Value& value, const char* what) {
  std::optional<uint64_t> number = ReadSize(value, what);
  if (!number) return std::nullopt;
  if (*number > 0x7fffffff) {
    ThrowRange(value.Env(), std::string(what) + " is not a file descriptor");
    return std::nullopt;
  }
  return static_cast<int>(*number);
}

std::optional<Bytes> ReadBytes(const Napi::Value& value, const char* what) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array) {
    ThrowType(value.Env(), std::string(what) + " must be a Uint8Array");
    return std::nullopt;
  }
  Napi::Uint8Array array = value.As<Napi::Uint8Array>();
  return Bytes{array.Data(), array.ByteLength()};
}

Napi::Value PropertyOf(const Napi::Value& object, const char* name) {
  if (!object.IsObject()) return object.Env().Undefined();
  Napi::Value value = object.As<Napi::Object>().Get(name);
  return value.IsEmpty() ? object.Env().Undefined() : value;
}

Napi::Value CallFromLoop(Napi::Env env, const Napi::Function& callback, std::initializer_list<napi_value> args,
                         napi_value self) {
  napi_value result = nullptr;
  if (self == nullptr) self = env.Global();
  napi_make_callback(env, nullptr, self, callback, args.size(), args.begin(), &result);
  bool pending = false;
  napi_is_exception_pending(env, &pending);
  if (pending) {
    napi_value error = nullptr;
    napi_get_and_clear_last_exception(env, &error);
    napi_fatal_exception(env, error);
    return env.Undefined();
  }
  return result == nullptr ? env.Undefined() : Napi::Value(env, result);
}

}  // namespace ferry
