// Implementation of data_pump.h.
#include "data_pump.h"

#include <cerrno>
#include <cstring>
#include <endian.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

namespace ferry {
namespace {

/** Of one write into a data fd: all that the read buffer holds at once. By halves of it a run of chunks was a fifth slower. */
constexpr size_t kWrite = RxWire::kMost;
/** What follows may be this much later: on a busy host, JS would not be awake earlier. */
constexpr int64_t kSoonNs = 5'000'000;
constexpr char kSending[] = "sending device data";
constexpr char kReading[] = "reading device data";

/** All of [bytes, bytes + length) into the data fd. */
Failure WriteAll(const Connection& connection, const DataFd& data, const uint8_t* bytes, size_t length) {
  size_t done = 0;
  while (done < length) {
    ssize_t wrote = write(data.fd(), bytes + done, length - done);
    if (wrote < 0 && errno == EAGAIN) {
      if (!connection.Wait(data.fd(), POLLOUT)) return Failure::Sys("channel", ECANCELED);
      continue;
    }
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0) return Failure::Refused("write(data fd)", errno);
    done += wrote;
    if (done < length && !data.MayTakePart()) {
      return Failure::Refused("write(data fd): only " + std::to_string(wrote) + " of " + std::to_string(length) + " bytes taken", EIO);
    }
  }
  return {};
}

/**
 * The length of a record of that tag that has arrived, when it is from 1 to `most`; 0: whatever comes is left where it is. Another tag, which
 * ends a section, is not waited behind.
 */
uint64_t TakeHead(RxWire& wire, uint64_t tag, uint64_t most) {
  uint64_t head[2];
  if (!wire.Arrived(sizeof head[0], kSoonNs)) return 0;
  memcpy(head, wire.data(), sizeof head[0]);
  if (be64toh(head[0]) != tag || !wire.Arrived(sizeof head, kSoonNs)) return 0;
  memcpy(head, wire.data(), sizeof head);
  uint64_t length = be64toh(head[1]);
  if (length > most || length == 0) return 0;
  wire.Account(head, sizeof head);
  wire.Skip(sizeof head);
  return length;
}

}  // namespace

DataFd::DataFd(int fd) : fd_(fcntl(fd, F_DUPFD_CLOEXEC, 0)) {
  struct stat what;
  if (fd_ < 0 || fstat(fd_, &what) < 0 || (flags_ = fcntl(fd_, F_GETFL)) < 0) {
    error_ = errno;
    return;
  }
  may_take_part_ = S_ISFIFO(what.st_mode) || S_ISSOCK(what.st_mode);
  if ((flags_ & O_NONBLOCK) == 0) fcntl(fd_, F_SETFL, flags_ | O_NONBLOCK);
}

DataFd::~DataFd() {
  if (fd_ < 0) return;
  if (error_ == 0 && (flags_ & O_NONBLOCK) == 0) fcntl(fd_, F_SETFL, flags_);
  close(fd_);
}

Failure PumpFrom(TxWire& wire, const DataFd& data, uint64_t budget, uint64_t tag, Pumped& pumped) {
  uint8_t* chunk = wire.Chunk();
  while (pumped.bytes < budget) {
    if (wire.connection().aborted()) return Failure::Sys("channel", ECANCELED);
    ssize_t got = read(data.fd(), chunk, std::min<uint64_t>(TxWire::kChunk, budget - pumped.bytes));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) {
      if (!wire.connection().Wait(data.fd(), POLLIN)) return Failure::Sys("channel", ECANCELED);
      continue;
    }
    if (got < 0 && errno != ENOMSG) return Failure::Refused("read(data fd)", errno);
    if (got <= 0) {
      pumped.end = got < 0 ? PumpEnd::drained : PumpEnd::end;
      return {};
    }
    uint64_t head[2] = {htobe64(tag), htobe64(static_cast<uint64_t>(got))};
    wire.Account(head, sizeof head);
    wire.Account(chunk, got);
    iovec vectors[2] = {{head, sizeof head}, {chunk, static_cast<size_t>(got)}};
    Failure failure = wire.Send(vectors, 2, kSending);
    if (!failure.ok()) return failure;
    pumped.bytes += got;
  }
  return {};
}

Failure PumpTo(RxWire& wire, const DataFd& data, uint64_t length) {
  Failure refused;
  while (length > 0) {
    size_t part = std::min<uint64_t>(length, kWrite);
    Failure failure = wire.Need(part, kReading);
    if (!failure.ok()) return failure;
    wire.Account(wire.data(), part);
    if (refused.ok()) refused = WriteAll(wire.connection(), data, wire.data(), part);
    if (wire.connection().aborted()) return Failure::Sys("channel", ECANCELED);
    wire.Skip(part);
    length -= part;
  }
  return refused;
}

Failure PumpRunTo(RxWire& wire, const DataFd& data, uint64_t length, const Following& following, uint64_t& pumped) {
  for (pumped = 0;;) {
    Failure failure = PumpTo(wire, data, length);
    pumped += length;
    if (!failure.ok()) return failure;
    length = pumped < following.budget ? TakeHead(wire, following.tag, following.budget - pumped) : 0;
    if (length == 0) return {};
  }
}

}  // namespace ferry
