// Implementation of pump_operations.h: arguments are checked here, once, and the data fd is duplicated, so that whatever JS closes while the
// operation is under way is its own affair.
#include "pump_operations.h"

#include "data_pump.h"
#include "errors.h"

namespace ferry {
namespace {

/** Null with an exception pending. */
std::shared_ptr<DataFd> ReadDataFd(const Napi::Value& value) {
  std::optional<int> fd = ReadFd(value, "fd");
  if (!fd) return nullptr;
  auto data = std::make_shared<DataFd>(*fd);
  if (data->error() != 0) return ThrowSys(value.Env(), "dup(data fd)", data->error()), nullptr;
  return data;
}

std::optional<uint64_t> ReadTag(const Napi::Value& value) {
  if (!value.IsBigInt()) return ThrowType(value.Env(), "tag must be a bigint"), std::nullopt;
  bool lossless = false;
  return value.As<Napi::BigInt>().Uint64Value(&lossless);
}

/** Undefined: nothing follows. */
std::optional<Following> ReadFollowing(const Napi::Value& value) {
  if (value.IsUndefined()) return Following{};
  std::optional<uint64_t> tag = ReadTag(PropertyOf(value, "tag"));
  if (!tag) return std::nullopt;
  std::optional<uint64_t> budget = ReadSize(PropertyOf(value, "budget"), "following.budget");
  if (!budget) return std::nullopt;
  return Following{*tag, *budget};
}

}  // namespace

std::shared_ptr<Operation> PumpFromOperation(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  std::optional<uint64_t> budget = ReadSize(info[1], "budget");
  if (!budget) return nullptr;
  std::optional<uint64_t> tag = ReadTag(info[2]);
  if (!tag) return nullptr;
  std::shared_ptr<DataFd> data = ReadDataFd(info[0]);
  if (!data) return nullptr;
  auto pumped = std::make_shared<Pumped>();
  auto operation = std::make_shared<Operation>(env, true);
  operation->work = [data, most = *budget, tag = *tag, pumped](Session& session) { return PumpFrom(session.tx, *data, most, tag, *pumped); };
  operation->result = [pumped](Napi::Env env) -> Napi::Value {
    Napi::Object object = Napi::Object::New(env);
    object.Set("bytes", static_cast<double>(pumped->bytes));
    object.Set("end", pumped->end == PumpEnd::more ? "more" : pumped->end == PumpEnd::drained ? "drained" : "end");
    return object;
  };
  return operation;
}

std::shared_ptr<Operation> PumpToOperation(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  std::optional<uint64_t> length = ReadSize(info[1], "length");
  if (!length) return nullptr;
  std::optional<Following> following = ReadFollowing(info[2]);
  if (!following) return nullptr;
  std::shared_ptr<DataFd> data = ReadDataFd(info[0]);
  if (!data) return nullptr;
  auto pumped = std::make_shared<uint64_t>(0);
  auto operation = std::make_shared<Operation>(env, false);
  operation->work = [data, length = *length, following = *following, pumped](Session& session) {
    return PumpRunTo(session.rx, *data, length, following, *pumped);
  };
  operation->result = [pumped](Napi::Env env) -> Napi::Value { return Napi::Number::New(env, static_cast<double>(*pumped)); };
  return operation;
}

}  // namespace ferry
