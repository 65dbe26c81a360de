// The sending half of page_pump.h. A page is never copied in user space: sendmsg takes headers and pages in turn. Each bit is cleared
// before its page is looked at, so a page that is dirtied meanwhile is seen again, and whichever of its contents went out does not matter.
#include "page_pump.h"

#include <cerrno>
#include <cstring>
#include <endian.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

namespace ferry {
namespace {

/** Large enough to make system calls cheap, small enough that what was scanned is still in the second-level cache when it is sent. */
constexpr size_t kBatchBytes = 512 * 1024;
constexpr size_t kMaxVectors = 1024;
constexpr size_t kHeaderBytes = 16 * 1024;
constexpr size_t kLargestHeader = 8 + 1 + kMaxBlockName + 1;
constexpr char kDoing[] = "sending RAM pages";

}  // namespace

bool AllZero(const uint8_t* bytes, size_t length) {
  uint64_t head[8];
  memcpy(head, bytes, sizeof head);
  if ((head[0] | head[1] | head[2] | head[3] | head[4] | head[5] | head[6] | head[7]) != 0) return false;
  // Each byte equals the one 64 before it; memcmp is vectorised for the processor at hand.
  return memcmp(bytes, bytes + sizeof head, length - sizeof head) == 0;
}

PageSender::PageSender(TxWire& wire, const SendPagesRequest& request)
    : wire_(wire), request_(request), next_(request.from), batch_limit_(kBatchBytes) {
  headers_.reserve(kHeaderBytes);
  vectors_.reserve(kMaxVectors);
  // A slow limit gets small batches, 20 ms worth of it, else it would come in jerks.
  if (request.bytesPerSecond != 0) {
    batch_limit_ = std::clamp<uint64_t>(request.bytesPerSecond / 50, kPageSize, kBatchBytes);
  }
}

/** Moves set bits of the chunk at or after next_, at most `room`, from the bitmap into taken_. Returns how many. */
uint64_t PageSender::Take(uint64_t chunk, uint64_t room) {
  BitmapWords& bitmap = *request_.bitmap;
  uint64_t sum = 0;
  for (uint64_t i = 0; i < kChunkWords; i++) {
    taken_[i] = 0;
    uint64_t word = chunk * kChunkWords + i;
    if (word >= bitmap.count || room == sum) continue;
    uint64_t wanted = __atomic_load_n(&bitmap.words[word], __ATOMIC_RELAXED);
    if (word == next_ / 64) wanted &= ~uint64_t{0} << (next_ % 64);
    if (word < next_ / 64 || wanted == 0) continue;
    while (static_cast<uint64_t>(__builtin_popcountll(wanted)) > room - sum) {
      wanted &= ~(uint64_t{1} << (63 - __builtin_clzll(wanted)));
    }
    taken_[i] = __atomic_fetch_and(&bitmap.words[word], ~wanted, __ATOMIC_ACQ_REL) & wanted;
    sum += __builtin_popcountll(taken_[i]);
  }
  return sum;
}

/** After Take: what is not resident may never have been written. Reading it would allocate it (shared memory has no zero page). */
void PageSender::FindHoles(uint64_t chunk) {
  uint64_t start = chunk * kChunkPages;
  uint64_t pages = std::min(kChunkPages, request_.ram->size / kPageSize - start);
  hole_start_ = hole_end_ = 0;
  if (mincore(request_.ram->base + start * kPageSize, pages * kPageSize, resident_) < 0) memset(resident_, 1, sizeof resident_);
}

/** Not resident may also mean swapped out; SEEK_DATA knows the difference (mm/filemap.c: a swap entry is data). */
bool PageSender::InHole(uint64_t page) {
  if (resident_[page % kChunkPages] & 1) return false;
  if (page >= hole_start_ && page < hole_end_) return true;
  if (request_.ram->fd < 0) return false;
  off_t data = lseek(request_.ram->fd, page * kPageSize, SEEK_DATA);
  if (data < 0 && errno != ENXIO) return false;
  hole_start_ = page;
  hole_end_ = data < 0 ? request_.ram->size / kPageSize : static_cast<uint64_t>(data) / kPageSize;
  return hole_end_ > page;
}

bool PageSender::IsZero(uint64_t page) {
  return InHole(page) || AllZero(request_.ram->base + page * kPageSize, kPageSize);
}

void PageSender::Add(uint64_t page) {
  bool zero = IsZero(page);
  uint64_t flags = zero ? kZero : kPage;
  if (named_) flags |= kContinue;
  size_t at = headers_.size();
  uint64_t header = htobe64(page * kPageSize | flags);
  const uint8_t* raw = reinterpret_cast<const uint8_t*>(&header);
  headers_.insert(headers_.end(), raw, raw + sizeof header);
  if (!named_) {
    headers_.push_back(static_cast<uint8_t>(request_.block.size()));
    headers_.insert(headers_.end(), request_.block.begin(), request_.block.end());
    named_ = true;
  }
  if (zero) headers_.push_back(0);
  size_t length = headers_.size() - at;
  // Zero records follow each other without a page between them: one vector for all.
  if (!vectors_.empty() && vectors_.back().iov_base < headers_.data() + at &&
      static_cast<uint8_t*>(vectors_.back().iov_base) + vectors_.back().iov_len == headers_.data() + at) {
    vectors_.back().iov_len += length;
  } else {
    vectors_.push_back({headers_.data() + at, length});
  }
  batch_bytes_ += length;
  if (zero) {
    counts_.zeroPages++;
  } else {
    vectors_.push_back({request_.ram->base + page * kPageSize, kPageSize});
    batch_bytes_ += kPageSize;
    counts_.pages++;
  }
}

Failure PageSender::Flush() {
  if (vectors_.empty()) return {};
  if (!wire_.Pace(batch_bytes_, request_.bytesPerSecond)) return Failure::Sys("channel", ECANCELED);
  wire_.Account(headers_.data(), headers_.size());
  Failure failure = wire_.Send(vectors_.data(), vectors_.size(), kDoing);
  counts_.bytes += batch_bytes_;
  headers_.clear();
  vectors_.clear();
  batch_bytes_ = 0;
  return failure;
}

Failure PageSender::Run() {
  const uint64_t pages = request_.bitmap->pages;
  uint64_t room = request_.maxPages;
  while (next_ < pages && room > 0) {
    uint64_t chunk = next_ / kChunkPages;
    uint64_t taken = Take(chunk, room);
    if (taken == 0) {
      next_ = std::min(pages, (chunk + 1) * kChunkPages);
      continue;
    }
    room -= taken;
    FindHoles(chunk);
    for (uint64_t i = 0; i < kChunkWords; i++) {
      for (uint64_t bits = taken_[i]; bits != 0; bits &= bits - 1) {
        uint64_t page = chunk * kChunkPages + i * 64 + __builtin_ctzll(bits);
        Add(page);
        next_ = page + 1;
        if (batch_bytes_ < batch_limit_ && vectors_.size() + 2 <= kMaxVectors && headers_.size() + kLargestHeader <= kHeaderBytes) continue;
        Failure failure = Flush();
        if (!failure.ok()) return failure;
      }
    }
    if (room > 0) next_ = std::min(pages, (chunk + 1) * kChunkPages);
  }
  return Flush();
}

}  // namespace ferry
