// Empties a vCPU's dirty ring of KVM into a bitmap of guest RAM: harvestDirtyRing of native/addon.ts. JS thread; KVM writes the ring from
// the vCPU's thread meanwhile, so flags are read with acquire and given back with release order. Spec: KVM api.rst, 8.29
// KVM_CAP_DIRTY_LOG_RING: an entry goes from empty to DIRTY (KVM), to RESET (here), to empty again (KVM_RESET_DIRTY_RINGS).
#include <optional>
#include <vector>

#include "addon.h"
#include "errors.h"
#include "guest_ram.h"
#include "page_bitmap.h"

namespace ferry {
namespace {

constexpr uint32_t kDirty = 1;
constexpr uint32_t kReset = 2;
/** What a ring may hold at most (64 Ki entries) is far below. */
constexpr uint64_t kMaxBanks = 64;

struct Entry {
  uint32_t flags;
  uint32_t slot;
  uint64_t offset;
};
static_assert(sizeof(Entry) == 16, "linux/kvm.h, struct kvm_dirty_gfn");

struct Bank {
  uint32_t slot;
  uint64_t firstPage;
  uint64_t pages;
};

/** Triples of slot, first page and pages. */
std::optional<std::vector<Bank>> ReadBanks(const Napi::Value& value) {
  Napi::Env env = value.Env();
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_float64_array) {
    ThrowType(env, "banks must be a Float64Array");
    return std::nullopt;
  }
  Napi::Float64Array numbers = value.As<Napi::Float64Array>();
  if (numbers.ElementLength() % 3 != 0 || numbers.ElementLength() > 3 * kMaxBanks) {
    ThrowRange(env, "banks must be triples, 64 at most");
    return std::nullopt;
  }
  std::vector<Bank> banks;
  for (size_t at = 0; at < numbers.ElementLength(); at += 3) {
    double slot = numbers[at], first = numbers[at + 1], pages = numbers[at + 2];
    if (!(slot >= 0 && slot <= UINT16_MAX && first >= 0 && first <= 9e15 && pages >= 0 && pages <= 9e15)) {
      ThrowRange(env, "banks: a number is out of range");
      return std::nullopt;
    }
    banks.push_back({static_cast<uint32_t>(slot), static_cast<uint64_t>(first), static_cast<uint64_t>(pages)});
  }
  return banks;
}

void Mark(const Entry& entry, const std::vector<Bank>& banks, BitmapWords& bitmap) {
  for (const Bank& bank : banks) {
    // Bits 16-31 are the address space: SMM, which our guests do not have.
    if (bank.slot != entry.slot || entry.offset >= bank.pages) continue;
    uint64_t page = bank.firstPage + entry.offset;
    if (page < bitmap.pages) bitmap.SetRange(page, 1);
    return;
  }
}

/** The ring's entries; null with an exception pending when this is no ring. */
Entry* EntriesOf(Napi::Env env, const Mapping& ring, uint64_t& count) {
  count = ring.size / sizeof(Entry);
  if (count != 0 && (count & (count - 1)) == 0) return reinterpret_cast<Entry*>(ring.base);
  ThrowRange(env, "a dirty ring has a power of two of entries");
  return nullptr;
}

uint32_t StateOf(const Entry& entry) { return __atomic_load_n(&entry.flags, __ATOMIC_ACQUIRE) & (kDirty | kReset); }

Napi::Value HarvestDirtyRing(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  std::shared_ptr<Mapping> ring = HostMappingOf(info[0]);
  if (!ring) return env.Undefined();
  std::optional<uint64_t> next = ReadSize(info[1], "next");
  if (!next) return env.Undefined();
  std::shared_ptr<BitmapWords> bitmap = BitmapOf(info[2]);
  if (!bitmap) return env.Undefined();
  std::optional<std::vector<Bank>> banks = ReadBanks(info[3]);
  if (!banks) return env.Undefined();
  uint64_t count = 0;
  Entry* entries = EntriesOf(env, *ring, count);
  if (entries == nullptr) return env.Undefined();
  uint64_t harvested = 0;
  for (; harvested < count; harvested++) {
    Entry& entry = entries[(*next + harvested) & (count - 1)];
    if (StateOf(entry) != kDirty) break;
    Mark(entry, *banks, *bitmap);
    __atomic_store_n(&entry.flags, kReset, __ATOMIC_RELEASE);
  }
  return Napi::Number::New(env, static_cast<double>(harvested));
}

/**
 * KVM fills a ring in order, so an entry that is DIRTY behind one that is not means that KVM went past entries that were not taken yet.
 * The entry at `next` is looked at again after the others: KVM may have gone on meanwhile. The gap is given back, or KVM would wait for it.
 */
Napi::Value RejoinDirtyRing(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  std::shared_ptr<Mapping> ring = HostMappingOf(info[0]);
  if (!ring) return env.Undefined();
  std::optional<uint64_t> next = ReadSize(info[1], "next");
  if (!next) return env.Undefined();
  uint64_t count = 0;
  Entry* entries = EntriesOf(env, *ring, count);
  if (entries == nullptr) return env.Undefined();
  auto at = [&](uint64_t gap) -> Entry& { return entries[(*next + gap) & (count - 1)]; };
  uint64_t gap = 0;
  while (gap < count && StateOf(at(gap)) != kDirty) gap++;
  if (gap == count || StateOf(at(0)) == kDirty) return Napi::Number::New(env, 0);
  for (uint64_t lost = 0; lost < gap; lost++) __atomic_store_n(&at(lost).flags, kReset, __ATOMIC_RELEASE);
  return Napi::Number::New(env, static_cast<double>(gap));
}

}  // namespace

void InitDirtyRing(Napi::Env env, Napi::Object exports) {
  exports.Set("harvestDirtyRing", Napi::Function::New(env, HarvestDirtyRing, "harvestDirtyRing"));
  exports.Set("rejoinDirtyRing", Napi::Function::New(env, RejoinDirtyRing, "rejoinDirtyRing"));
}

}  // namespace ferry
