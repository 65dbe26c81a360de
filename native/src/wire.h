// The two directions of one connected socket or pipe as the native threads of a Channel see them: exact sends, a read-ahead buffer,
// the running CRC32C and byte counts of each, and abort(), which ends every wait. Who: channel.cc (threads), page_pump.cc, data_pump.cc.
// Each direction is used by one thread at a time. No JS in here.
#pragma once
#include <sys/uio.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace ferry {

/** Why an operation ended early. `broken`: the direction is at an unknown place in the stream, nothing more may follow on it. */
struct Failure {
  enum class Kind { none, sys, stream };
  Kind kind = Kind::none;
  int err = 0;
  std::string text;
  bool broken = true;

  bool ok() const { return kind == Kind::none; }
  static Failure Sys(std::string syscall, int err);
  static Failure Stream(std::string sentence);
  /** The stream itself is intact: only this operation fails. */
  static Failure Refused(std::string syscall, int err);
};

/** The fd, and the eventfd that stands signalled from Abort() on. */
class Connection {
 public:
  /** Takes `fd` over, unless error() says otherwise. */
  explicit Connection(int fd);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  const int fd;
  bool isSocket() const { return socket_; }
  /** errno of the constructor; 0 when it is usable. */
  int error() const { return error_; }
  bool aborted() const { return aborted_.load(std::memory_order_acquire); }
  void Abort();
  void HalfClose();
  /** The fd is closed when all users have left (the maker is one): its number must not be reused under a thread that is in a call. */
  void Enter() { users_.fetch_add(1, std::memory_order_relaxed); }
  void Leave();
  /** Waits for `events` on `other`. false: aborted. timeoutNs < 0: for ever; a time-out returns true. */
  bool Wait(int other, short events, int64_t timeoutNs = -1) const;
  /** The kernel tells a socket's error once, to whichever call comes first; the other direction sees EPIPE or an end of the stream only.
   *  Gives the errno that there was before this one, or this one. */
  int Remember(int err);
  /** After recv() gave 0: 0 when the peer has closed; else what ended the connection. May wait for the other direction's word. */
  int WhyEnded() const;

 private:
  int abort_fd_;
  int error_ = 0;
  bool socket_ = false;
  bool pipe_ = false;
  std::atomic<bool> half_closed_{false};
  std::atomic<int> lost_{0};
  /** A write was told EPIPE. */
  std::atomic<bool> piped_{false};
  std::atomic<bool> aborted_{false};
  std::atomic<int> users_{1};
};

/** What both directions keep. Counters are read by the JS thread meanwhile. */
struct Direction {
  std::atomic<uint64_t> bytes{0};
  std::atomic<uint32_t> crc{0};
  void Account(const void* data, size_t length);
  /** One writer at a time, so no read-modify-write. */
  void Count(size_t length) { bytes.store(bytes.load(std::memory_order_relaxed) + length, std::memory_order_relaxed); }
};

class TxWire : public Direction {
 public:
  explicit TxWire(Connection& connection) : connection_(connection) {}
  Connection& connection() { return connection_; }
  /** Sends all of the vectors (which it eats); no CRC. `doing` ends the sentence "the connection broke while ...". */
  Failure Send(iovec* vectors, size_t count, const char* doing);
  /** Sends and accounts. */
  Failure Write(const void* data, size_t length, const char* doing);
  /** What goes out without waiting, for small writes on the JS thread; the rest is the caller's. Accounts what it sent. */
  size_t WriteNow(const void* data, size_t length);
  /** kChunk bytes for what is gathered to be sent, made at the first use and kept. For whoever uses this direction. */
  static constexpr size_t kChunk = 1024 * 1024;
  uint8_t* Chunk();
  /** Token bucket: returns when `length` bytes may go at `bytesPerSecond` (0: at once). false: aborted. */
  bool Pace(size_t length, uint64_t bytesPerSecond);

 private:
  Connection& connection_;
  std::unique_ptr<uint8_t[]> chunk_;
  int64_t paid_until_ns_ = 0;
};

class RxWire : public Direction {
 public:
  /** The most that may be asked for at once. */
  static constexpr size_t kMost = 1024 * 1024;
  explicit RxWire(Connection& connection) : connection_(connection) {}
  Connection& connection() { return connection_; }

  /** Buffered bytes: [data, data + available). */
  const uint8_t* data() const { return buffer_.get() + start_; }
  size_t available() const { return end_ - start_; }
  /** Moves on; no CRC. */
  void Skip(size_t length) {
    start_ += length;
    Count(length);
  }
  /** At least `length` (<= kMost) bytes are there. May move what is buffered. */
  Failure Need(size_t length, const char* doing);
  /** Whether `length` (<= kMost) bytes are there, or something comes within `withinNs` and they are. May move what is buffered. */
  bool Arrived(size_t length, int64_t withinNs);
  /** Exactly `length` bytes, accounted. */
  Failure Read(uint8_t* into, size_t length, const char* doing);
  /** From the buffer alone, accounted; false when it holds less. */
  bool ReadNow(uint8_t* into, size_t length);

 private:
  /** Of read-ahead that is moved rather than left where it is, and what the buffer has room for beside a largest request. */
  static constexpr size_t kAhead = 64 * 1024;
  static constexpr size_t kCapacity = kMost + kAhead;
  ssize_t TryReceive(void* into, size_t room);
  void TakeArrived();
  Failure Receive(void* into, size_t room, size_t& got, const char* doing);
  /** Room behind what is buffered, for as much as is missing for `length`. */
  void MakeRoom(size_t length);
  size_t Room() const;
  Connection& connection_;
  std::unique_ptr<uint8_t[]> buffer_;
  size_t start_ = 0;
  size_t end_ = 0;
};

int64_t MonotonicNs();

}  // namespace ferry
