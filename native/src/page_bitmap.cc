// PageBitmap of native/addon.ts: the words, the merge of dirty sources and the scan for runs. JS thread (and one channel thread
// while it sends). Anonymous mmap rather than malloc, so that fill and zero of 32 MiB do not fragment the heap and start page-aligned
// (KVM and VFIO want an aligned user pointer).
#include "page_bitmap.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>
#include <vector>

#include "addon.h"
#include "async_task.h"
#include "bit_mover.h"
#include "errors.h"
#include "region_fd.h"

namespace ferry {
namespace {

constexpr uint64_t kPage = 4096;
constexpr napi_type_tag kBitmapTag = {0x6665727279000003, 0x706167656269746d};

uint64_t* MapWords(uint64_t count) {
  void* words = mmap(nullptr, count * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return words == MAP_FAILED ? nullptr : static_cast<uint64_t*>(words);
}

/** Where the bits of a report stand: bit n is the granule at start + n * granule, in bytes of RAM. */
struct Report {
  uint64_t start;
  uint64_t granule;
};

/** Calls `each(word, mask)` for the words that [first, first+length) touches. */
template <class Each>
void ForRange(uint64_t first, uint64_t length, Each each) {
  while (length > 0) {
    uint64_t bit = first % 64;
    uint64_t taken = std::min(length, 64 - bit);
    uint64_t mask = taken == 64 ? ~uint64_t{0} : ((uint64_t{1} << taken) - 1) << bit;
    each(first / 64, mask);
    first += taken;
    length -= taken;
  }
}

}  // namespace

BitmapWords::BitmapWords(uint64_t pages) : pages(pages), count((pages + 63) / 64), words(MapWords(count)) {}
BitmapWords::~BitmapWords() {
  if (words != nullptr) munmap(words, count * 8);
}

uint64_t BitmapWords::Population() const {
  uint64_t total = 0;
  for (uint64_t i = 0; i < count; i++) total += static_cast<uint64_t>(__builtin_popcountll(words[i]));
  return total;
}
void BitmapWords::SetRange(uint64_t first, uint64_t length) {
  ForRange(first, length, [this](uint64_t word, uint64_t mask) { words[word] |= mask; });
}
void BitmapWords::ClearRange(uint64_t first, uint64_t length) {
  ForRange(first, length, [this](uint64_t word, uint64_t mask) { words[word] &= ~mask; });
}
void BitmapWords::Zero() { memset(words, 0, count * 8); }

void BitmapWords::Or(const BitmapWords& other) {
  // Four words at a time: memory is the limit (node-performance.md section 5), the vector form only keeps the loop out of the way.
  typedef uint64_t Quad __attribute__((vector_size(32), aligned(8)));
  uint64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    *reinterpret_cast<Quad*>(words + i) |= *reinterpret_cast<const Quad*>(other.words + i);
  }
  for (; i < count; i++) words[i] |= other.words[i];
}

uint64_t BitmapWords::Take(BitmapWords& other) { return BestMover()(words, other.words, count); }

uint64_t BitmapWords::NextSet(uint64_t from) const {
  if (from >= pages) return pages;
  uint64_t word = words[from / 64] >> (from % 64) << (from % 64);
  for (uint64_t i = from / 64;;) {
    if (word != 0) return i * 64 + static_cast<uint64_t>(__builtin_ctzll(word));
    if (++i >= count) return pages;
    word = words[i];
  }
}
uint64_t BitmapWords::NextClear(uint64_t from) const {
  if (from >= pages) return pages;
  uint64_t word = ~words[from / 64] >> (from % 64) << (from % 64);
  for (uint64_t i = from / 64;;) {
    if (word != 0) return std::min(pages, i * 64 + static_cast<uint64_t>(__builtin_ctzll(word)));
    if (++i >= count) return pages;
    word = ~words[i];
  }
}

namespace {

/** A report is read as a whole before it counts: 1 GiB. Regions of devices are far smaller. */
constexpr uint64_t kMaxReportBits = uint64_t{1} << 33;

/** How many granules of the report begin in the bitmap. */
uint64_t GranulesInside(const BitmapWords& words, const Report& report) {
  uint64_t end = words.pages * kPage;
  return report.start >= end ? 0 : (end - report.start + report.granule - 1) / report.granule;
}

/** ORs every page that a set one of the first `count` granules touches; they begin in the bitmap, the last may end beyond. */
void OrReport(BitmapWords& words, const Report& report, const uint8_t* bits, uint64_t count) {
  if (report.granule == kPage && report.start % (kPage * 64) == 0) {
    uint64_t* into = words.words + report.start / kPage / 64;
    for (; count >= 64; count -= 64, bits += 8, into++) {
      uint64_t word;
      memcpy(&word, bits, 8);
      *into |= word;
    }
    uint64_t rest = 0;
    memcpy(&rest, bits, (count + 7) / 8);
    rest &= (uint64_t{1} << count) - 1;
    if (rest != 0) *into |= rest;
    return;
  }
  for (uint64_t byte = 0; byte * 8 < count; byte++) {
    unsigned left = bits[byte];
    if (count - byte * 8 < 8) left &= (1u << (count - byte * 8)) - 1;
    for (; left != 0; left &= left - 1) {
      uint64_t at = report.start + (byte * 8 + static_cast<uint64_t>(__builtin_ctz(left))) * report.granule;
      uint64_t end = std::min(words.pages, (at + report.granule + kPage - 1) / kPage);
      words.SetRange(at / kPage, end - at / kPage);
    }
  }
}

/** start and granule of a report; nullopt with an exception pending. */
std::optional<Report> ReadReport(const Napi::Value& start, const Napi::Value& granule) {
  std::optional<uint64_t> first = ReadSize(start, "start");
  if (!first) return std::nullopt;
  std::optional<uint64_t> size = ReadSize(granule, "granule");
  if (!size) return std::nullopt;
  if (*size < 512 || *size > (uint64_t{1} << 40) || (*size & (*size - 1)) != 0) {
    ThrowRange(granule.Env(), "granule must be a power of two from 512 to 2^40");
    return std::nullopt;
  }
  return Report{*first, *size};
}

/** One orFrom. The read is on a thread of its own, the OR on the JS thread, whose the bitmap is. */
struct OrFromCall {
  std::shared_ptr<BitmapWords> words;
  std::unique_ptr<RegionFd> fd;
  uint64_t offset = 0;
  uint64_t bits = 0;
  Report report{};
  std::unique_ptr<uint8_t[]> bytes;
  ssize_t got = 0;

  uint64_t length() const { return (bits + 7) / 8; }
  void Run() {
    if (length() > 0) got = fd->ReadAt(bytes.get(), length(), offset);
    // Here, not with the call: that is left behind when the environment has ended, and a device would stay in use.
    fd.reset();
  }
};

Napi::Value StartOrFrom(Napi::Env env, std::shared_ptr<OrFromCall> call, int fd) {
  call->fd = std::make_unique<RegionFd>(fd);
  call->bytes.reset(new (std::nothrow) uint8_t[call->length()]);
  int err = call->bytes == nullptr ? ENOMEM : call->fd->error();
  if (err != 0) {
    auto deferred = Deferred::New(env);
    deferred.Reject(SysErrorValue(env, "pread(dirty bits)", err));
    return deferred.Promise();
  }
  return RunOnThread(
      env, "dirty bits", {[call] { call->Run(); },
                          [call](Napi::Env env, const Deferred& deferred) {
                            bool all = call->got >= 0 && static_cast<uint64_t>(call->got) == call->length();
                            if (!all) {
                              return deferred.Reject(SysErrorValue(env, "pread(dirty bits)", call->got < 0 ? -call->got : EIO));
                            }
                            uint64_t inside = std::min(call->bits, GranulesInside(*call->words, call->report));
                            OrReport(*call->words, call->report, call->bytes.get(), inside);
                            deferred.Resolve(env.Undefined());
                          }});
}

class PageBitmap : public Napi::ObjectWrap<PageBitmap> {
 public:
  explicit PageBitmap(const Napi::CallbackInfo& info) : ObjectWrap(info) {
    if (info.Length() == 1 && info[0].IsExternal()) {
      bitmap_ = *info[0].As<Napi::External<std::shared_ptr<BitmapWords>>>().Data();
      info.This().As<Napi::Object>().TypeTag(&kBitmapTag);
    }
  }
  static Napi::Function Define(Napi::Env env) {
    return DefineClass(env, "PageBitmap",
                       {
                           InstanceAccessor<&PageBitmap::Pages>("pages"),
                           InstanceAccessor<&PageBitmap::Count>("count"),
                           InstanceMethod<&PageBitmap::Set>("set"),
                           InstanceMethod<&PageBitmap::Clear>("clear"),
                           InstanceMethod<&PageBitmap::Test>("test"),
                           InstanceMethod<&PageBitmap::Fill>("fill"),
                           InstanceMethod<&PageBitmap::Zero>("zero"),
                           InstanceMethod<&PageBitmap::Or>("or"),
                           InstanceMethod<&PageBitmap::Take>("take"),
                           InstanceMethod<&PageBitmap::CopyFrom>("copyFrom"),
                           InstanceMethod<&PageBitmap::OrBytes>("orBytes"),
                           InstanceMethod<&PageBitmap::OrFrom>("orFrom"),
                           InstanceMethod<&PageBitmap::Runs>("runs"),
                           InstanceMethod<&PageBitmap::Close>("close"),
                       });
  }
  const std::shared_ptr<BitmapWords>& bitmap() const { return bitmap_; }

 private:
  bool Open(Napi::Env env) {
    if (bitmap_) return true;
    ThrowType(env, "PageBitmap is closed");
    return false;
  }
  Napi::Value Pages(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), bitmap_ ? static_cast<double>(bitmap_->pages) : 0);
  }
  Napi::Value Count(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    if (!Open(env)) return env.Undefined();
    return Napi::Number::New(env, static_cast<double>(bitmap_->Population()));
  }
  bool ReadPages(const Napi::CallbackInfo& info, uint64_t* first, uint64_t* length) {
    Napi::Env env = info.Env();
    if (!Open(env)) return false;
    std::optional<uint64_t> at = ReadSize(info[0], "first page");
    if (!at) return false;
    std::optional<uint64_t> pages = ReadSize(info[1], "pages");
    if (!pages) return false;
    if (*at > bitmap_->pages || *pages > bitmap_->pages - *at) {
      ThrowRange(env, "pages lie outside the bitmap");
      return false;
    }
    *first = *at;
    *length = *pages;
    return true;
  }
  Napi::Value Set(const Napi::CallbackInfo& info) {
    uint64_t first, length;
    if (ReadPages(info, &first, &length)) bitmap_->SetRange(first, length);
    return info.Env().Undefined();
  }
  Napi::Value Clear(const Napi::CallbackInfo& info) {
    uint64_t first, length;
    if (ReadPages(info, &first, &length)) bitmap_->ClearRange(first, length);
    return info.Env().Undefined();
  }
  Napi::Value Test(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    if (!Open(env)) return env.Undefined();
    std::optional<uint64_t> page = ReadSize(info[0], "page");
    if (!page) return env.Undefined();
    if (*page >= bitmap_->pages) return ThrowRange(env, "page lies outside the bitmap");
    return Napi::Boolean::New(env, bitmap_->Test(*page));
  }
  Napi::Value Fill(const Napi::CallbackInfo& info) {
    if (Open(info.Env())) bitmap_->SetRange(0, bitmap_->pages);
    return info.Env().Undefined();
  }
  Napi::Value Zero(const Napi::CallbackInfo& info) {
    if (Open(info.Env())) bitmap_->Zero();
    return info.Env().Undefined();
  }
  std::shared_ptr<BitmapWords> Twin(const Napi::CallbackInfo& info) {
    if (!Open(info.Env())) return nullptr;
    std::shared_ptr<BitmapWords> other = BitmapOf(info[0]);
    if (other && other->pages != bitmap_->pages) {
      ThrowRange(info.Env(), "the bitmaps differ in size");
      return nullptr;
    }
    return other;
  }
  Napi::Value Or(const Napi::CallbackInfo& info) {
    if (std::shared_ptr<BitmapWords> other = Twin(info)) bitmap_->Or(*other);
    return info.Env().Undefined();
  }
  Napi::Value Take(const Napi::CallbackInfo& info) {
    std::shared_ptr<BitmapWords> other = Twin(info);
    if (!other) return info.Env().Undefined();
    if (other == bitmap_) return ThrowRange(info.Env(), "a bitmap cannot take its own bits");
    return Napi::Number::New(info.Env(), static_cast<double>(bitmap_->Take(*other)));
  }
  Napi::Value CopyFrom(const Napi::CallbackInfo& info) {
    std::shared_ptr<BitmapWords> other = Twin(info);
    if (other && other != bitmap_) memcpy(bitmap_->words, other->words, bitmap_->count * 8);
    return info.Env().Undefined();
  }
  Napi::Value OrBytes(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    if (!Open(env)) return env.Undefined();
    std::shared_ptr<BitmapWords> words = bitmap_;
    std::optional<Report> report = ReadReport(info[0], info[2]);
    if (!report) return env.Undefined();
    std::optional<Bytes> bits = ReadBytes(info[1], "bits");
    if (!bits) return env.Undefined();
    uint64_t inside = std::min<uint64_t>(bits->length * 8, GranulesInside(*words, *report));
    OrReport(*words, *report, bits->data, inside);
    for (uint64_t bit = inside; bit < bits->length * 8; bit++) {
      if (bits->data[bit / 8] == 0) bit |= 7;
      else if (((bits->data[bit / 8] >> (bit % 8)) & 1) != 0) return ThrowRange(env, "a set bit lies beyond the bitmap");
    }
    return env.Undefined();
  }
  Napi::Value OrFrom(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    if (!Open(env)) return env.Undefined();
    auto call = std::make_shared<OrFromCall>();
    call->words = bitmap_;
    std::optional<int> fd = ReadFd(PropertyOf(info[0], "fd"), "source.fd");
    if (!fd) return env.Undefined();
    std::optional<uint64_t> offset = ReadSize(PropertyOf(info[0], "offset"), "source.offset");
    if (!offset) return env.Undefined();
    std::optional<uint64_t> bits = ReadSize(PropertyOf(info[0], "bits"), "source.bits");
    if (!bits) return env.Undefined();
    std::optional<Report> report = ReadReport(info[1], info[2]);
    if (!report) return env.Undefined();
    if (*bits > kMaxReportBits) return ThrowRange(env, "a report has 2^33 bits at most");
    if (*offset > INT64_MAX - kMaxReportBits) return ThrowRange(env, "source.offset must be below 2^63");
    call->offset = *offset;
    call->bits = *bits;
    call->report = *report;
    return StartOrFrom(env, std::move(call), *fd);
  }
  Napi::Value Runs(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    if (!Open(env)) return env.Undefined();
    std::optional<uint64_t> from = ReadSize(info[0], "from page");
    if (!from) return env.Undefined();
    std::optional<uint64_t> limit = ReadSize(info[1], "limit");
    if (!limit) return env.Undefined();
    std::vector<double> pairs;
    for (uint64_t at = *from; pairs.size() / 2 < *limit;) {
      uint64_t first = bitmap_->NextSet(at);
      if (first >= bitmap_->pages) break;
      at = bitmap_->NextClear(first);
      pairs.push_back(static_cast<double>(first));
      pairs.push_back(static_cast<double>(at - first));
    }
    Napi::Float64Array runs = Napi::Float64Array::New(env, pairs.size());
    if (!pairs.empty() && !runs.IsEmpty()) memcpy(runs.Data(), pairs.data(), pairs.size() * sizeof(double));
    return runs;
  }
  Napi::Value Close(const Napi::CallbackInfo& info) {
    bitmap_.reset();
    return info.Env().Undefined();
  }

  std::shared_ptr<BitmapWords> bitmap_;
};

Napi::Value CreateBitmap(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  std::optional<uint64_t> pages = ReadSize(info[0], "pages");
  if (!pages) return env.Undefined();
  if (*pages == 0) return ThrowRange(env, "a bitmap has at least one page");
  auto bitmap = std::make_shared<BitmapWords>(*pages);
  if (bitmap->words == nullptr) return ThrowSys(env, "mmap(bitmap)", ENOMEM);
  return AddonData::Of(env)->pageBitmap.New({Napi::External<std::shared_ptr<BitmapWords>>::New(env, &bitmap)});
}

}  // namespace

std::shared_ptr<BitmapWords> BitmapOf(const Napi::Value& value) {
  if (value.IsObject() && value.As<Napi::Object>().CheckTypeTag(&kBitmapTag)) {
    const std::shared_ptr<BitmapWords>& bitmap = PageBitmap::Unwrap(value.As<Napi::Object>())->bitmap();
    if (bitmap) return bitmap;
    ThrowType(value.Env(), "PageBitmap is closed");
    return nullptr;
  }
  ThrowType(value.Env(), "a PageBitmap is needed here");
  return nullptr;
}

void InitPageBitmap(Napi::Env env, Napi::Object exports) {
  AddonData::Of(env)->pageBitmap = Napi::Persistent(PageBitmap::Define(env));
  exports.Set("createBitmap", Napi::Function::New(env, CreateBitmap, "createBitmap"));
}

}  // namespace ferry
