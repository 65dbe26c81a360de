// A Channel's two native threads and what they share with its JS object: a lane is one direction, a queue of operations and the thread
// (started with the first of them) that does them in order. Called by channel.cc; no JS calls in here, but operations hold JS references,
// so the last holder of one is always the JS thread.
#pragma once
#include <napi.h>

#include <pthread.h>

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "errors.h"
#include "page_pump.h"
#include "wire.h"

namespace ferry {

class Session;

struct Operation {
  Operation(Napi::Env env, bool tx) : deferred(Deferred::New(env)), tx(tx) {}
  Deferred deferred;
  const bool tx;
  /** On the lane's thread. */
  std::function<Failure(Session&)> work;
  /** On the JS thread, when work succeeded. Empty: undefined. */
  std::function<Napi::Value(Napi::Env)> result;
  Failure failure;
  /** JS thread only: rejected by abort() while the work was still going on. */
  bool settled = false;
};

class Lane {
 public:
  /** 0 or the errno of pthread_create. JS thread. */
  int Submit(const std::shared_ptr<Session>& session, std::shared_ptr<Operation> operation);
  /** The thread ends after the operation it is in; what is queued fails with ECANCELED. */
  void Stop();
  /** After Stop. false: the thread is held by a driver's call, and left to it. */
  bool Join();
  /** The direction is broken for good. Valid on the JS thread while it waits for no operation of this lane. */
  const Failure& broken() const { return broken_; }

 private:
  static void* Main(void* opaque);
  void Loop(Session& session);

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::shared_ptr<Operation>> queue_;
  bool stop_ = false;
  bool started_ = false;
  pthread_t thread_{};
  Failure broken_;
};

/** What outlives the JS object when a thread of it is still in a driver's call. */
class Session {
 public:
  explicit Session(int fd) : connection(fd), tx(connection), rx(connection) {}
  Connection connection;
  TxWire tx;
  RxWire rx;
  PageReceiver receiver;
  Lane txLane;
  Lane rxLane;

  /** From a lane: hands the operation to the JS thread. */
  void Post(std::shared_ptr<Operation> operation);
  std::vector<std::shared_ptr<Operation>> TakeDone();
  /** JS thread: the function that wakes it, null before and after its life. */
  void SetWaker(napi_threadsafe_function waker);
  /** JS thread, last of all: the waker has gone, and so has whoever would take what is done. */
  void Orphan();
  napi_threadsafe_function waker() const { return waker_; }

 private:
  std::mutex mutex_;
  std::vector<std::shared_ptr<Operation>> done_;
  napi_threadsafe_function waker_ = nullptr;
};

}  // namespace ferry
