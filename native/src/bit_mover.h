// Moves the bits of one bitmap into another in one pass: ORs, counts and clears. Forms of it for different processors, which
// test/unit/native/bit-mover.test.ts holds against each other. Called by page_bitmap.cc; any thread.
#pragma once
#include <cstdint>
#include <vector>

namespace ferry {

/** ORs `count` words of `from` into `into`, clears them, and gives how many bits they had. */
using Mover = uint64_t (*)(uint64_t* into, uint64_t* from, uint64_t count);

/** Those that this processor can run, the best one last. */
std::vector<Mover> Movers();

/** The last of Movers(). */
Mover BestMover();

}  // namespace ferry
