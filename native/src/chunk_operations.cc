// Implementation of chunk_operations.h: every piece is checked here, once. Descriptors are duplicated, mappings held and bytes copied, so that
// whatever JS closes, unmaps or transfers while the record is under way is its own affair.
#include "chunk_operations.h"

#include <list>
#include <utility>

#include "chunk_pieces.h"
#include "copied_bytes.h"
#include "errors.h"

namespace ferry {
namespace {

/** Of one record. A chunk of a device is a few MiB; a length beyond this is nonsense from somewhere. */
constexpr uint64_t kMaxRecord = uint64_t{1} << 30;
constexpr uint32_t kMaxPieces = 1024;

/** The pieces of one call and what holds them. The references are dropped on the JS thread, as those of any operation. */
struct Pieces {
  std::vector<ChunkPiece> pieces;
  /** A list: pieces point into the copies. */
  std::list<CopiedBytes> bytes;
  /** One duplicate for each fd number, however many pieces name it. */
  std::vector<std::pair<int, std::shared_ptr<RegionFd>>> regions;
  uint64_t total = 0;

  /** On the lane's thread when it is done: a device must not stay in use until JS has time for the promise, or for ever without one. */
  Failure Done(Failure failure) {
    pieces.clear();
    regions.clear();
    return failure;
  }
};

/** Adds `length` to the record; false with an exception pending when that is more than it may hold. */
bool Grow(Napi::Env env, Pieces& all, uint64_t length) {
  if (length > kMaxRecord - all.total) return ThrowRange(env, "one record has 1 GiB of device data at most"), false;
  all.total += length;
  return true;
}

/** offset and length of a piece; false with an exception pending. */
bool ReadSpan(const Napi::Value& value, Pieces& all, ChunkPiece& piece) {
  std::optional<uint64_t> offset = ReadSize(PropertyOf(value, "offset"), "piece.offset");
  if (!offset) return false;
  std::optional<uint64_t> length = ReadSize(PropertyOf(value, "length"), "piece.length");
  if (!length || !Grow(value.Env(), all, *length)) return false;
  piece.offset = *offset;
  piece.length = *length;
  return true;
}

bool ReadMapped(const Napi::Value& value, const Napi::Value& mapping, bool writes, Pieces& all) {
  ChunkPiece piece;
  if (!(piece.mapping = HostMappingOf(mapping)) || !ReadSpan(value, all, piece)) return false;
  if (!piece.mapping->Holds(piece.offset, piece.length)) {
    return ThrowRange(value.Env(), "a piece names memory outside its mapping"), false;
  }
  // A store into a read-only mapping is a signal that would end the process.
  if (writes && !piece.mapping->writable) return ThrowType(value.Env(), "a piece names a mapping that is read-only"), false;
  piece.memory = piece.mapping->base + piece.offset;
  all.pieces.push_back(std::move(piece));
  return true;
}

std::shared_ptr<RegionFd> Duplicate(Napi::Env env, int fd, Pieces& all) {
  for (const auto& [number, region] : all.regions) {
    if (number == fd) return region;
  }
  auto region = std::make_shared<RegionFd>(fd);
  if (region->error() != 0) return ThrowSys(env, "dup(device fd)", region->error()), nullptr;
  all.regions.emplace_back(fd, region);
  return region;
}

bool ReadRegion(const Napi::Value& value, const Napi::Value& number, Pieces& all) {
  ChunkPiece piece;
  std::optional<int> fd = ReadFd(number, "piece.fd");
  if (!fd || !ReadSpan(value, all, piece)) return false;
  if (piece.offset > INT64_MAX - piece.length) return ThrowRange(value.Env(), "a piece ends beyond offset 2^63"), false;
  if (!(piece.region = Duplicate(value.Env(), *fd, all))) return false;
  all.pieces.push_back(std::move(piece));
  return true;
}

bool ReadPiece(const Napi::Value& value, bool writes, Pieces& all) {
  Napi::Value mapping = PropertyOf(value, "mapping");
  if (!mapping.IsUndefined()) return ReadMapped(value, mapping, writes, all);
  Napi::Value fd = PropertyOf(value, "fd");
  if (!fd.IsUndefined()) return ReadRegion(value, fd, all);
  Napi::Value array = PropertyOf(value, "bytes");
  std::optional<Bytes> bytes = ReadBytes(array, "piece.bytes");
  if (!bytes || !Grow(value.Env(), all, bytes->length)) return false;
  CopiedBytes& copied = all.bytes.emplace_back(array, *bytes);
  if (writes) copied.Keep();
  ChunkPiece piece;
  piece.memory = copied.copy.data();
  piece.length = bytes->length;
  all.pieces.push_back(std::move(piece));
  return true;
}

/** `writes`: the pieces are to be filled. Null with an exception pending. */
std::shared_ptr<Pieces> ReadPieces(const Napi::Value& value, bool writes) {
  Napi::Env env = value.Env();
  if (!value.IsArray()) return ThrowType(env, "pieces must be an array"), nullptr;
  Napi::Array given = value.As<Napi::Array>();
  uint32_t count = given.Length();
  if (count > kMaxPieces) return ThrowRange(env, "one record has 1024 pieces at most"), nullptr;
  auto all = std::make_shared<Pieces>();
  for (uint32_t i = 0; i < count; i++) {
    Napi::Value piece = given.Get(i);
    if (env.IsExceptionPending() || !ReadPiece(piece, writes, *all)) return nullptr;
  }
  if (env.IsExceptionPending()) return nullptr;
  if (all->total == 0) return ThrowRange(env, "one record has at least one byte of device data"), nullptr;
  return all;
}

}  // namespace

std::shared_ptr<Operation> PiecesFromOperation(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  std::shared_ptr<Pieces> all = ReadPieces(info[0], false);
  if (!all) return nullptr;
  if (!info[1].IsBigInt()) return ThrowType(env, "tag must be a bigint"), nullptr;
  bool lossless = false;
  uint64_t tag = info[1].As<Napi::BigInt>().Uint64Value(&lossless);
  if (!lossless) return ThrowRange(env, "tag must be from 0 to 2^64-1"), nullptr;
  auto operation = std::make_shared<Operation>(env, true);
  operation->work = [all, tag](Session& session) { return all->Done(PumpPiecesFrom(session.tx, all->pieces, tag)); };
  return operation;
}

std::shared_ptr<Operation> PiecesToOperation(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  std::shared_ptr<Pieces> all = ReadPieces(info[0], true);
  if (!all) return nullptr;
  auto operation = std::make_shared<Operation>(env, false);
  operation->work = [all](Session& session) { return all->Done(PumpPiecesTo(session.rx, all->pieces)); };
  operation->result = [all](Napi::Env env) -> Napi::Value {
    for (CopiedBytes& bytes : all->bytes) bytes.CopyBack();
    return env.Undefined();
  };
  return operation;
}

}  // namespace ferry
