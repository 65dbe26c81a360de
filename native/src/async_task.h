// One blocking job on a native thread of its own, and the promise it settles. Not the libuv thread pool: a VFIO state change may block
// for seconds, and four of those would stop every fs call of the process. `work` runs on the thread and must not touch JS;
// `settle` runs on the JS thread afterwards and resolves or rejects.
#pragma once
#include <napi.h>

#include <functional>
#include <memory>

#include "errors.h"

namespace ferry {

struct AsyncTask {
  std::function<void()> work;
  std::function<void(Napi::Env, const Deferred&)> settle;
};

/** Where the threads of one Node environment leave finished jobs for its JS thread. */
class TaskPort;

/** Once per environment, at load. */
std::shared_ptr<TaskPort> OpenTaskPort(Napi::Env env);

/** Returns the promise, or throws SysError('pthread_create') when no thread can be had. Keeps the event loop alive until settled. */
Napi::Value RunOnThread(Napi::Env env, const char* name, AsyncTask task);

}  // namespace ferry
