// The ioctl part of tracer_calls.h: the argument before and after the call, what it points to, and the fd that may come out of it, all
// by the caller's tables. What cannot be read is left out; a tracee's nonsense is its own.
#include <cstring>

#include "tracer_calls.h"
#include "tracer_memory.h"

namespace ferry {
namespace {

constexpr size_t kLongest = 64 << 10;
/** An argument that tells no size: enough to see what it is. */
constexpr size_t kUnsized = 64;
constexpr size_t kFlagsAt = 4;

uint32_t Word(const ByteList& bytes, size_t at) {
  uint32_t value = 0;
  if (at + sizeof value <= bytes.size()) memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}
uint64_t Wide(const ByteList& bytes, size_t at) {
  uint64_t value = 0;
  if (at + sizeof value <= bytes.size()) memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

size_t ArgumentSize(const TraceRules& rules, const TracedThread& thread) {
  uint32_t request = static_cast<uint32_t>(thread.args[1]);
  for (const TraceRules::Size& size : rules.sizes) {
    if (size.request == request) return size.bytes;
  }
  uint32_t told = 0;
  if (!ReadValue(thread.tid, thread.args[2], &told)) return 0;
  return told >= 8 && told <= kLongest ? told : kUnsized;
}

/** The feature of a call is the low half of its flags. linux/vfio.h, struct vfio_device_feature */
bool FeatureFits(uint32_t feature, const ByteList& argument) {
  return feature == kAny || (Word(argument, kFlagsAt) & 0xffff) == feature;
}

uint64_t PointedBytes(const TraceRules::Pointer& row, const ByteList& argument) {
  switch (row.length) {
    case kCountTimes:
      return static_cast<uint64_t>(Word(argument, row.a)) * row.b;
    case kSize32:
      return Word(argument, row.a);
    case kSize64:
      return Wide(argument, row.a);
    case kBitmap: {
      uint64_t page = Wide(argument, row.b);
      // The kernel writes whole 64-bit words.
      return page == 0 ? 0 : (Wide(argument, row.a) / page + 63) / 64 * 8;
    }
    default:
      return 0;
  }
}

}  // namespace

void TracerCalls::EnterIoctl(TracedThread* thread) {
  thread->told = Begin(*thread, "ioctl", static_cast<int>(thread->args[0]), thread->file);
  TracedCall& told = thread->told;
  memcpy(told.args, thread->args, sizeof told.args);
  told.before = ReadMemory(thread->tid, thread->args[2], ArgumentSize(rules_, *thread));
  told.hasArgument = !told.before.empty();
  ReadPointed(thread, false);
}

void TracerCalls::LeaveIoctl(TracedThread* thread, int64_t result) {
  TracedCall& told = thread->told;
  told.result = result;
  told.at = thread->at;
  told.seconds = Now() - thread->at;
  if (told.hasArgument) {
    told.after = ReadMemory(thread->tid, thread->args[2], told.before.size());
    if (result >= 0) ReadPointed(thread, true);
  }
  if (result >= 0) FindMade(thread, result);
  Tell(std::move(told));
}

void TracerCalls::ReadPointed(TracedThread* thread, bool after) {
  TracedCall& told = thread->told;
  for (const TraceRules::Pointer& row : rules_.pointers) {
    bool fits = row.kind == told.kind && row.request == static_cast<uint32_t>(thread->args[1]) && (row.after != 0) == after &&
                FeatureFits(row.feature, told.before) && (Word(told.before, kFlagsAt) & row.flags) == row.flags;
    if (!fits) continue;
    uint64_t address = Wide(told.before, row.at);
    // As given: an answer may say how much there would have been.
    uint64_t length = PointedBytes(row, told.before);
    if (address == 0 || length == 0) continue;
    told.memory.push_back({row.at, after, ReadMemory(thread->tid, address, length)});
  }
}

void TracerCalls::FindMade(TracedThread* thread, int64_t result) {
  TracedCall& told = thread->told;
  for (const TraceRules::Maker& row : rules_.makers) {
    bool fits = row.kind == told.kind && row.request == static_cast<uint32_t>(thread->args[1]) && FeatureFits(row.feature, told.before);
    if (!fits) continue;
    int fd = row.at == kAny ? static_cast<int>(result) : row.at + 4 <= told.after.size() ? static_cast<int>(Word(told.after, row.at)) : -1;
    std::string link = fd < 0 ? std::string() : LinkOf(thread->tid, fd);
    if (link.empty()) continue;
    std::shared_ptr<OpenFile> file = files_.Add(link, row.made);
    (*thread->files)[fd] = file;
    told.madeFd = fd;
    told.madeFile = file->id;
    told.madeKind = file->kind;
    return;
  }
}

}  // namespace ferry
