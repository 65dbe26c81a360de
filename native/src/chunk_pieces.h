// One chunk of device state as a record of a Channel, made of pieces of a migration region: bytes of a mapped window, of the device fd at an
// offset, and headers. Called by the operations of chunk_operations.cc on a Channel's tx and rx threads; no JS in here.
// linux/vfio.h before 5.18, struct vfio_device_migration_info: data lies in the region at data_offset, mapped windows and gaps in turn.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "guest_ram.h"
#include "region_fd.h"
#include "wire.h"

namespace ferry {

/** Either `memory` (of `mapping`, which it keeps mapped, or of whoever made the piece) or `region`. */
struct ChunkPiece {
  std::shared_ptr<Mapping> mapping;
  uint8_t* memory = nullptr;
  std::shared_ptr<RegionFd> region;
  uint64_t offset = 0;
  uint64_t length = 0;
};

/** tag u64 BE, length of all u64 BE, bytes. When the region pieces are small enough to be read ahead, a refused one leaves no trace. */
Failure PumpPiecesFrom(TxWire& wire, const std::vector<ChunkPiece>& pieces, uint64_t tag);

/** As many bytes of the stream as the pieces hold. When a region refuses, the bytes are consumed all the same, as with PumpTo. */
Failure PumpPiecesTo(RxWire& wire, const std::vector<ChunkPiece>& pieces);

}  // namespace ferry
