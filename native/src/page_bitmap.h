// One bit a 4 KiB page of guest RAM, as the other native files see it. Words are 64-bit little-endian bit order, as KVM and VFIO
// write them. Who may touch it when is the caller's business (JS thread, or one channel thread while a sendPages runs).
#pragma once
#include <napi.h>

#include <cstdint>
#include <memory>

namespace ferry {

class BitmapWords {
 public:
  explicit BitmapWords(uint64_t pages);
  ~BitmapWords();
  BitmapWords(const BitmapWords&) = delete;
  BitmapWords& operator=(const BitmapWords&) = delete;
  const uint64_t pages;
  /** ceil(pages / 64); bits beyond `pages` are always zero. */
  const uint64_t count;
  /** Null when there was no memory for it. */
  uint64_t* const words;

  uint64_t Population() const;
  void SetRange(uint64_t first, uint64_t length);
  void ClearRange(uint64_t first, uint64_t length);
  void Zero();
  bool Test(uint64_t page) const { return (words[page / 64] >> (page % 64)) & 1; }
  void Clear(uint64_t page) { words[page / 64] &= ~(uint64_t{1} << (page % 64)); }
  void Or(const BitmapWords& other);
  /** ORs `other` in, clears it, and gives how many bits it had. */
  uint64_t Take(BitmapWords& other);
  /** First set (or clear) page at or after `from`; `pages` when there is none. */
  uint64_t NextSet(uint64_t from) const;
  uint64_t NextClear(uint64_t from) const;
};

/** The bitmap behind a PageBitmap of JS; null with a TypeError pending when it is something else or closed. */
std::shared_ptr<BitmapWords> BitmapOf(const Napi::Value& value);

}  // namespace ferry
