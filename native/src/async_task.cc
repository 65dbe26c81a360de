// The threads of async_task.h and their way back. A finished job is handed over under a lock that also guards the port's end, because an
// environment (a Worker that is terminated) may go away while its jobs block: a ThreadSafeFunction does not survive that in Node 20
// (its release on the thread then works on freed memory: seen as an abort in uv_mutex_lock). What is made for JS while a Worker is being
// terminated throws what nobody can catch: binding.gyp's NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS lets that pass instead of aborting.
#include "async_task.h"

#include <pthread.h>
#include <uv.h>

#include <mutex>
#include <vector>

#include "errors.h"

namespace ferry {
namespace {

struct Job {
  AsyncTask task;
  Deferred deferred;
  std::shared_ptr<TaskPort> port;
  const char* name;
};

}  // namespace

class TaskPort {
 public:
  explicit TaskPort(Napi::Env env) : env_(env) {}

  // JS thread.
  void Open(const std::shared_ptr<TaskPort>& self) {
    uv_loop_t* loop = nullptr;
    napi_get_uv_event_loop(env_, &loop);
    self_ = self;
    async_.data = this;
    uv_async_init(loop, &async_, [](uv_async_t* async) { static_cast<TaskPort*>(async->data)->Settle(); });
    uv_unref(reinterpret_cast<uv_handle_t*>(&async_));
    napi_add_async_cleanup_hook(
        env_, [](napi_async_cleanup_hook_handle, void* port) { static_cast<TaskPort*>(port)->Close(); }, this, &hook_);
  }
  void Began() {
    if (pending_++ == 0) uv_ref(reinterpret_cast<uv_handle_t*>(&async_));
  }
  void Ended() {
    if (--pending_ == 0) uv_unref(reinterpret_cast<uv_handle_t*>(&async_));
  }

  // The job's thread.
  void HandOver(std::shared_ptr<Job> job) {
    std::lock_guard<std::mutex> held(lock_);
    if (closed_) {
      // Its references belong to an environment that is gone and cannot be dropped any more: the job is left behind.
      new std::shared_ptr<Job>(std::move(job));
      return;
    }
    finished_.push_back(std::move(job));
    uv_async_send(&async_);
  }

 private:
  void Settle() {
    std::vector<std::shared_ptr<Job>> finished;
    {
      std::lock_guard<std::mutex> held(lock_);
      finished.swap(finished_);
    }
    for (std::shared_ptr<Job>& job : finished) {
      Napi::HandleScope scope(env_);
      napi_callback_scope callback = nullptr;  // its end runs the promise's reactions
      napi_async_context context = nullptr;
      napi_async_init(env_, nullptr, Napi::String::New(env_, job->name), &context);
      napi_open_callback_scope(env_, nullptr, context, &callback);
      Ended();
      job->task.settle(env_, job->deferred);
      job.reset();
      napi_close_callback_scope(env_, callback);
      napi_async_destroy(env_, context);
    }
  }
  void Close() {
    {
      std::lock_guard<std::mutex> held(lock_);
      closed_ = true;
      finished_.clear();
    }
    uv_close(reinterpret_cast<uv_handle_t*>(&async_), [](uv_handle_t* handle) {
      auto* port = static_cast<TaskPort*>(handle->data);
      napi_remove_async_cleanup_hook(port->hook_);
      std::shared_ptr<TaskPort> last = std::move(port->self_);
    });
  }

  const Napi::Env env_;
  uv_async_t async_;
  napi_async_cleanup_hook_handle hook_ = nullptr;
  size_t pending_ = 0;
  /** Until libuv has closed the handle. */
  std::shared_ptr<TaskPort> self_;
  std::mutex lock_;
  bool closed_ = false;
  std::vector<std::shared_ptr<Job>> finished_;
};

std::shared_ptr<TaskPort> OpenTaskPort(Napi::Env env) {
  auto port = std::make_shared<TaskPort>(env);
  port->Open(port);
  return port;
}

Napi::Value RunOnThread(Napi::Env env, const char* name, AsyncTask task) {
  std::shared_ptr<TaskPort> port = AddonData::Of(env)->tasks;
  auto job = std::make_shared<Job>(Job{std::move(task), Deferred::New(env), port, name});
  Napi::Value promise = job->deferred.Promise();
  // Built without exceptions: std::thread would abort when no thread can be had, so pthreads directly.
  auto* handed = new std::shared_ptr<Job>(std::move(job));
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_t thread;
  port->Began();
  int failed = pthread_create(
      &thread, &attributes,
      [](void* opaque) -> void* {
        std::unique_ptr<std::shared_ptr<Job>> handed(static_cast<std::shared_ptr<Job>*>(opaque));
        std::shared_ptr<Job> job = std::move(*handed);
        pthread_setname_np(pthread_self(), job->name);
        job->task.work();
        std::shared_ptr<TaskPort> port = job->port;
        port->HandOver(std::move(job));
        return nullptr;
      },
      handed);
  pthread_attr_destroy(&attributes);
  if (failed != 0) {
    delete handed;
    port->Ended();
    return ThrowSys(env, "pthread_create", failed);
  }
  return promise;
}

}  // namespace ferry
