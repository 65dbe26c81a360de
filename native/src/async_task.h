// One blocking job on a native thread of its own, and the promise it settles. Not the libuv thread pool: a VFIO state change may block
// for seconds, and four of those would stop every fs call of the process. `work` runs on the thread and must not touch JS;
// `settle` runs on the JS thread afterwards and resolves or rejects.
#pragma once
#include <napi.h>

#include <functional>
#include <memory>
#include <pthread.h>

#include "errors.h"

namespace ferry {

struct AsyncTask {
  std::function<void()> work;
  std::function<void(Napi::Env, const Napi::Promise::Deferred&)> settle;
};

/** Returns the promise, or throws SysError('pthread_create') when no thread can be had. Keeps the event loop alive until settled. */
inline Napi::Value RunOnThread(Napi::Env env, const char* name, AsyncTask task) {
  struct Job {
    AsyncTask task;
    Napi::Promise::Deferred deferred;
    Napi::ThreadSafeFunction done;
  };
  auto job = std::make_shared<Job>(Job{std::move(task), Napi::Promise::Deferred::New(env), {}});
  Napi::Function none = Napi::Function::New(env, [](const Napi::CallbackInfo&) {});
  job->done = Napi::ThreadSafeFunction::New(env, none, name, 0, 1);
  Napi::Promise promise = job->deferred.Promise();
  // Built without exceptions: std::thread would abort when no thread can be had, so pthreads directly.
  auto* handed = new std::shared_ptr<Job>(job);
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_t thread;
  int failed = pthread_create(
      &thread, &attributes,
      [](void* opaque) -> void* {
        std::unique_ptr<std::shared_ptr<Job>> handed(static_cast<std::shared_ptr<Job>*>(opaque));
        std::shared_ptr<Job> job = std::move(*handed);
        job->task.work();
        Napi::ThreadSafeFunction done = job->done;
        auto* last = new std::shared_ptr<Job>(std::move(job));
        // The last reference goes with the call: JS references in `settle` must die on the JS thread.
        napi_status status = done.BlockingCall(last, [](Napi::Env env, Napi::Function, std::shared_ptr<Job>* last) {
          std::unique_ptr<std::shared_ptr<Job>> owned(last);
          if (static_cast<napi_env>(env) == nullptr) return;  // torn down meanwhile
          Napi::HandleScope scope(env);
          (*owned)->task.settle(env, (*owned)->deferred);
        });
        // napi_closing: the environment is going away and so is the process; the job is left to it.
        if (status == napi_ok) done.Release();
        return nullptr;
      },
      handed);
  pthread_attr_destroy(&attributes);
  if (failed != 0) {
    delete handed;
    job->done.Release();
    return ThrowSys(env, "pthread_create", failed);
  }
  return promise;
}

}  // namespace ferry
