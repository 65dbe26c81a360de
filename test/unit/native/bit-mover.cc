// For bit-mover.test.ts: every form of native/src/bit_mover.h that this processor can run, against a loop over single bits. Prints how many forms
// there are; the exit code is 1 at the first difference.
#include "../../../native/src/bit_mover.h"

#include <cstdio>
#include <vector>

namespace {

uint64_t seed = 88172645463325252u;
uint64_t Random() {
  seed ^= seed << 13;
  seed ^= seed >> 7;
  return seed ^= seed << 17;
}

/** Whole blocks of zeros, of ones, and mixed ones: what the forms treat apart. */
uint64_t Word(uint64_t kind) { return kind == 0 ? 0 : kind == 1 ? ~uint64_t{0} : Random() & Random(); }

bool Agrees(ferry::Mover mover, uint64_t words) {
  std::vector<uint64_t> into(words + 1), from(words + 1), wanted(words + 1);
  uint64_t bits = 0;
  for (uint64_t i = 0; i <= words; i++) {
    into[i] = Word(Random() % 3);
    from[i] = Word((i / 8 + words) % 4);
    wanted[i] = into[i];
    if (i == words) break;
    for (int bit = 0; bit < 64; bit++) {
      if ((from[i] >> bit & 1) == 0) continue;
      bits++;
      wanted[i] |= uint64_t{1} << bit;
    }
  }
  uint64_t behind = from[words];
  if (mover(into.data(), from.data(), words) != bits || into != wanted || from[words] != behind) return false;
  for (uint64_t i = 0; i < words; i++)
    if (from[i] != 0) return false;
  return true;
}

}  // namespace

int main() {
  int number = 0;
  for (ferry::Mover mover : ferry::Movers()) {
    number++;
    for (uint64_t words = 0; words < 200; words++) {
      if (Agrees(mover, words)) continue;
      std::printf("form %d differs for %llu words\n", number, static_cast<unsigned long long>(words));
      return 1;
    }
  }
  std::printf("%d\n", number);
  return 0;
}
