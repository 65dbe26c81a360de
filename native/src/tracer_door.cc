// traceProgram of native/addon.ts: reads the tables, starts the tracer's thread (tracer.h), and gives its calls to JS in batches, each
// next() being one job on a thread that waits for them. JS thread.
#include <pthread.h>
#include <sys/wait.h>

#include <cstring>

#include "addon.h"
#include "async_task.h"
#include "errors.h"
#include "tracer.h"

namespace ferry {
namespace {

struct Tracing {
  std::vector<std::string> command;
  TraceRules rules;
  TraceQueue queue;
  pid_t pid = 0;
};

/** Rows of `columns` words; false with an exception pending. */
template <typename Row>
bool ReadRows(const Napi::Value& value, const char* what, std::vector<Row>* rows) {
  Napi::Env env = value.Env();
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_uint32_array) {
    return ThrowType(env, std::string(what) + " must be a Uint32Array"), false;
  }
  Napi::Uint32Array words = value.As<Napi::Uint32Array>();
  if (words.ByteLength() % sizeof(Row) != 0) return ThrowRange(env, std::string(what) + " must be whole rows"), false;
  rows->resize(words.ByteLength() / sizeof(Row));
  if (!rows->empty()) memcpy(rows->data(), words.Data(), words.ByteLength());
  return true;
}

bool ReadRules(const Napi::Value& value, TraceRules* rules) {
  Napi::Env env = value.Env();
  Napi::Value paths = PropertyOf(value, "paths");
  if (!paths.IsArray()) return ThrowType(env, "rules.paths must be an array"), false;
  Napi::Array list = paths.As<Napi::Array>();
  for (uint32_t i = 0; i < list.Length(); i++) {
    Napi::Value prefix = PropertyOf(list.Get(i), "prefix");
    if (!prefix.IsString()) return ThrowType(env, "rules.paths[].prefix must be a string"), false;
    std::optional<uint64_t> kind = ReadSize(PropertyOf(list.Get(i), "kind"), "rules.paths[].kind");
    if (!kind) return false;
    Napi::Value exact = PropertyOf(list.Get(i), "exact");
    rules->paths.push_back({prefix.As<Napi::String>().Utf8Value(), exact.ToBoolean().Value(), static_cast<uint32_t>(*kind)});
  }
  std::optional<uint64_t> type = ReadSize(PropertyOf(value, "ioctlType"), "rules.ioctlType");
  if (!type) return false;
  rules->ioctlType = *type & 0xff;
  return ReadRows(PropertyOf(value, "pointers"), "rules.pointers", &rules->pointers) &&
         ReadRows(PropertyOf(value, "makers"), "rules.makers", &rules->makers) &&
         ReadRows(PropertyOf(value, "sizes"), "rules.sizes", &rules->sizes);
}

Napi::Value BytesValue(Napi::Env env, const ByteList& bytes) {
  return Napi::Buffer<uint8_t>::Copy(env, bytes.data(), bytes.size());
}

Napi::Object CallValue(Napi::Env env, const TracedCall& call) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("call", call.call);
  object.Set("pid", Napi::Number::New(env, call.pid));
  object.Set("tid", Napi::Number::New(env, call.tid));
  object.Set("at", Napi::Number::New(env, call.at));
  object.Set("seconds", Napi::Number::New(env, call.seconds));
  object.Set("fd", Napi::Number::New(env, call.fd));
  object.Set("file", Napi::Number::New(env, call.file));
  object.Set("kind", Napi::Number::New(env, call.kind));
  object.Set("result", Napi::Number::New(env, call.result));
  object.Set("answered", Napi::Boolean::New(env, call.answered));
  object.Set("path", call.path);
  Napi::Array args = Napi::Array::New(env, 6);
  for (uint32_t i = 0; i < 6; i++) args.Set(i, Napi::BigInt::New(env, call.args[i]));
  object.Set("args", args);
  object.Set("before", call.hasArgument ? BytesValue(env, call.before) : env.Null());
  object.Set("after", call.after.empty() ? env.Null() : BytesValue(env, call.after));
  object.Set("payload", BytesValue(env, call.payload));
  Napi::Array memory = Napi::Array::New(env, call.memory.size());
  for (uint32_t i = 0; i < call.memory.size(); i++) {
    Napi::Object each = Napi::Object::New(env);
    each.Set("at", Napi::Number::New(env, call.memory[i].at));
    each.Set("when", call.memory[i].after ? "after" : "before");
    each.Set("bytes", BytesValue(env, call.memory[i].bytes));
    memory.Set(i, each);
  }
  object.Set("memory", memory);
  if (call.madeFd < 0) {
    object.Set("made", env.Null());
  } else {
    Napi::Object made = Napi::Object::New(env);
    made.Set("fd", Napi::Number::New(env, call.madeFd));
    made.Set("file", Napi::Number::New(env, call.madeFile));
    made.Set("kind", Napi::Number::New(env, call.madeKind));
    object.Set("made", made);
  }
  return object;
}

struct Batch {
  std::vector<TracedCall> calls;
  bool ended = false;
  int status = 0;
};

Napi::Value BatchValue(Napi::Env env, const Batch& batch) {
  Napi::Object result = Napi::Object::New(env);
  Napi::Array calls = Napi::Array::New(env, batch.calls.size());
  for (uint32_t i = 0; i < batch.calls.size(); i++) {
    Napi::HandleScope scope(env);
    calls.Set(i, CallValue(env, batch.calls[i]));
  }
  result.Set("calls", calls);
  if (!batch.ended) {
    result.Set("ended", env.Null());
    return result;
  }
  Napi::Object ended = Napi::Object::New(env);
  bool killed = WIFSIGNALED(batch.status);
  ended.Set("code", killed ? env.Null() : Napi::Number::New(env, WEXITSTATUS(batch.status)));
  ended.Set("signal", killed ? Napi::Number::New(env, WTERMSIG(batch.status)) : env.Null());
  result.Set("ended", ended);
  return result;
}

Napi::Value Next(Napi::Env env, const std::shared_ptr<Tracing>& tracing) {
  auto batch = std::make_shared<Batch>();
  return RunOnThread(env, "trace",
                     {[tracing, batch] { batch->calls = tracing->queue.Take(&batch->ended, &batch->status); },
                      [batch](Napi::Env env, const Deferred& deferred) { deferred.Resolve(BatchValue(env, *batch)); }});
}

int StartThread(const std::shared_ptr<Tracing>& tracing) {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  auto* handed = new std::shared_ptr<Tracing>(tracing);
  pthread_t thread;
  int failed = pthread_create(
      &thread, &attributes,
      [](void* opaque) -> void* {
        std::unique_ptr<std::shared_ptr<Tracing>> handed(static_cast<std::shared_ptr<Tracing>*>(opaque));
        pthread_setname_np(pthread_self(), "ferry-tracer");
        RunTracer((*handed)->command, (*handed)->rules, &(*handed)->queue);
        return nullptr;
      },
      handed);
  pthread_attr_destroy(&attributes);
  if (failed != 0) delete handed;
  return failed;
}

Napi::Value TraceProgram(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!info[0].IsArray() || info[0].As<Napi::Array>().Length() == 0) return ThrowType(env, "command must be an array of words");
  auto tracing = std::make_shared<Tracing>();
  Napi::Array command = info[0].As<Napi::Array>();
  for (uint32_t i = 0; i < command.Length(); i++) {
    Napi::Value word = command.Get(i);
    if (!word.IsString()) return ThrowType(env, "command must be an array of words");
    tracing->command.push_back(word.As<Napi::String>().Utf8Value());
  }
  if (!ReadRules(info[1], &tracing->rules)) return env.Undefined();
  int failed = StartThread(tracing);
  if (failed != 0) return ThrowSys(env, "pthread_create", failed);
  std::string what;
  int err = tracing->queue.WaitStarted(&what, &tracing->pid);
  if (err != 0) return ThrowSys(env, what, err);
  Napi::Object tracer = Napi::Object::New(env);
  tracer.Set("pid", Napi::Number::New(env, tracing->pid));
  tracer.Set("next", Napi::Function::New(env, [tracing](const Napi::CallbackInfo& info) { return Next(info.Env(), tracing); }, "next"));
  return tracer;
}

}  // namespace

void InitTracer(Napi::Env env, Napi::Object exports) {
  exports.Set("traceProgram", Napi::Function::New(env, TraceProgram, "traceProgram"));
}

}  // namespace ferry
