// Guest RAM (one memfd, mapped once) and mappings of device fds, as the other native files see them. The mapping is held by
// shared_ptr: whoever works on it from another thread keeps it alive, close() only lets go of the JS side's share.
#pragma once
#include <napi.h>

#include <memory>
#include <optional>

namespace ferry {

/** Host memory that is unmapped when the last holder lets go. Immutable once made; any thread. */
class Mapping {
 public:
  Mapping(int fd, uint8_t* base, uint64_t size, bool writable = true) : fd(fd), base(base), size(size), writable(writable) {}
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  /** -1 where the fd belongs to somebody else. */
  const int fd;
  uint8_t* const base;
  const uint64_t size;
  const bool writable;
  bool Holds(uint64_t offset, uint64_t length) const { return offset <= size && length <= size - offset; }
};

/** The mapping behind a GuestRam (or HostMapping) of JS; null with a TypeError pending when it is something else or closed. */
std::shared_ptr<Mapping> RamOf(const Napi::Value& value);
std::shared_ptr<Mapping> HostMappingOf(const Napi::Value& value);

/** An external ArrayBuffer over part of a mapping, which lives as long as the buffer does; a TypeError pending where Node refuses. */
Napi::Value ExternalBuffer(Napi::Env env, const std::shared_ptr<Mapping>& mapping, uint64_t offset, uint64_t length);
/** Detaches the buffer (views become empty) and lets go of it; nothing when there is none. */
void DetachBuffer(Napi::Env env, Napi::Reference<Napi::ArrayBuffer>& buffer);

}  // namespace ferry
