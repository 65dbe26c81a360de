// What the pieces of a chunk of device state hold and take, in plain JS: how MemoryChannel does native/addon.ts's pumpPieces calls. Written
// from the contract, not from the C++ pumps: an oracle for them too.
import { readSync, writeSync } from 'node:fs';
import type { ChunkPiece } from '../../native/addon.ts';
import { SysError } from '../../native/errno.ts';

const EIO = 5;
const GIB = 2 ** 30;

export function lengthOf(piece: ChunkPiece): number {
  return 'bytes' in piece ? piece.bytes.length : piece.length;
}

export function totalOf(pieces: readonly ChunkPiece[]): number {
  const total = pieces.reduce((sum, piece) => sum + lengthOf(piece), 0);
  if (total < 1 || total > GIB) throw new RangeError(`a record of ${total} bytes of device data`);
  return total;
}

/** What an fd made of `length` bytes at once: anything but all of them is a refusal. */
function whole(call: string, length: number, access: () => number): void {
  let done = 0;
  try {
    done = access();
  } catch (error) {
    throw new SysError(call, -(error as { errno: number }).errno);
  }
  if (done !== length) throw new SysError(`${call}: only ${done} of ${length} bytes taken`, EIO);
}

export function bytesOf(piece: ChunkPiece): Uint8Array {
  if ('bytes' in piece) return piece.bytes;
  if ('mapping' in piece) return new Uint8Array(piece.mapping.view, piece.offset, piece.length);
  const { fd, offset, length } = piece;
  const bytes = new Uint8Array(length);
  if (length > 0) whole('pread(device region)', length, () => readSync(fd, bytes, 0, length, offset));
  return bytes;
}

export function fill(piece: ChunkPiece, from: Uint8Array): void {
  if (from.length === 0) return;
  if ('bytes' in piece) piece.bytes.set(from);
  else if ('mapping' in piece) new Uint8Array(piece.mapping.view, piece.offset, piece.length).set(from);
  else whole('pwrite(device region)', from.length, () => writeSync(piece.fd, from, 0, from.length, piece.offset));
}
