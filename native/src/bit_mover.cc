// Implementation of bit_mover.h.
#include "bit_mover.h"

#include <immintrin.h>

#include <numeric>

namespace ferry {
namespace {

/** A cache line, and the vector that half of it fits in. */
constexpr uint64_t kBlock = 8;
typedef uint64_t Half __attribute__((vector_size(32), aligned(8)));

/** Moves the set bits of `from` into `into` and counts them. Most blocks of a log are empty: those are read and nothing more. */
__attribute__((always_inline)) inline uint64_t MoveBits(uint64_t* into, uint64_t* from, uint64_t count) {
  // Four counters: one would make every addition wait for the one before.
  uint64_t totals[4] = {};
  uint64_t i = 0;
  for (; i + kBlock <= count; i += kBlock) {
    Half* source = reinterpret_cast<Half*>(from + i);
    Half any = source[0] | source[1];
    if (((any[0] | any[1]) | (any[2] | any[3])) == 0) continue;
    for (uint64_t n = 0; n < kBlock; n++) totals[n % 4] += static_cast<uint64_t>(__builtin_popcountll(from[i + n]));
    Half* target = reinterpret_cast<Half*>(into + i);
    target[0] |= source[0];
    target[1] |= source[1];
    source[0] = Half{};
    source[1] = Half{};
  }
  for (; i < count; i++) {
    totals[0] += static_cast<uint64_t>(__builtin_popcountll(from[i]));
    into[i] |= from[i];
    from[i] = 0;
  }
  return totals[0] + totals[1] + totals[2] + totals[3];
}

__attribute__((target("avx2,popcnt"))) uint64_t MoveBitsFast(uint64_t* into, uint64_t* from, uint64_t count) {
  return MoveBits(into, from, count);
}
uint64_t MoveBitsPlain(uint64_t* into, uint64_t* from, uint64_t count) { return MoveBits(into, from, count); }

/** With VPOPCNTDQ a block is one register: processors of 2019 or later. Intel SDM 2C, VPOPCNT. */
__attribute__((target("avx512f,avx512vpopcntdq"))) uint64_t MoveBitsWide(uint64_t* into, uint64_t* from, uint64_t count) {
  __m512i totals = _mm512_setzero_si512();
  uint64_t i = 0;
  for (; i + kBlock <= count; i += kBlock) {
    __m512i bits = _mm512_loadu_si512(from + i);
    if (_mm512_test_epi64_mask(bits, bits) == 0) continue;
    totals = _mm512_add_epi64(totals, _mm512_popcnt_epi64(bits));
    _mm512_storeu_si512(into + i, _mm512_or_si512(_mm512_loadu_si512(into + i), bits));
    _mm512_storeu_si512(from + i, _mm512_setzero_si512());
  }
  alignas(64) uint64_t sums[kBlock];
  _mm512_store_si512(sums, totals);
  return std::accumulate(sums, sums + kBlock, MoveBits(into + i, from + i, count - i));
}

}  // namespace

std::vector<Mover> Movers() {
  std::vector<Mover> able = {MoveBitsPlain};
  // What a processor of 2013 or later can; the plain form takes five times as long.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt")) able.push_back(MoveBitsFast);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vpopcntdq")) able.push_back(MoveBitsWide);
  return able;
}

Mover BestMover() {
  static const Mover best = Movers().back();
  return best;
}

}  // namespace ferry
