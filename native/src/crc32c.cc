// CRC32C by SSE4.2's CRC32 instruction where CPUID has it, by an 8-bit table elsewhere. Nothing newer is used: lab hosts are
// emulated by TCG, and a page header is 8 bytes, one instruction.
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

__attribute__((target("sse4.2"))) uint32_t BySse42(uint32_t crc, const void* bytes, size_t length) {
  const uint8_t* at = static_cast<const uint8_t*>(bytes);
  uint64_t wide = ~crc;
  for (; length >= 8; at += 8, length -= 8) {
    uint64_t word;
    memcpy(&word, at, 8);
    wide = _mm_crc32_u64(wide, word);
  }
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
