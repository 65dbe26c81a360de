// ioctl(2) for JS, with host addresses patched into the argument at the door. The argument and every bytes patch are copied, the
// kernel works on the copies, and what it wrote is copied back with the patched pointers zeroed: no host address is ever seen by JS,
// and nothing that JS may free or move is in the kernel's hands. Sync calls on the JS thread, async ones on a thread of their own.
#include <sys/ioctl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "addon.h"
#include "async_task.h"
#include "copied_bytes.h"
#include "errors.h"
#include "guest_ram.h"
#include "page_bitmap.h"

namespace ferry {
namespace {

struct IoctlCall {
  std::string name;
  int fd = -1;
  unsigned long request = 0;
  bool isNumber = false;
  unsigned long number = 0;
  CopiedBytes arg;
  std::vector<size_t> patchedAt;
  std::vector<CopiedBytes> bytes;
  /** Keep what the patches name mapped for the length of the call. */
  std::vector<std::shared_ptr<Mapping>> mappings;
  std::vector<std::shared_ptr<BitmapWords>> bitmaps;
  int result = -1;
  int err = 0;

  void Run() {
    result = ioctl(fd, request, isNumber ? reinterpret_cast<void*>(number) : arg.copy.data());
    err = result < 0 ? errno : 0;
  }
};

constexpr unsigned kKvmType = 0xae;   // linux/kvm.h, KVMIO
constexpr unsigned kVfioType = ';';   // linux/vfio.h, VFIO_TYPE; also linux/iommufd.h
constexpr unsigned kVfioBase = 100;

/** KVM structs that end in a counted array: where the kernel writes as far as the count in the first word says. linux/kvm.h */
struct Counted {
  unsigned number;
  size_t header;
  size_t entry;
};
constexpr Counted kCounted[] = {
    {0x02, 4, 4},    // KVM_GET_MSR_INDEX_LIST
    {0x0a, 4, 4},    // KVM_GET_MSR_FEATURE_INDEX_LIST
    {0x05, 8, 40},   // KVM_GET_SUPPORTED_CPUID
    {0x09, 8, 40},   // KVM_GET_EMULATED_CPUID
    {0x90, 8, 40},   // KVM_SET_CPUID2
    {0x91, 8, 40},   // KVM_GET_CPUID2
    {0xc1, 8, 40},   // KVM_GET_SUPPORTED_HV_CPUID
    {0x88, 8, 16},   // KVM_GET_MSRS
    {0x89, 8, 16},   // KVM_SET_MSRS
    {0x6a, 8, 48},   // KVM_SET_GSI_ROUTING
    {0x8b, 4, 1},    // KVM_SET_SIGNAL_MASK
};

/** How many bytes the kernel may reach from the start of the argument, as far as the request and the argument itself tell. */
size_t Reach(unsigned long request, const std::vector<uint8_t>& arg) {
  size_t reach = _IOC_DIR(request) == _IOC_NONE ? 0 : _IOC_SIZE(request);
  unsigned type = _IOC_TYPE(request);
  unsigned number = _IOC_NR(request);
  uint32_t first = 0;
  if (arg.size() >= sizeof first) memcpy(&first, arg.data(), sizeof first);
  if (type == kKvmType) {
    for (const Counted& counted : kCounted) {
      if (counted.number == number) reach = counted.header + counted.entry * first;
    }
  } else if (type == kVfioType && number != kVfioBase + 4 && number != kVfioBase + 6) {
    // argsz; VFIO_GROUP_SET_CONTAINER takes an int and VFIO_GROUP_GET_DEVICE_FD a string instead.
    reach = std::max(reach, static_cast<size_t>(first));
  }
  return reach;
}

bool ReadPatch(IoctlCall* call, const Napi::Value& patch) {
  Napi::Env env = patch.Env();
  std::optional<uint64_t> at = ReadSize(PropertyOf(patch, "at"), "patch.at");
  if (!at) return false;
  if (call->isNumber || *at > call->arg.copy.size() || call->arg.copy.size() - *at < 8) {
    ThrowRange(env, call->name + ": patch.at lies outside the argument");
    return false;
  }
  const uint8_t* target = nullptr;
  Napi::Value ram = PropertyOf(patch, "ram");
  Napi::Value mapping = PropertyOf(patch, "mapping");
  Napi::Value bitmap = PropertyOf(patch, "bitmap");
  Napi::Value bytes = PropertyOf(patch, "bytes");
  if (!ram.IsUndefined() || !mapping.IsUndefined()) {
    std::shared_ptr<Mapping> memory = ram.IsUndefined() ? HostMappingOf(mapping) : RamOf(ram);
    if (!memory) return false;
    std::optional<uint64_t> offset = ReadSize(PropertyOf(patch, "offset"), "patch.offset");
    if (!offset) return false;
    std::optional<uint64_t> length = ReadSize(PropertyOf(patch, "length"), "patch.length");
    if (!length) return false;
    if (!memory->Holds(*offset, *length)) {
      ThrowRange(env, call->name + ": patch names memory outside its mapping");
      return false;
    }
    target = memory->base + *offset;
    call->mappings.push_back(std::move(memory));
  } else if (!bitmap.IsUndefined()) {
    std::shared_ptr<BitmapWords> words = BitmapOf(bitmap);
    if (!words) return false;
    std::optional<uint64_t> first = ReadSize(PropertyOf(patch, "firstPage"), "patch.firstPage");
    if (!first) return false;
    std::optional<uint64_t> pages = ReadSize(PropertyOf(patch, "pages"), "patch.pages");
    if (!pages) return false;
    if (*first % 64 != 0 || *first > words->pages || *pages > words->pages - *first) {
      ThrowRange(env, call->name + ": patch names pages outside its bitmap, or firstPage is not a multiple of 64");
      return false;
    }
    target = reinterpret_cast<const uint8_t*>(words->words + *first / 64);
    call->bitmaps.push_back(std::move(words));
  } else {
    std::optional<Bytes> given = ReadBytes(bytes, "patch.bytes");
    if (!given) return false;
    call->bytes.emplace_back(bytes, *given);
    target = call->bytes.back().copy.data();  // a vector keeps its storage when it is moved
  }
  uint64_t address = reinterpret_cast<uint64_t>(target);
  memcpy(call->arg.copy.data() + *at, &address, 8);
  call->patchedAt.push_back(*at);
  return true;
}

/** Arguments (name, fd, request, arg, patches?); false with an exception pending. */
bool ReadCall(const Napi::CallbackInfo& info, IoctlCall* call) {
  Napi::Env env = info.Env();
  call->name = info[0].IsString() ? info[0].As<Napi::String>().Utf8Value() : "ioctl";
  std::optional<int> fd = ReadFd(info[1], "fd");
  if (!fd) return false;
  std::optional<uint64_t> request = ReadSize(info[2], "request");
  if (!request) return false;
  if (*request > 0xffffffff) return ThrowRange(env, "request must fit 32 bits"), false;
  call->fd = *fd;
  call->request = *request;
  if (info[3].IsNumber()) {
    std::optional<uint64_t> number = ReadSize(info[3], "arg");
    if (!number) return false;
    // A number where the kernel wants a pointer would be a host address from JS.
    if (_IOC_SIZE(call->request) != 0) return ThrowType(env, call->name + " takes a struct, not a number"), false;
    call->isNumber = true;
    call->number = *number;
  } else {
    std::optional<Bytes> arg = ReadBytes(info[3], "arg");
    if (!arg) return false;
    call->arg = CopiedBytes(info[3], *arg);
    if (Reach(call->request, call->arg.copy) > arg->length) {
      return ThrowRange(env, call->name + ": the argument is shorter than what the kernel would read or write"), false;
    }
  }
  if (!info[4].IsArray()) return true;
  Napi::Array patches = info[4].As<Napi::Array>();
  for (uint32_t i = 0; i < patches.Length(); i++) {
    if (!ReadPatch(call, patches.Get(i))) return false;
  }
  return true;
}

/** Also after a failure: E2BIG and ENOSPC answers come in the struct. */
void CopyBack(IoctlCall* call) {
  if (call->isNumber) return;
  for (size_t at : call->patchedAt) memset(call->arg.copy.data() + at, 0, 8);
  call->arg.CopyBack();
  for (CopiedBytes& bytes : call->bytes) bytes.CopyBack();
}

Napi::Value Ioctl(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  IoctlCall call;
  if (!ReadCall(info, &call)) return env.Undefined();
  call.Run();
  CopyBack(&call);
  if (call.result < 0) return ThrowSys(env, call.name, call.err);
  return Napi::Number::New(env, call.result);
}

Napi::Value IoctlAsync(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  auto call = std::make_shared<IoctlCall>();
  if (!ReadCall(info, call.get())) return env.Undefined();
  call->arg.Keep();
  for (CopiedBytes& bytes : call->bytes) bytes.Keep();
  return RunOnThread(env, "ioctl", {[call] { call->Run(); },
                                    [call](Napi::Env env, const Deferred& deferred) {
                                      CopyBack(call.get());
                                      if (call->result < 0) {
                                        deferred.Reject(SysErrorValue(env, call->name, call->err));
                                      } else {
                                        deferred.Resolve(Napi::Number::New(env, call->result));
                                      }
                                    }});
}

}  // namespace

void InitIoctl(Napi::Env env, Napi::Object exports) {
  exports.Set("ioctl", Napi::Function::New(env, Ioctl, "ioctl"));
  exports.Set("ioctlAsync", Napi::Function::New(env, IoctlAsync, "ioctlAsync"));
}

}  // namespace ferry
