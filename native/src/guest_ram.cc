// GuestRam and HostMapping of native/addon.ts: a memfd with all guest RAM and mappings of device fds, shown to JS as external
// ArrayBuffers (1 GiB windows: Node 20 refuses one over 4 GiB) that are detached when the mapping goes. JS thread, except the
// bodies of populate() and hash().
#include "guest_ram.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "addon.h"
#include "async_task.h"
#include "errors.h"
#include "ram_file.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace ferry {

Mapping::~Mapping() {
  munmap(base, size);
  if (fd >= 0) ::close(fd);
}

namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kWindow = uint64_t{1} << 30;
constexpr napi_type_tag kRamTag = {0x6665727279000001, 0x6775657374726d31};
constexpr napi_type_tag kMappingTag = {0x6665727279000002, 0x686f73746d617031};

/** 64-bit content hash over four lanes: enough to tell two RAM images apart in tests and bench, and fast. Not cryptographic. */
uint64_t HashOf(const uint8_t* bytes, uint64_t length) {
  constexpr uint64_t kMultiplier = 0x9e3779b97f4a7c15;
  uint64_t lanes[4] = {length, 1, 2, 3};
  uint64_t at = 0;
  for (; at + 32 <= length; at += 32) {
    uint64_t words[4];
    memcpy(words, bytes + at, sizeof words);
    for (int lane = 0; lane < 4; lane++) {
      lanes[lane] = (lanes[lane] ^ words[lane]) * kMultiplier;
      lanes[lane] ^= lanes[lane] >> 29;
    }
  }
  for (; at < length; at++) lanes[at & 3] = (lanes[at & 3] ^ bytes[at]) * kMultiplier;
  uint64_t hash = 0;
  for (uint64_t lane : lanes) {
    hash = (hash ^ lane) * kMultiplier;
    hash ^= hash >> 32;
  }
  return hash;
}

class GuestRam : public Napi::ObjectWrap<GuestRam> {
 public:
  explicit GuestRam(const Napi::CallbackInfo& info) : ObjectWrap(info) {
    // Made only by createRam, which passes an External; JS has no way to the constructor's argument.
    if (info.Length() == 1 && info[0].IsExternal()) {
      mapping_ = *info[0].As<Napi::External<std::shared_ptr<Mapping>>>().Data();
      windows_.resize((mapping_->size + kWindow - 1) / kWindow);
      info.This().As<Napi::Object>().TypeTag(&kRamTag);
    }
  }
  static Napi::Function Define(Napi::Env env) {
    return DefineClass(env, "GuestRam",
                       {
                           InstanceAccessor<&GuestRam::Fd>("fd"),
                           InstanceAccessor<&GuestRam::Size>("size"),
                           InstanceMethod<&GuestRam::Window>("window"),
                           InstanceMethod<&GuestRam::CopyOut>("copyOut"),
                           InstanceMethod<&GuestRam::CopyIn>("copyIn"),
                           InstanceMethod<&GuestRam::Populate>("populate"),
                           InstanceMethod<&GuestRam::Hash>("hash"),
                           InstanceMethod<&GuestRam::Resident>("resident"),
                           InstanceMethod<&GuestRam::Close>("close"),
                       });
  }
  const std::shared_ptr<Mapping>& mapping() const { return mapping_; }

 private:
  bool Open(Napi::Env env) {
    if (mapping_) return true;
    ThrowType(env, "GuestRam is closed");
    return false;
  }
  Napi::Value Fd(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), mapping_ ? mapping_->fd : -1);
  }
  Napi::Value Size(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), mapping_ ? static_cast<double>(mapping_->size) : 0);
  }
  Napi::Value Window(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    if (!Open(env)) return env.Undefined();
    std::optional<uint64_t> index = ReadSize(info[0], "window index");
    if (!index) return env.Undefined();
    if (*index >= windows_.size()) return ThrowRange(env, "window index beyond the end of RAM");
    Napi::Reference<Napi::ArrayBuffer>& window = windows_[*index];
    if (window.IsEmpty()) {
      uint64_t offset = *index * kWindow;
      Napi::Value made = ExternalBuffer(env, mapping_, offset, std::min(kWindow, mapping_->size - offset));
      if (env.IsExceptionPending()) return env.Undefined();
      window = Napi::Persistent(made.As<Napi::ArrayBuffer>());
    }
    return window.Value();
  }
  /** Offset and bytes of copyIn/copyOut; nullptr with an exception pending when they do not fit. */
  uint8_t* Spot(const Napi::CallbackInfo& info, Bytes* bytes) {
    Napi::Env env = info.Env();
    if (!Open(env)) return nullptr;
    std::optional<uint64_t> offset = ReadSize(info[0], "offset");
    if (!offset) return nullptr;
    std::optional<Bytes> given = ReadBytes(info[1], "bytes");
    if (!given) return nullptr;
    if (!mapping_->Holds(*offset, given->length)) {
      ThrowRange(env, "range lies outside guest RAM");
      return nullptr;
    }
    *bytes = *given;
    return mapping_->base + *offset;
  }
  Napi::Value CopyOut(const Napi::CallbackInfo& info) {
    Bytes into;
    if (uint8_t* spot = Spot(info, &into)) memcpy(into.data, spot, into.length);
    return info.Env().Undefined();
  }
  Napi::Value CopyIn(const Napi::CallbackInfo& info) {
    Bytes from;
    if (uint8_t* spot = Spot(info, &from)) memcpy(spot, from.data, from.length);
    return info.Env().Undefined();
  }
  bool ReadRange(const Napi::CallbackInfo& info, uint64_t* offset, uint64_t* length) {
    Napi::Env env = info.Env();
    if (!Open(env)) return false;
    std::optional<uint64_t> at = ReadSize(info[0], "offset");
    if (!at) return false;
    std::optional<uint64_t> size = ReadSize(info[1], "length");
    if (!size) return false;
    if (!mapping_->Holds(*at, *size)) {
      ThrowRange(env, "range lies outside guest RAM");
      return false;
    }
    *offset = *at;
    *length = *size;
    return true;
  }
  Napi::Value Populate(const Napi::CallbackInfo& info) {
    uint64_t offset, length;
    if (!ReadRange(info, &offset, &length)) return info.Env().Undefined();
    auto failed = std::make_shared<int>(0);
    uint64_t start = offset & ~(kPage - 1);
    return RunOnThread(info.Env(), "populate",
                       {[mapping = mapping_, start, end = offset + length, failed] {
                          if (end > start && madvise(mapping->base + start, end - start, MADV_POPULATE_WRITE) != 0) {
                            *failed = errno;
                          }
                        },
                        [failed](Napi::Env env, const Deferred& deferred) {
                          if (*failed != 0) return deferred.Reject(SysErrorValue(env, "madvise(MADV_POPULATE_WRITE)", *failed));
                          deferred.Resolve(env.Undefined());
                        }});
  }
  Napi::Value Hash(const Napi::CallbackInfo& info) {
    uint64_t offset, length;
    if (!ReadRange(info, &offset, &length)) return info.Env().Undefined();
    auto hash = std::make_shared<uint64_t>(0);
    return RunOnThread(info.Env(), "hash",
                       {[mapping = mapping_, offset, length, hash] { *hash = HashOf(mapping->base + offset, length); },
                        [hash](Napi::Env env, const Deferred& deferred) {
                          deferred.Resolve(Napi::BigInt::New(env, *hash));
                        }});
  }
  Napi::Value Resident(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    if (!Open(env)) return env.Undefined();
    struct stat status;
    if (fstat(mapping_->fd, &status) != 0) return ThrowSys(env, "fstat(memfd)", errno);
    return Napi::Number::New(env, static_cast<double>(status.st_blocks) * 512);
  }
  Napi::Value Close(const Napi::CallbackInfo& info) {
    for (Napi::Reference<Napi::ArrayBuffer>& window : windows_) DetachBuffer(info.Env(), window);
    windows_.clear();
    mapping_.reset();
    return info.Env().Undefined();
  }

  std::shared_ptr<Mapping> mapping_;
  std::vector<Napi::Reference<Napi::ArrayBuffer>> windows_;
};

class HostMapping : public Napi::ObjectWrap<HostMapping> {
 public:
  explicit HostMapping(const Napi::CallbackInfo& info) : ObjectWrap(info) {
    if (info.Length() == 1 && info[0].IsExternal()) {
      mapping_ = *info[0].As<Napi::External<std::shared_ptr<Mapping>>>().Data();
      info.This().As<Napi::Object>().TypeTag(&kMappingTag);
    }
  }
  static Napi::Function Define(Napi::Env env) {
    return DefineClass(env, "HostMapping",
                       {
                           InstanceAccessor<&HostMapping::Size>("size"),
                           InstanceAccessor<&HostMapping::View>("view"),
                           InstanceMethod<&HostMapping::Unmap>("unmap"),
                       });
  }
  const std::shared_ptr<Mapping>& mapping() const { return mapping_; }

 private:
  Napi::Value Size(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), mapping_ ? static_cast<double>(mapping_->size) : 0);
  }
  Napi::Value View(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    if (!mapping_) return ThrowType(env, "HostMapping is unmapped");
    if (view_.IsEmpty()) {
      Napi::Value made = ExternalBuffer(env, mapping_, 0, std::min(kWindow, mapping_->size));
      if (env.IsExceptionPending()) return env.Undefined();
      view_ = Napi::Persistent(made.As<Napi::ArrayBuffer>());
    }
    return view_.Value();
  }
  Napi::Value Unmap(const Napi::CallbackInfo& info) {
    DetachBuffer(info.Env(), view_);
    mapping_.reset();
    return info.Env().Undefined();
  }

  std::shared_ptr<Mapping> mapping_;
  Napi::Reference<Napi::ArrayBuffer> view_;
};

Napi::Value CreateRam(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  std::optional<uint64_t> size = ReadSize(info[0], "RAM size");
  if (!size) return env.Undefined();
  if (*size == 0 || *size % kPage != 0) return ThrowRange(env, "RAM size must be a multiple of 4096 and not 0");
  bool hugePages = PropertyOf(info[1], "hugePages").ToBoolean();
  bool populate = PropertyOf(info[1], "populate").ToBoolean();
  int fd = OpenRamFile(hugePages);
  if (fd < 0) return ThrowSys(env, "memfd_create", errno);
  if (ftruncate(fd, static_cast<off_t>(*size)) != 0) {
    int err = errno;
    ::close(fd);
    return ThrowSys(env, "ftruncate(memfd)", err);
  }
  void* base = MapRam(fd, *size);
  if (base == MAP_FAILED) {
    int err = errno;
    ::close(fd);
    return ThrowSys(env, "mmap(memfd)", err);
  }
  auto mapping = std::make_shared<Mapping>(fd, static_cast<uint8_t*>(base), *size);
  madvise(base, *size, MADV_DONTDUMP);
  // Fails only where the kernel has no huge pages at all, which is no reason not to run.
  if (hugePages) madvise(base, *size, MADV_HUGEPAGE);
  if (populate && madvise(base, *size, MADV_POPULATE_WRITE) != 0) {
    return ThrowSys(env, "madvise(MADV_POPULATE_WRITE)", errno);
  }
  return AddonData::Of(env)->guestRam.New({Napi::External<std::shared_ptr<Mapping>>::New(env, &mapping)});
}

Napi::Value MapFd(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  std::optional<int> fd = ReadFd(info[0], "fd");
  if (!fd) return env.Undefined();
  std::optional<uint64_t> offset = ReadSize(info[1], "offset");
  if (!offset) return env.Undefined();
  std::optional<uint64_t> size = ReadSize(info[2], "size");
  if (!size) return env.Undefined();
  if (*size == 0 || *size % kPage != 0 || *offset % kPage != 0) {
    return ThrowRange(env, "offset and size of a mapping must be multiples of 4096");
  }
  bool writable = info[3].ToBoolean();
  int protection = PROT_READ | (writable ? PROT_WRITE : 0);
  void* base = mmap(nullptr, *size, protection, MAP_SHARED, *fd, static_cast<off_t>(*offset));
  if (base == MAP_FAILED) return ThrowSys(env, "mmap", errno);
  auto mapping = std::make_shared<Mapping>(-1, static_cast<uint8_t*>(base), *size, writable);
  return AddonData::Of(env)->hostMapping.New({Napi::External<std::shared_ptr<Mapping>>::New(env, &mapping)});
}

template <class Wrapped>
std::shared_ptr<Mapping> Unwrap(const Napi::Value& value, const napi_type_tag& tag, const char* what) {
  Napi::Env env = value.Env();
  if (value.IsObject() && value.As<Napi::Object>().CheckTypeTag(&tag)) {
    const std::shared_ptr<Mapping>& mapping = Wrapped::Unwrap(value.As<Napi::Object>())->mapping();
    if (mapping) return mapping;
    ThrowType(env, std::string(what) + " is closed");
    return nullptr;
  }
  ThrowType(env, std::string("a ") + what + " is needed here");
  return nullptr;
}

}  // namespace

Napi::Value ExternalBuffer(Napi::Env env, const std::shared_ptr<Mapping>& mapping, uint64_t offset, uint64_t length) {
  auto* held = new std::shared_ptr<Mapping>(mapping);
  napi_value buffer = nullptr;
  napi_status status = napi_create_external_arraybuffer(
      env, mapping->base + offset, length, [](napi_env, void*, void* hint) { delete static_cast<std::shared_ptr<Mapping>*>(hint); },
      held, &buffer);
  if (status != napi_ok) {
    delete held;
    return ThrowType(env, "this Node does not take external ArrayBuffers");
  }
  return Napi::Value(env, buffer);
}

void DetachBuffer(Napi::Env env, Napi::Reference<Napi::ArrayBuffer>& buffer) {
  if (buffer.IsEmpty()) return;
  Napi::HandleScope scope(env);
  napi_detach_arraybuffer(env, buffer.Value());
  buffer.Reset();
}

std::shared_ptr<Mapping> RamOf(const Napi::Value& value) { return Unwrap<GuestRam>(value, kRamTag, "GuestRam"); }
std::shared_ptr<Mapping> HostMappingOf(const Napi::Value& value) {
  return Unwrap<HostMapping>(value, kMappingTag, "HostMapping");
}

void InitGuestRam(Napi::Env env, Napi::Object exports) {
  AddonData* data = AddonData::Of(env);
  data->guestRam = Napi::Persistent(GuestRam::Define(env));
  data->hostMapping = Napi::Persistent(HostMapping::Define(env));
  exports.Set("createRam", Napi::Function::New(env, CreateRam, "createRam"));
  exports.Set("mapFd", Napi::Function::New(env, MapFd, "mapFd"));
}

}  // namespace ferry
