// Channel of native/addon.ts: the JS face of a Session (channel_lane.h). Checks arguments, queues operations, settles their promises.
// JS thread only. What can be done without waiting - a small write, a read of what is buffered - is done at once, without a thread:
// a migration's state is hundreds of small fields, and a hop to a thread and back costs more than the call.
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <list>

#include "addon.h"
#include "channel_lane.h"
#include "chunk_operations.h"
#include "errors.h"
#include "pump_operations.h"

namespace ferry {
namespace {

constexpr uint64_t kMaxRead = 16 * 1024 * 1024;
constexpr size_t kSmallWrite = 64 * 1024;

Napi::Value ErrorOf(Napi::Env env, const Failure& failure) {
  return failure.kind == Failure::Kind::sys ? SysErrorValue(env, failure.text, failure.err) : StreamErrorValue(env, failure.text);
}

Napi::Object CountsObject(Napi::Env env, const PageCounts& counts) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("pages", static_cast<double>(counts.pages));
  object.Set("zeroPages", static_cast<double>(counts.zeroPages));
  object.Set("bytes", static_cast<double>(counts.bytes));
  return object;
}

/** The block name of an argument; nullopt with an exception pending when it cannot be one. */
std::optional<std::string> ReadBlock(const Napi::Value& value) {
  if (!value.IsString()) {
    ThrowType(value.Env(), "block must be a string");
    return std::nullopt;
  }
  std::string block = value.As<Napi::String>().Utf8Value();
  if (block.empty() || block.size() > kMaxBlockName) {
    ThrowRange(value.Env(), "block must have 1 to 255 bytes");
    return std::nullopt;
  }
  return block;
}

class Channel : public Napi::ObjectWrap<Channel> {
 public:
  explicit Channel(const Napi::CallbackInfo& info);
  ~Channel() override;
  static Napi::Function Define(Napi::Env env);

 private:
  Napi::Value Write(const Napi::CallbackInfo& info);
  Napi::Value Read(const Napi::CallbackInfo& info);
  Napi::Value SendPages(const Napi::CallbackInfo& info);
  Napi::Value ReceivePages(const Napi::CallbackInfo& info);
  Napi::Value PumpFrom(const Napi::CallbackInfo& info) { return Submit(info.Env(), PumpFromOperation(info)); }
  Napi::Value PumpTo(const Napi::CallbackInfo& info) { return Submit(info.Env(), PumpToOperation(info)); }
  Napi::Value PumpPiecesFrom(const Napi::CallbackInfo& info) { return Submit(info.Env(), PiecesFromOperation(info)); }
  Napi::Value PumpPiecesTo(const Napi::CallbackInfo& info) { return Submit(info.Env(), PiecesToOperation(info)); }
  Napi::Value End(const Napi::CallbackInfo& info);
  Napi::Value Abort(const Napi::CallbackInfo& info);
  Napi::Value Fd(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), left_ ? -1 : session_->connection.fd); }
  Napi::Value TxCrc(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), session_->tx.crc.load()); }
  Napi::Value RxCrc(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), session_->rx.crc.load()); }
  Napi::Value TxBytes(const Napi::CallbackInfo& info) { return Count(info.Env(), session_->tx); }
  Napi::Value RxBytes(const Napi::CallbackInfo& info) { return Count(info.Env(), session_->rx); }
  static Napi::Value Count(Napi::Env env, const Direction& direction) {
    return Napi::Number::New(env, static_cast<double>(direction.bytes.load()));
  }

  /** A null operation is one whose arguments were refused: undefined, with the exception pending. */
  Napi::Value Submit(Napi::Env env, std::shared_ptr<Operation> operation);
  Napi::Value Done(Napi::Env env, const Napi::Value& value);
  bool Idle(bool tx) const;
  void Deliver(Napi::Env env);
  void Settle(Napi::Env env, Operation& operation);
  void Leave();
  static void OnWake(napi_env env, napi_value callback, void* context, void* data);
  static void OnEnvironmentEnd(void* self) { static_cast<Channel*>(self)->Leave(); }

  /** The waker's context: it may still be called when this object has gone. */
  struct Face {
    std::shared_ptr<Session> session;
    Channel* channel;
  };
  napi_env env_;
  std::shared_ptr<Session> session_;
  Face* face_ = nullptr;
  /** In call order; each until its work has ended, settled or not. */
  std::list<std::shared_ptr<Operation>> pending_;
  bool left_ = false;
};

Channel::Channel(const Napi::CallbackInfo& info) : ObjectWrap(info), env_(info.Env()) {
  Napi::Env env = info.Env();
  std::optional<int> fd = ReadFd(info[0], "fd");
  // Also what a refused constructor leaves behind is destroyed like any other.
  session_ = std::make_shared<Session>(fd.value_or(-1));
  if (!fd) return;
  if (session_->connection.error() != 0) {
    ThrowSys(env, "channel", session_->connection.error());
    return;
  }
  face_ = new Face{session_, this};
  napi_threadsafe_function waker = nullptr;
  napi_status status = napi_create_threadsafe_function(
      env, nullptr, nullptr, Napi::String::New(env, "channel"), 0, 1, nullptr,
      [](napi_env, void*, void* context) {
        Face* face = static_cast<Face*>(context);
        face->session->Orphan();
        if (face->channel != nullptr) face->channel->face_ = nullptr;
        delete face;
      },
      face_, OnWake, &waker);
  if (status != napi_ok) {
    delete face_;
    face_ = nullptr;
    ThrowType(env, "channel: no threadsafe function can be had");
    return;
  }
  session_->SetWaker(waker);
  napi_unref_threadsafe_function(env, waker);
  napi_add_env_cleanup_hook(env, OnEnvironmentEnd, this);
}

Channel::~Channel() {
  napi_remove_env_cleanup_hook(env_, OnEnvironmentEnd, this);
  Leave();
  session_->txLane.Join();
  session_->rxLane.Join();
  if (face_ == nullptr) return;
  face_->channel = nullptr;
  napi_release_threadsafe_function(session_->waker(), napi_tsfn_release);
}

/** Stops everything without a word to JS. Idempotent. */
void Channel::Leave() {
  if (left_) return;
  left_ = true;
  session_->connection.Abort();
  session_->txLane.Stop();
  session_->rxLane.Stop();
  session_->connection.Leave();
}

void Channel::OnWake(napi_env env, napi_value, void* context, void*) {
  Face* face = static_cast<Face*>(context);
  if (env == nullptr || face->channel == nullptr) return;
  Napi::HandleScope scope(env);
  face->channel->Deliver(env);
}

void Channel::Settle(Napi::Env env, Operation& operation) {
  if (operation.settled) return;
  operation.settled = true;
  if (!operation.failure.ok()) {
    operation.deferred.Reject(ErrorOf(env, operation.failure));
  } else {
    operation.deferred.Resolve(operation.result ? operation.result(env) : env.Undefined());
  }
}

void Channel::Deliver(Napi::Env env) {
  std::vector<std::shared_ptr<Operation>> done = session_->TakeDone();
  for (const std::shared_ptr<Operation>& operation : done) {
    Settle(env, *operation);
    pending_.remove(operation);
  }
  if (!done.empty() && pending_.empty()) {
    napi_unref_threadsafe_function(env, session_->waker());
    Unref();
  }
}

bool Channel::Idle(bool tx) const {
  return std::none_of(pending_.begin(), pending_.end(), [tx](const auto& operation) { return operation->tx == tx; });
}

/** A promise that is already resolved. */
Napi::Value Channel::Done(Napi::Env env, const Napi::Value& value) {
  auto deferred = Deferred::New(env);
  deferred.Resolve(value);
  return deferred.Promise();
}

Napi::Value Channel::Submit(Napi::Env env, std::shared_ptr<Operation> operation) {
  if (!operation) return env.Undefined();
  Napi::Value promise = operation->deferred.Promise();
  int err = ECANCELED;
  if (!left_) {
    Lane& lane = operation->tx ? session_->txLane : session_->rxLane;
    if (pending_.empty()) {
      // The loop and this object live while something is under way.
      napi_ref_threadsafe_function(env, session_->waker());
      Ref();
    }
    pending_.push_back(operation);
    err = lane.Submit(session_, operation);
    if (err == 0) return promise;
    pending_.pop_back();
    if (pending_.empty()) {
      napi_unref_threadsafe_function(env, session_->waker());
      Unref();
    }
  }
  operation->deferred.Reject(SysErrorValue(env, left_ ? "channel" : "pthread_create", err));
  return promise;
}

Napi::Value Channel::Write(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  std::optional<Bytes> bytes = ReadBytes(info[0], "bytes");
  if (!bytes) return env.Undefined();
  size_t sent = 0;
  if (!left_ && bytes->length <= kSmallWrite && Idle(true) && session_->txLane.broken().ok()) {
    sent = session_->tx.WriteNow(bytes->data, bytes->length);
    if (sent == bytes->length) return Done(env, env.Undefined());
  }
  // A copy: the caller may reuse or transfer its buffer as it likes.
  auto copy = std::make_shared<std::vector<uint8_t>>(bytes->data + sent, bytes->data + bytes->length);
  auto operation = std::make_shared<Operation>(env, true);
  operation->work = [copy](Session& session) { return session.tx.Write(copy->data(), copy->size(), "sending"); };
  return Submit(env, operation);
}

Napi::Value Channel::Read(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  std::optional<uint64_t> length = ReadSize(info[0], "length");
  if (!length) return env.Undefined();
  if (*length > kMaxRead) return ThrowRange(env, "a read is of 16 MiB at most");
  Napi::ArrayBuffer buffer = Napi::ArrayBuffer::New(env, *length);
  if (buffer.IsEmpty() || env.IsExceptionPending()) return env.Undefined();
  uint8_t* into = static_cast<uint8_t*>(buffer.Data());
  if (!left_ && Idle(false) && session_->rxLane.broken().ok() && session_->rx.ReadNow(into, *length)) {
    return Done(env, Napi::Uint8Array::New(env, *length, buffer, 0));
  }
  auto kept = std::make_shared<Napi::Reference<Napi::ArrayBuffer>>(Napi::Persistent(buffer));
  auto operation = std::make_shared<Operation>(env, false);
  size_t wanted = *length;
  operation->work = [into, wanted](Session& session) {
    std::string doing = "reading " + std::to_string(wanted) + " bytes";
    return session.rx.Read(into, wanted, doing.c_str());
  };
  operation->result = [kept, wanted](Napi::Env env) -> Napi::Value { return Napi::Uint8Array::New(env, wanted, kept->Value(), 0); };
  return Submit(env, operation);
}

Napi::Value Channel::SendPages(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  SendPagesRequest request;
  if (!(request.ram = RamOf(info[0])) || !(request.bitmap = BitmapOf(info[1]))) return env.Undefined();
  std::optional<std::string> block = ReadBlock(info[2]);
  if (!block) return env.Undefined();
  std::optional<uint64_t> from = ReadSize(PropertyOf(info[3], "from"), "from");
  if (!from) return env.Undefined();
  std::optional<uint64_t> maxPages = ReadSize(PropertyOf(info[3], "maxPages"), "maxPages");
  if (!maxPages) return env.Undefined();
  std::optional<uint64_t> rate = ReadSize(PropertyOf(info[3], "bytesPerSecond"), "bytesPerSecond");
  if (!rate) return env.Undefined();
  if (request.bitmap->pages > request.ram->size / kPageSize) return ThrowRange(env, "the bitmap has more pages than guest RAM");
  if (*from > request.bitmap->pages) return ThrowRange(env, "from lies beyond the bitmap");
  request.block = *block;
  request.from = *from;
  request.maxPages = *maxPages;
  request.bytesPerSecond = *rate;
  struct Result {
    PageCounts counts;
    uint64_t next = 0;
  };
  auto result = std::make_shared<Result>();
  auto operation = std::make_shared<Operation>(env, true);
  operation->work = [request, result](Session& session) {
    PageSender sender(session.tx, request);
    Failure failure = sender.Run();
    *result = {sender.counts(), sender.next()};
    return failure;
  };
  operation->result = [result](Napi::Env env) -> Napi::Value {
    Napi::Object object = CountsObject(env, result->counts);
    object.Set("next", static_cast<double>(result->next));
    return object;
  };
  return Submit(env, operation);
}

Napi::Value Channel::ReceivePages(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  ReceivePagesRequest request;
  if (!(request.ram = RamOf(info[0]))) return env.Undefined();
  std::optional<std::string> block = ReadBlock(info[1]);
  if (!block) return env.Undefined();
  request.block = *block;
  if (info[2].IsBigInt()) {
    bool lossless = false;
    request.first = info[2].As<Napi::BigInt>().Uint64Value(&lossless);
  } else if (!info[2].IsNull()) {
    return ThrowType(env, "first must be a bigint or null");
  }
  if (request.ram->size < kPageSize) return ThrowRange(env, "guest RAM is smaller than a page");
  auto counts = std::make_shared<PageCounts>();
  auto operation = std::make_shared<Operation>(env, false);
  operation->work = [request, counts](Session& session) { return session.receiver.Run(session.rx, request, *counts); };
  operation->result = [counts](Napi::Env env) -> Napi::Value { return CountsObject(env, *counts); };
  return Submit(env, operation);
}

Napi::Value Channel::End(const Napi::CallbackInfo& info) {
  auto operation = std::make_shared<Operation>(info.Env(), true);
  operation->work = [](Session& session) {
    session.connection.HalfClose();
    return Failure{};
  };
  return Submit(info.Env(), operation);
}

Napi::Value Channel::Abort(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (left_) return env.Undefined();
  Leave();
  // At once, not when the threads have come back: one of them may be in a driver's call for seconds.
  for (const std::shared_ptr<Operation>& operation : pending_) {
    if (operation->settled) continue;
    operation->settled = true;
    operation->deferred.Reject(SysErrorValue(env, "channel", ECANCELED));
  }
  return env.Undefined();
}

Napi::Function Channel::Define(Napi::Env env) {
  return DefineClass(env, "Channel",
                     {
                         InstanceMethod<&Channel::Write>("write"),
                         InstanceMethod<&Channel::Read>("read"),
                         InstanceMethod<&Channel::SendPages>("sendPages"),
                         InstanceMethod<&Channel::ReceivePages>("receivePages"),
                         InstanceMethod<&Channel::PumpFrom>("pumpFrom"),
                         InstanceMethod<&Channel::PumpTo>("pumpTo"),
                         InstanceMethod<&Channel::PumpPiecesFrom>("pumpPiecesFrom"),
                         InstanceMethod<&Channel::PumpPiecesTo>("pumpPiecesTo"),
                         InstanceMethod<&Channel::End>("end"),
                         InstanceMethod<&Channel::Abort>("abort"),
                         InstanceAccessor<&Channel::Fd>("fd"),
                         InstanceAccessor<&Channel::TxCrc>("txCrc"),
                         InstanceAccessor<&Channel::RxCrc>("rxCrc"),
                         InstanceAccessor<&Channel::TxBytes>("txBytes"),
                         InstanceAccessor<&Channel::RxBytes>("rxBytes"),
                     });
}

}  // namespace

void InitChannel(Napi::Env env, Napi::Object exports) {
  AddonData::Of(env)->channel = Napi::Persistent(Channel::Define(env));
  exports.Set("channel", Napi::Function::New(
                             env,
                             [](const Napi::CallbackInfo& info) -> Napi::Value {
                               return AddonData::Of(info.Env())->channel.New({info[0]});
                             },
                             "channel"));
}

}  // namespace ferry
