// Implementation of wire.h: non-blocking calls and poll(2) with the abort eventfd beside, so that nothing that a peer does can hold a
// thread of ours. A broken connection is told in a sentence (StreamError): errno alone does not say what was going on.
#include "wire.h"

#include <cerrno>
#include <cstring>
#include <ctime>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "crc32c.h"

namespace ferry {
namespace {

constexpr size_t kMaxVectors = 1024;  // IOV_MAX
constexpr int64_t kNsPerSecond = 1000000000;
/** How far a paced sender may be ahead: enough to hide the timer's slack, too little to be seen by a bandwidth limit. */
constexpr int64_t kBurstNs = kNsPerSecond / 50;
/** For a thread that has the errno and has not noted it yet. */
constexpr int64_t kWordNs = kNsPerSecond / 5;
/** Of one recv(2) into the read buffer: it is worked on while it is in the 2nd-level cache. */
constexpr size_t kReceive = 512 * 1024;

Failure Broken(int err, const char* doing) {
  std::string sentence = "the connection broke while ";
  sentence += doing;
  if (err == EPIPE || err == ECONNRESET) {
    sentence += ": the peer went away";
  } else if (err == ETIMEDOUT) {
    sentence += ": the peer has been silent for too long";
  }
  const char* name = strerrorname_np(err);
  sentence += " (";
  sentence += name != nullptr ? name : "unknown errno";
  return Failure::Stream(sentence + ")");
}

}  // namespace

int64_t MonotonicNs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * kNsPerSecond + now.tv_nsec;
}

Failure Failure::Sys(std::string syscall, int err) { return {Kind::sys, err, std::move(syscall), true}; }
Failure Failure::Stream(std::string sentence) { return {Kind::stream, 0, std::move(sentence), true}; }
Failure Failure::Refused(std::string syscall, int err) { return {Kind::sys, err, std::move(syscall), false}; }

Connection::Connection(int fd) : fd(fd), abort_fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  struct stat what;
  if (abort_fd_ < 0 || fstat(fd, &what) < 0) {
    error_ = errno;
    return;
  }
  socket_ = S_ISSOCK(what.st_mode);
  pipe_ = S_ISFIFO(what.st_mode);
  // Sockets take MSG_DONTWAIT per call; what is not one has only the flag of its open file description.
  if (!socket_) fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

Connection::~Connection() {
  if (abort_fd_ >= 0) close(abort_fd_);
}

void Connection::Leave() {
  if (users_.fetch_sub(1, std::memory_order_acq_rel) == 1 && error_ == 0) close(fd);
}

void Connection::Abort() {
  if (aborted_.exchange(true, std::memory_order_acq_rel)) return;
  uint64_t one = 1;
  ssize_t ignored = write(abort_fd_, &one, sizeof one);
  (void)ignored;
  if (socket_) shutdown(fd, SHUT_RDWR);
}

void Connection::HalfClose() {
  half_closed_.store(true, std::memory_order_relaxed);
  if (socket_) {
    shutdown(fd, SHUT_WR);
  } else if (pipe_) {
    // The fd number stays ours until the end, but this end of the pipe goes now: that is a pipe's FIN.
    int nowhere = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (nowhere >= 0) {
      dup3(nowhere, fd, O_CLOEXEC);
      close(nowhere);
    }
  }
}

int Connection::Remember(int err) {
  int before = 0;
  if (err == EPIPE) piped_.store(true, std::memory_order_release);
  if (err != EPIPE) lost_.compare_exchange_strong(before, err, std::memory_order_acq_rel);
  else before = lost_.load(std::memory_order_acquire);
  return before != 0 ? before : err;
}

int Connection::WhyEnded() const {
  tcp_info info;
  socklen_t length = sizeof info;
  // A peer's FIN leaves the socket in CLOSE_WAIT, unless we have said good-bye, too. A UNIX socket has no such errors.
  if (!socket_ || half_closed_.load(std::memory_order_relaxed)) return 0;
  if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) < 0 || info.tcpi_state != TCP_CLOSE) return 0;
  for (int64_t waited = 0; waited < kWordNs; waited += kWordNs / 20) {
    int lost = lost_.load(std::memory_order_acquire);
    if (lost != 0) return lost;
    if (!Wait(-1, 0, kWordNs / 20)) break;
  }
  // A reset after the peer's FIN is told as EPIPE, once (net/ipv4/tcp_input.c, tcp_reset).
  return piped_.load(std::memory_order_acquire) ? EPIPE : ECONNABORTED;
}

bool Connection::Wait(int other, short events, int64_t timeoutNs) const {
  pollfd fds[2] = {{abort_fd_, POLLIN, 0}, {other, events, 0}};
  timespec timeout = {timeoutNs / kNsPerSecond, timeoutNs % kNsPerSecond};
  ppoll(fds, other >= 0 ? 2 : 1, timeoutNs < 0 ? nullptr : &timeout, nullptr);  // EINTR: the caller tries again
  return !aborted();
}

void Direction::Account(const void* data, size_t length) {
  crc.store(Crc32c(crc.load(std::memory_order_relaxed), data, length), std::memory_order_relaxed);
}

Failure TxWire::Send(iovec* vectors, size_t count, const char* doing) {
  while (count > 0) {
    if (connection_.aborted()) return Failure::Sys("channel", ECANCELED);
    msghdr message{};
    message.msg_iov = vectors;
    message.msg_iovlen = std::min(count, kMaxVectors);
    ssize_t sent = connection_.isSocket() ? sendmsg(connection_.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT)
                                          : writev(connection_.fd, vectors, static_cast<int>(message.msg_iovlen));
    if (sent < 0) {
      int err = errno;
      if (connection_.aborted()) return Failure::Sys("channel", ECANCELED);
      if (err == EINTR) continue;
      if (err == EPIPE) {
        connection_.Remember(err);
        connection_.WhyEnded();  // which waits for the other direction to note what it was told
      }
      if (err != EAGAIN) return Broken(connection_.Remember(err), doing);
      connection_.Wait(connection_.fd, POLLOUT);
      continue;
    }
    Count(sent);
    size_t left = sent;
    while (count > 0 && left >= vectors->iov_len) {
      left -= vectors->iov_len;
      vectors++;
      count--;
    }
    if (left > 0) {
      vectors->iov_base = static_cast<uint8_t*>(vectors->iov_base) + left;
      vectors->iov_len -= left;
    }
  }
  return {};
}

Failure TxWire::Write(const void* data, size_t length, const char* doing) {
  Account(data, length);
  iovec vector = {const_cast<void*>(data), length};
  return length == 0 ? Failure{} : Send(&vector, 1, doing);
}

size_t TxWire::WriteNow(const void* data, size_t length) {
  if (!connection_.isSocket() || connection_.aborted()) return 0;
  ssize_t sent = send(connection_.fd, data, length, MSG_NOSIGNAL | MSG_DONTWAIT);
  if (sent < 0 && errno != EAGAIN && errno != EINTR) connection_.Remember(errno);
  if (sent <= 0) return 0;  // the sentence is the thread's, when it tries
  Account(data, sent);
  Count(sent);
  return sent;
}

uint8_t* TxWire::Chunk() {
  if (chunk_ == nullptr) chunk_.reset(new uint8_t[kChunk]);
  return chunk_.get();
}

bool TxWire::Pace(size_t length, uint64_t bytesPerSecond) {
  if (bytesPerSecond == 0) return !connection_.aborted();
  int64_t now = MonotonicNs();
  // Idle time earns at most one burst.
  paid_until_ns_ = std::max(paid_until_ns_, now - kBurstNs);
  while (paid_until_ns_ > now) {
    if (!connection_.Wait(-1, 0, paid_until_ns_ - now)) return false;
    now = MonotonicNs();
  }
  paid_until_ns_ += static_cast<int64_t>(static_cast<double>(length) * kNsPerSecond / static_cast<double>(bytesPerSecond));
  return !connection_.aborted();
}

ssize_t RxWire::TryReceive(void* into, size_t room) {
  return connection_.isSocket() ? recv(connection_.fd, into, room, MSG_DONTWAIT) : read(connection_.fd, into, room);
}

Failure RxWire::Receive(void* into, size_t room, size_t& got, const char* doing) {
  for (;;) {
    if (connection_.aborted()) return Failure::Sys("channel", ECANCELED);
    ssize_t came = TryReceive(into, room);
    int err = errno;
    if (came > 0) {
      got = came;
      return {};
    }
    if (connection_.aborted()) return Failure::Sys("channel", ECANCELED);
    if (came == 0) {
      int why = connection_.WhyEnded();
      if (why != 0) return Broken(why, doing);
      return Failure::Stream(std::string("the stream ended while ") + doing + ": the peer closed the connection");
    }
    if (err == EINTR) continue;
    if (err != EAGAIN) return Broken(connection_.Remember(err), doing);
    connection_.Wait(connection_.fd, POLLIN);
  }
}

void RxWire::MakeRoom(size_t length) {
  if (buffer_ == nullptr) buffer_.reset(new uint8_t[kCapacity]);
  if (start_ == 0 || (available() > kAhead && start_ + length <= kCapacity)) return;
  memmove(buffer_.get(), buffer_.get() + start_, available());
  end_ -= start_;
  start_ = 0;
}

size_t RxWire::Room() const { return std::min(kCapacity - end_, kReceive); }

Failure RxWire::Need(size_t length, const char* doing) {
  if (available() >= length) return {};
  MakeRoom(length);
  while (available() < length) {
    size_t got = 0;
    Failure failure = Receive(buffer_.get() + end_, Room(), got, doing);
    if (!failure.ok()) return failure;
    end_ += got;
  }
  return {};
}

void RxWire::TakeArrived() {
  ssize_t came = TryReceive(buffer_.get() + end_, Room());
  // Whoever waits for these bytes is told: an end of the stream comes again, an error does not.
  if (came < 0 && errno != EAGAIN && errno != EINTR) connection_.Remember(errno);
  if (came > 0) end_ += came;
}

bool RxWire::Arrived(size_t length, int64_t withinNs) {
  if (available() >= length) return true;
  if (connection_.aborted()) return false;
  MakeRoom(length);
  TakeArrived();
  if (available() < length && connection_.Wait(connection_.fd, POLLIN, withinNs)) TakeArrived();
  return available() >= length;
}

bool RxWire::ReadNow(uint8_t* into, size_t length) {
  if (available() < length) return false;
  if (length == 0) return true;  // there may be no buffer yet
  Account(data(), length);
  if (length > 0) memcpy(into, data(), length);
  Skip(length);
  return true;
}

Failure RxWire::Read(uint8_t* into, size_t length, const char* doing) {
  if (length <= kAhead) {
    Failure failure = Need(length, doing);
    if (failure.ok()) ReadNow(into, length);
    return failure;
  }
  size_t have = std::min(length, available());
  ReadNow(into, have);
  while (have < length) {
    size_t got = 0;
    Failure failure = Receive(into + have, length - have, got, doing);
    if (!failure.ok()) return failure;
    Account(into + have, got);
    Count(got);
    have += got;
  }
  return {};
}

}  // namespace ferry
