// Implementation of chunk_pieces.h. Mapped bytes are copied once and then accounted and sent from the copy: a window of a device may be slow
// to read, and what is read twice may differ.
#include "chunk_pieces.h"

#include <cerrno>
#include <cstring>
#include <endian.h>

#include <algorithm>
#include <string>

namespace ferry {
namespace {

/** The bounded buffers of both directions, and the largest single access of a region. */
constexpr uint64_t kChunk = TxWire::kChunk;
static_assert(kChunk <= RxWire::kMost);
/** Of what is copied into memory: while it is in the 2nd-level cache. */
constexpr uint64_t kCopy = 512 * 1024;
constexpr char kSending[] = "sending device data";
constexpr char kReading[] = "reading device data";
constexpr char kPread[] = "pread(device region)";
constexpr char kPwrite[] = "pwrite(device region)";

/** What one access of `part` bytes came to, as a sentence when it is not all of them. */
Failure Outcome(const char* call, ssize_t came, uint64_t part) {
  if (came < 0) return Failure::Refused(call, static_cast<int>(-came));
  if (static_cast<uint64_t>(came) == part) return {};
  return Failure::Refused(std::string(call) + ": only " + std::to_string(came) + " of " + std::to_string(part) + " bytes taken", EIO);
}

/** A record on its way out: what is added is gathered in a buffer, which is sent, the head before it, whenever it is full. */
class RecordSender {
 public:
  RecordSender(TxWire& wire, uint64_t tag, uint64_t length)
      : wire_(wire), head_{htobe64(tag), htobe64(length)}, room_(std::min(length, kChunk)), buffer_(wire.Chunk()) {}

  Failure AddMemory(const uint8_t* bytes, uint64_t length) {
    while (length > 0) {
      uint64_t part = std::min(length, room_ - filled_);
      memcpy(buffer_ + filled_, bytes, part);
      filled_ += part;
      bytes += part;
      length -= part;
      if (filled_ < room_) continue;
      Failure failure = Flush();
      if (!failure.ok()) return failure;
    }
    return {};
  }

  Failure AddRegion(const ChunkPiece& piece) {
    for (uint64_t done = 0; done < piece.length;) {
      uint64_t part = std::min(piece.length - done, kChunk);
      if (part > room_ - filled_) {
        Failure failure = Flush();
        if (!failure.ok()) return failure;
      }
      if (wire_.connection().aborted()) return Failure::Sys("channel", ECANCELED);
      Failure failure = Outcome(kPread, piece.region->ReadAt(buffer_ + filled_, part, piece.offset + done), part);
      failure.broken = begun_;
      if (!failure.ok()) return failure;
      filled_ += part;
      done += part;
    }
    return {};
  }

  Failure Flush() {
    if (filled_ == 0) return {};
    iovec vectors[2] = {{head_, sizeof head_}, {buffer_, filled_}};
    if (!begun_) wire_.Account(head_, sizeof head_);
    wire_.Account(buffer_, filled_);
    Failure failure = begun_ ? wire_.Send(vectors + 1, 1, kSending) : wire_.Send(vectors, 2, kSending);
    begun_ = true;
    filled_ = 0;
    return failure;
  }

 private:
  TxWire& wire_;
  uint64_t head_[2];
  const uint64_t room_;
  uint8_t* const buffer_;
  uint64_t filled_ = 0;
  bool begun_ = false;
};

uint64_t RegionBytes(const std::vector<ChunkPiece>& pieces) {
  uint64_t total = 0;
  for (const ChunkPiece& piece : pieces) total += piece.region ? piece.length : 0;
  return total;
}

/** All region pieces into `ahead`, one after the other. */
Failure ReadAhead(TxWire& wire, const std::vector<ChunkPiece>& pieces, uint8_t* ahead) {
  for (const ChunkPiece& piece : pieces) {
    if (!piece.region || piece.length == 0) continue;
    if (wire.connection().aborted()) return Failure::Sys("channel", ECANCELED);
    Failure failure = Outcome(kPread, piece.region->ReadAt(ahead, piece.length, piece.offset), piece.length);
    if (!failure.ok()) return failure;
    ahead += piece.length;
  }
  return {};
}

Failure ToMemory(RxWire& wire, const ChunkPiece& piece, bool refused) {
  for (uint64_t done = 0; done < piece.length;) {
    size_t part = std::min(piece.length - done, kCopy);
    Failure failure = wire.Need(part, kReading);
    if (!failure.ok()) return failure;
    wire.Account(wire.data(), part);
    if (!refused) memcpy(piece.memory + done, wire.data(), part);
    wire.Skip(part);
    done += part;
  }
  return {};
}

/** Straight out of the read buffer. */
Failure ToRegion(RxWire& wire, const ChunkPiece& piece, Failure& refused) {
  for (uint64_t done = 0; done < piece.length;) {
    uint64_t part = std::min(piece.length - done, kChunk);
    Failure failure = wire.Need(part, kReading);
    if (!failure.ok()) return failure;
    wire.Account(wire.data(), part);
    if (refused.ok()) refused = Outcome(kPwrite, piece.region->WriteAt(wire.data(), part, piece.offset + done), part);
    if (wire.connection().aborted()) return Failure::Sys("channel", ECANCELED);
    wire.Skip(part);
    done += part;
  }
  return {};
}

}  // namespace

Failure PumpPiecesFrom(TxWire& wire, const std::vector<ChunkPiece>& pieces, uint64_t tag) {
  uint64_t total = 0;
  for (const ChunkPiece& piece : pieces) total += piece.length;
  // A record that fits into the buffer is read whole before a byte of it goes.
  uint64_t early = total > kChunk ? RegionBytes(pieces) : 0;
  if (early > kChunk) early = 0;
  std::unique_ptr<uint8_t[]> ahead(early > 0 ? new uint8_t[early] : nullptr);
  if (early > 0) {
    Failure failure = ReadAhead(wire, pieces, ahead.get());
    if (!failure.ok()) return failure;
  }
  RecordSender record(wire, tag, total);
  const uint8_t* next = ahead.get();
  for (const ChunkPiece& piece : pieces) {
    Failure failure;
    if (!piece.region) {
      failure = record.AddMemory(piece.memory, piece.length);
    } else if (early > 0) {
      failure = record.AddMemory(next, piece.length);
      next += piece.length;
    } else {
      failure = record.AddRegion(piece);
    }
    if (!failure.ok()) return failure;
  }
  return record.Flush();
}

Failure PumpPiecesTo(RxWire& wire, const std::vector<ChunkPiece>& pieces) {
  Failure refused;
  for (const ChunkPiece& piece : pieces) {
    Failure failure = piece.region ? ToRegion(wire, piece, refused) : ToMemory(wire, piece, !refused.ok());
    if (!failure.ok()) return failure;
  }
  return refused;
}

}  // namespace ferry
