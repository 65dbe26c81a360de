// RAM records of QEMU's version-3 migration stream: guest RAM -> socket and socket -> guest RAM, never through JS. A record is
// u64 big-endian (offset in the block | flags), unless CONTINUE the counted name of the block, then one fill byte (ZERO) or the page.
// Called by channel.cc on the tx and the rx thread of a Channel; one call at a time per direction.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "guest_ram.h"
#include "page_bitmap.h"
#include "wire.h"

namespace ferry {

constexpr uint64_t kPageSize = 4096;
constexpr uint64_t kPageMask = kPageSize - 1;
/** A block name is a counted string with a u8 length. */
constexpr size_t kMaxBlockName = 255;
/** Bits are taken, and the residency of pages looked up, for this many pages at once (2 MiB of RAM). */
constexpr uint64_t kChunkPages = 512;
constexpr uint64_t kChunkWords = kChunkPages / 64;

enum RamFlag : uint64_t { kZero = 0x02, kPage = 0x08, kEndOfSection = 0x10, kContinue = 0x20 };

/** `pages` had contents, `zeroPages` had none; `bytes` is what they took in the stream. */
struct PageCounts {
  uint64_t pages = 0;
  uint64_t zeroPages = 0;
  uint64_t bytes = 0;
};

struct SendPagesRequest {
  std::shared_ptr<Mapping> ram;
  std::shared_ptr<BitmapWords> bitmap;
  std::string block;
  uint64_t from;
  uint64_t maxPages;
  uint64_t bytesPerSecond;
};

/** One call of sendPages: takes bits, builds batches of headers and pages, sends them straight out of the mapping. */
class PageSender {
 public:
  PageSender(TxWire& wire, const SendPagesRequest& request);
  Failure Run();
  const PageCounts& counts() const { return counts_; }
  /** Where a following call goes on; bitmap->pages when nothing is left. */
  uint64_t next() const { return next_; }

 private:
  uint64_t Take(uint64_t chunk, uint64_t room);
  void FindHoles(uint64_t chunk);
  bool InHole(uint64_t page);
  bool IsZero(uint64_t page);
  void Add(uint64_t page);
  Failure Flush();

  TxWire& wire_;
  const SendPagesRequest& request_;
  PageCounts counts_;
  uint64_t next_;
  uint64_t taken_[kChunkWords];
  unsigned char resident_[kChunkPages];
  uint64_t hole_start_ = 0;
  uint64_t hole_end_ = 0;
  /** Headers and fill bytes of a batch; never grows beyond its first capacity, vectors_ point into it. */
  std::vector<uint8_t> headers_;
  std::vector<iovec> vectors_;
  size_t batch_limit_;
  size_t batch_bytes_ = 0;
  bool named_ = false;
};

struct ReceivePagesRequest {
  std::shared_ptr<Mapping> ram;
  std::string block;
  std::optional<uint64_t> first;
};

/** What the rx side knows of one RAM between calls: above all which of its pages may hold something else than zeros. */
class PageReceiver {
 public:
  Failure Run(RxWire& wire, const ReceivePagesRequest& request, PageCounts& counts);
  /** Lets go of the RAM: a channel that has ended must not keep guest memory mapped until it is collected. */
  void Forget() { *this = PageReceiver(); }

 private:
  void Adopt(const ReceivePagesRequest& request);
  Failure ReadHeader(RxWire& wire, uint64_t& header);
  Failure Check(RxWire& wire, uint64_t header);
  Failure TakeName(RxWire& wire);
  Failure TakeBody(RxWire& wire, uint64_t header, PageCounts& counts);
  Failure Ready(RxWire& wire, size_t length);
  void LookAt(uint64_t page);
  Failure Land(uint64_t page, const uint8_t* bytes);
  Failure LandRun();
  Failure Fill(uint64_t page, uint8_t value);

  std::shared_ptr<Mapping> ram_;
  std::string block_;
  bool named_ = false;
  /** Pages that may be non-zero: resident when the first record came near them, or written since. */
  std::vector<uint64_t> touched_;
  /** Those that were resident then: memcpy is the fastest way into them. The others are fastest filled by pwritev: no fault, no clearing. */
  std::vector<uint64_t> resident_;
  std::vector<uint64_t> looked_;
  /** Consecutive absent pages, still in the read buffer, that wait for one pwritev. */
  std::vector<iovec> run_;
  uint64_t run_page_ = 0;
  bool positional_ = true;
};

/** Whether `length` (a multiple of 64) bytes are all zero. */
bool AllZero(const uint8_t* bytes, size_t length);

}  // namespace ferry
