// CRC32C by SSE4.2's CRC32 instruction where CPUID has it, by an 8-bit table elsewhere. Nothing newer is used: lab hosts are
// emulated by TCG, and a page header is 8 bytes, one instruction. That takes 3 cycles, but one may begin each cycle: long runs of bytes,
// device data, are summed in three parts at once, and the sums are put together.
#include "crc32c.h"

#include <array>
#include <cstring>
#include <nmmintrin.h>

namespace ferry {
namespace {

constexpr uint32_t kReflectedPolynomial = 0x82f63b78;

constexpr std::array<uint32_t, 256> MakeTable() {
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < 256; byte++) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ ((crc & 1) ? kReflectedPolynomial : 0);
    table[byte] = crc;
  }
  return table;
}
constexpr std::array<uint32_t, 256> kTable = MakeTable();

/** Of each of the three parts: few enough for the 1st-level cache, enough for putting together to cost nothing. A power of two. */
constexpr size_t kPart = 2048;

/** What the register is after kPart bytes of zero, by its bytes: that is linear (over GF(2)), so it is the XOR of four entries. */
using Shift = std::array<std::array<uint32_t, 256>, 4>;

constexpr Shift MakeShift() {
  // Of each bit of the register alone, after one byte of zero; then after twice as many, and so on.
  std::array<uint32_t, 32> after{};
  for (uint32_t bit = 0; bit < 32; bit++) {
    uint32_t crc = uint32_t{1} << bit;
    after[bit] = (crc >> 8) ^ kTable[crc & 0xff];
  }
  for (size_t zeros = 1; zeros < kPart; zeros *= 2) {
    std::array<uint32_t, 32> twice{};
    for (uint32_t bit = 0; bit < 32; bit++) {
      for (uint32_t i = 0; i < 32; i++) twice[bit] ^= (after[bit] >> i) & 1 ? after[i] : 0;
    }
    after = twice;
  }
  Shift shift{};
  for (uint32_t place = 0; place < 4; place++) {
    for (uint32_t byte = 0; byte < 256; byte++) {
      for (uint32_t i = 0; i < 8; i++) shift[place][byte] ^= (byte >> i) & 1 ? after[place * 8 + i] : 0;
    }
  }
  return shift;
}
constexpr Shift kShift = MakeShift();

uint32_t Shifted(uint64_t crc) {
  return kShift[0][crc & 0xff] ^ kShift[1][(crc >> 8) & 0xff] ^ kShift[2][(crc >> 16) & 0xff] ^ kShift[3][(crc >> 24) & 0xff];
}

uint64_t WordAt(const uint8_t* at) {
  uint64_t word;
  memcpy(&word, at, sizeof word);
  return word;
}

__attribute__((target("sse4.2"))) uint32_t BySse42(uint32_t crc, const void* bytes, size_t length) {
  const uint8_t* at = static_cast<const uint8_t*>(bytes);
  uint64_t wide = ~crc;
  for (; length >= 3 * kPart; at += 3 * kPart, length -= 3 * kPart) {
    uint64_t second = 0, third = 0;
    for (const uint8_t* word = at; word < at + kPart; word += 8) {
      wide = _mm_crc32_u64(wide, WordAt(word));
      second = _mm_crc32_u64(second, WordAt(word + kPart));
      third = _mm_crc32_u64(third, WordAt(word + 2 * kPart));
    }
    wide = Shifted(Shifted(wide) ^ second) ^ third;
  }
  for (; length >= 8; at += 8, length -= 8) wide = _mm_crc32_u64(wide, WordAt(at));
  uint32_t narrow = static_cast<uint32_t>(wide);
  for (; length > 0; at++, length--) narrow = _mm_crc32_u8(narrow, *at);
  return ~narrow;
}

bool HasSse42() {
  // Initialised once, by whichever thread comes first (C++11 guarantees that it is one).
  static const bool has = __builtin_cpu_supports("sse4.2");
  return has;
}

}  // namespace

uint32_t Crc32cByTable(uint32_t crc, const void* bytes, size_t length) {
  const uint8_t* at = static_cast<const uint8_t*>(bytes);
  crc = ~crc;
  for (; length > 0; at++, length--) crc = (crc >> 8) ^ kTable[(crc ^ *at) & 0xff];
  return ~crc;
}

uint32_t Crc32c(uint32_t crc, const void* bytes, size_t length) {
  return HasSse42() ? BySse42(crc, bytes, length) : Crc32cByTable(crc, bytes, length);
}

}  // namespace ferry
