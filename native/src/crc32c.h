// CRC32C (Castagnoli polynomial, reflected; RFC 3720 appendix B.4), which runs over every byte of a migration stream that is not page
// contents. Called by wire.cc for each direction of a Channel, on whichever thread moves the bytes. No state of its own.
#pragma once
#include <cstddef>
#include <cstdint>

namespace ferry {

/** Continues `crc` (0 to begin) over the bytes: Crc32c(Crc32c(0, a), b) == Crc32c(0, ab). */
uint32_t Crc32c(uint32_t crc, const void* bytes, size_t length);

/** The portable table, whatever the processor offers; for the test that compares the two. */
uint32_t Crc32cByTable(uint32_t crc, const void* bytes, size_t length);

}  // namespace ferry
