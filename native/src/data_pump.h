// A device's data fd (VFIO migration v2) <-> a Channel, without JS in between. Called by channel.cc on its tx and rx threads.
// linux/vfio.h, VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE: read() gives ENOMSG when PRE_COPY has nothing more for now, 0 at the end of the data.
#pragma once
#include <cstdint>

#include "wire.h"

namespace ferry {

/** A duplicate of a data fd, non-blocking while it is held, so that a pump can wait for it and for abort() at once. */
class DataFd {
 public:
  explicit DataFd(int fd);
  ~DataFd();
  DataFd(const DataFd&) = delete;
  DataFd& operator=(const DataFd&) = delete;
  /** errno of the constructor, 0 when it is usable. */
  int error() const { return error_; }
  int fd() const { return fd_; }
  /** A pipe or socket may take part of a write; a driver or a file that does has refused the rest. */
  bool MayTakePart() const { return may_take_part_; }

 private:
  int fd_;
  int error_ = 0;
  int flags_ = 0;
  bool may_take_part_ = false;
};

enum class PumpEnd { more, drained, end };

struct Pumped {
  uint64_t bytes = 0;
  PumpEnd end = PumpEnd::more;
};

/** Records of tag u64 BE, length u64 BE, bytes (1 MiB at most each) until `budget` bytes went, or the fd has no more. */
Failure PumpFrom(TxWire& wire, const DataFd& data, uint64_t budget, uint64_t tag, Pumped& pumped);

/** `length` bytes of the stream into the fd. When it refuses, the bytes are consumed all the same: the stream goes on behind them. */
Failure PumpTo(RxWire& wire, const DataFd& data, uint64_t length);

/** Records as PumpFrom makes them, which may follow what is pumped: they are taken along, up to `budget` bytes of data in all. */
struct Following {
  uint64_t tag = 0;
  uint64_t budget = 0;
};

/** The same, and the records that arrive right behind (5 ms at most): no thread need be woken for each. `pumped`: bytes of data. */
Failure PumpRunTo(RxWire& wire, const DataFd& data, uint64_t length, const Following& following, uint64_t& pumped);

}  // namespace ferry
