// The file that holds guest RAM, and its mapping. Called by guest_ram.cc; JS thread.
#pragma once
#include <cstdint>

namespace ferry {

/** An empty file in memory, close-on-exec, without a name; `hugePages`: transparent huge pages back it where the host lets us. -1 and errno. */
int OpenRamFile(bool hugePages);

/** Shared and writable, at an address that is a multiple of a huge page. MAP_FAILED and errno. */
void* MapRam(int fd, uint64_t size);

}  // namespace ferry
