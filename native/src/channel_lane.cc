// Implementation of channel_lane.h.
#include "channel_lane.h"

#include <cerrno>
#include <ctime>

namespace ferry {
namespace {

/** How long the end of an environment waits for a thread that is in a driver's read or write. */
constexpr int kJoinSeconds = 5;

struct Start {
  std::shared_ptr<Session> session;
  Lane* lane;
};

}  // namespace

int Lane::Submit(const std::shared_ptr<Session>& session, std::shared_ptr<Operation> operation) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!started_) {
    auto* start = new Start{session, this};
    session->connection.Enter();
    int err = pthread_create(&thread_, nullptr, Main, start);
    if (err != 0) {
      session->connection.Leave();
      delete start;
      return err;
    }
    pthread_setname_np(thread_, operation->tx ? "channel tx" : "channel rx");
    started_ = true;
  }
  queue_.push_back(std::move(operation));
  wake_.notify_one();
  return 0;
}

void* Lane::Main(void* opaque) {
  std::unique_ptr<Start> start(static_cast<Start*>(opaque));
  start->lane->Loop(*start->session);
  if (start->lane == &start->session->rxLane) start->session->receiver.Forget();
  start->session->connection.Leave();
  return nullptr;
}

void Lane::Loop(Session& session) {
  for (;;) {
    std::shared_ptr<Operation> operation;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [this] { return stop_ || !queue_.empty(); });
      if (queue_.empty()) return;
      operation = std::move(queue_.front());
      queue_.pop_front();
    }
    if (session.connection.aborted()) {
      operation->failure = Failure::Sys("channel", ECANCELED);
    } else {
      operation->failure = broken_.ok() ? operation->work(session) : broken_;
    }
    if (!operation->failure.ok() && operation->failure.broken) broken_ = operation->failure;
    session.Post(std::move(operation));
  }
}

void Lane::Stop() {
  std::lock_guard<std::mutex> lock(mutex_);
  stop_ = true;
  wake_.notify_one();
}

bool Lane::Join() {
  if (!started_) return true;
  timespec until;
  clock_gettime(CLOCK_REALTIME, &until);
  until.tv_sec += kJoinSeconds;
  started_ = false;
  if (pthread_timedjoin_np(thread_, nullptr, &until) == 0) return true;
  pthread_detach(thread_);
  return false;
}

void Session::Post(std::shared_ptr<Operation> operation) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (waker_ == nullptr) {
    // Nobody is left to be told: the environment ended while a driver held this thread. The operation's references to JS cannot be
    // dropped any more, and not on this thread: it is left behind.
    new std::shared_ptr<Operation>(std::move(operation));
    return;
  }
  done_.push_back(std::move(operation));
  // One call per batch.
  if (done_.size() == 1) napi_call_threadsafe_function(waker_, nullptr, napi_tsfn_nonblocking);
}

std::vector<std::shared_ptr<Operation>> Session::TakeDone() {
  std::lock_guard<std::mutex> lock(mutex_);
  return std::move(done_);
}

void Session::Orphan() {
  SetWaker(nullptr);
  TakeDone();
}

void Session::SetWaker(napi_threadsafe_function waker) {
  std::lock_guard<std::mutex> lock(mutex_);
  waker_ = waker;
}

}  // namespace ferry
