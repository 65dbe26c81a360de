// What the tracer sees of a stopped process besides its registers: memory, and where its fds lead. Tracer's thread. process_vm_readv(2),
// proc(5)
#pragma once
#include <sys/uio.h>

#include "tracer.h"

namespace ferry {

/** As many bytes as can be read; shorter at unmapped memory. */
ByteList ReadMemory(pid_t tid, uint64_t address, size_t length);
template <typename T>
bool ReadValue(pid_t tid, uint64_t address, T* into) {
  ByteList bytes = ReadMemory(tid, address, sizeof(T));
  if (bytes.size() != sizeof(T)) return false;
  __builtin_memcpy(into, bytes.data(), sizeof(T));
  return true;
}
/** Up to a NUL, at most 4096 bytes. */
std::string ReadText(pid_t tid, uint64_t address);
/** The bytes of a vector of buffers in order, at most `length`. */
ByteList ReadVector(pid_t tid, uint64_t vector, uint64_t count, size_t length);

/** Where an fd leads; empty: it is closed. */
std::string LinkOf(pid_t tid, int fd);
std::vector<int> OpenFds(pid_t tid);

}  // namespace ferry
