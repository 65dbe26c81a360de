// The JS side of the fast path: addFast, removeFast and drainPosted of VcpuLoop. JS thread.
#include <algorithm>
#include <limits>

#include "vcpu_loop.h"

namespace ferry {
namespace {

/** With sets of offsets. */
constexpr uint64_t kMaxWindow = uint64_t{16} << 20;
/** As many as there are structures of MSI-X, and then some. */
constexpr uint32_t kMaxExcept = 16;

/** A list of offsets as a bit set; false with an exception pending. */
bool ReadOffsets(const Napi::Value& list, uint64_t size, const char* what, std::vector<uint64_t>* bits) {
  Napi::Env env = list.Env();
  if (!list.IsArray()) return ThrowType(env, std::string(what) + " must be an array of offsets"), false;
  Napi::Array offsets = list.As<Napi::Array>();
  if (offsets.Length() == 0) return true;
  if (size > kMaxWindow) return ThrowRange(env, std::string(what) + ": a window with offsets has at most 16 MiB"), false;
  bits->assign((size + 63) / 64, 0);
  for (uint32_t i = 0; i < offsets.Length(); i++) {
    std::optional<uint64_t> offset = ReadSize(offsets.Get(i), what);
    if (!offset) return false;
    if (*offset >= size) return ThrowRange(env, std::string(what) + " names an offset outside the window"), false;
    (*bits)[*offset / 64] |= uint64_t{1} << (*offset % 64);
  }
  return true;
}

/** FastFile of contract.ts; false with an exception pending. Null stays null. */
bool ReadFile(const Napi::Value& value, uint64_t size, std::unique_ptr<const FastFile>* into) {
  Napi::Env env = value.Env();
  if (value.IsNull()) return true;
  if (!value.IsObject()) return ThrowType(env, "file must be an object or null"), false;
  std::optional<int> fd = ReadFd(PropertyOf(value, "fd"), "file.fd");
  if (!fd) return false;
  std::optional<uint64_t> offset = ReadSize(PropertyOf(value, "offset"), "file.offset");
  if (!offset) return false;
  uint64_t end = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  if (*offset > end || size > end - *offset) return ThrowRange(env, "file.offset: the window ends beyond what a file can have"), false;
  Napi::Value list = PropertyOf(value, "except");
  if (!list.IsArray()) return ThrowType(env, "file.except must be an array of ranges"), false;
  Napi::Array ranges = list.As<Napi::Array>();
  if (ranges.Length() > kMaxExcept) return ThrowRange(env, "file.except has at most 16 ranges"), false;
  auto file = std::make_unique<FastFile>(*fd);
  if (file->device.error() != 0) return ThrowSys(env, "dup(file.fd)", file->device.error()), false;
  file->offset = *offset;
  for (uint32_t i = 0; i < ranges.Length(); i++) {
    Napi::Value range = ranges.Get(i);
    std::optional<uint64_t> start = ReadSize(PropertyOf(range, "start"), "file.except.start");
    if (!start) return false;
    std::optional<uint64_t> length = ReadSize(PropertyOf(range, "length"), "file.except.length");
    if (!length) return false;
    if (*start > size || *length > size - *start) return ThrowRange(env, "file.except lies outside the window"), false;
    file->except.push_back({*start, *length});
  }
  *into = std::move(file);
  return true;
}

}  // namespace

Napi::Value VcpuLoop::AddFast(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!Open(env)) return env.Undefined();
  std::string space = info[0].IsString() ? info[0].As<Napi::String>().Utf8Value() : "";
  if (space != "pio" && space != "mmio") return ThrowType(env, "space must be 'pio' or 'mmio'");
  std::optional<uint64_t> base = ReadSize(info[1], "base");
  if (!base) return env.Undefined();
  std::optional<uint64_t> size = ReadSize(info[2], "size");
  if (!size) return env.Undefined();
  if (*size == 0 || *base > std::numeric_limits<uint64_t>::max() - *size) return ThrowRange(env, "a fast window has 1 byte or more");
  auto window = std::make_shared<FastWindow>();
  window->range = nextRange_;
  window->base = *base;
  window->size = *size;
  Napi::Value shadow = PropertyOf(info[3], "shadow");
  if (shadow.IsTypedArray()) {
    std::optional<Bytes> bytes = ReadBytes(shadow, "shadow");
    if (!bytes) return env.Undefined();
    if (bytes->length < *size) return ThrowRange(env, "shadow must cover the whole window");
    window->shadow = bytes->data;
  } else if (!shadow.IsNull()) {
    return ThrowType(env, "shadow must be a Uint8Array or null");
  }
  if (!ReadOffsets(PropertyOf(info[3], "reads"), *size, "reads", &window->reads)) return env.Undefined();
  if (!ReadOffsets(PropertyOf(info[3], "posts"), *size, "posts", &window->posts)) return env.Undefined();
  if (!ReadFile(PropertyOf(info[3], "file"), *size, &window->file)) return env.Undefined();
  const char* refused = shared_->fast.Add(space == "mmio", window);
  if (refused != nullptr) return ThrowRange(env, std::string("addFast: ") + refused);
  if (window->shadow != nullptr) shadows_[nextRange_] = Napi::Persistent(shadow.As<Napi::Uint8Array>());
  return Napi::Number::New(env, nextRange_++);
}

Napi::Value VcpuLoop::RemoveFast(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!Open(env)) return env.Undefined();
  std::optional<uint64_t> range = ReadSize(info[0], "range");
  if (!range) return env.Undefined();
  std::vector<FastPath::Hazard*> hazards;
  for (const std::unique_ptr<Vcpu>& vcpu : vcpus_) {
    if (vcpu) hazards.push_back(&vcpu->thread->hazard);
  }
  if (*range >= nextRange_ || !shared_->fast.Remove(static_cast<uint32_t>(*range), hazards)) {
    return ThrowRange(env, "removeFast: no such range");
  }
  shadows_.erase(static_cast<uint32_t>(*range));
  // Its last posts still belong to it.
  Drain();
  return env.Undefined();
}

Napi::Value VcpuLoop::DrainPosted(const Napi::CallbackInfo& info) {
  if (Open(info.Env())) Drain();
  return info.Env().Undefined();
}

}  // namespace ferry
