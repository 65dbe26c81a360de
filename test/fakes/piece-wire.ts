// The stream between two back ends in one process, record by record: pumpPieces() over the fake kernel's fds, over mappings and over bytes,
// as native/addon.ts says of the channel's. A record that the device refuses is consumed all the same.
import type { ChunkPiece, ChunkSink, ChunkSource, PumpResult } from '../../devices/contract.ts';
import { SysError } from '../../native/errno.ts';
import type { LegacyKernel } from './legacy-kernel.ts';

const EIO = 5;

const lengthOf = (piece: ChunkPiece) => ('bytes' in piece ? piece.bytes.length : piece.length);

export class RecordSink implements ChunkSink {
  readonly records: Uint8Array[] = [];
  /** Of each record: 'fd', 'mapping', 'bytes' per piece. */
  readonly kinds: string[] = [];
  readonly #kernel: LegacyKernel;
  /** Called in the middle of each pump. */
  during: (() => Promise<unknown>) | null = null;

  constructor(kernel: LegacyKernel) {
    this.#kernel = kernel;
  }

  get bytes(): number {
    return this.records.reduce((sum, { length }) => sum + length, 0);
  }

  async put(chunk: Uint8Array): Promise<void> {
    this.records.push(chunk);
  }

  pump(): Promise<PumpResult> {
    return Promise.reject(new Error('a region has no data fd'));
  }

  async pumpPieces(pieces: readonly ChunkPiece[]): Promise<void> {
    await this.during?.();
    const parts = pieces.map((piece) => {
      if ('bytes' in piece) return piece.bytes;
      const { offset, length } = piece;
      if ('mapping' in piece) return new Uint8Array(piece.mapping.view, offset, length).slice();
      const part = new Uint8Array(length);
      if (this.#kernel.pread(piece.fd, offset, part) !== length) throw new SysError('pread', EIO);
      return part;
    });
    this.records.push(Uint8Array.from(Buffer.concat(parts)));
    this.kinds.push(pieces.map((piece) => ('bytes' in piece ? 'bytes' : 'fd' in piece ? 'fd' : 'mapping')).join('+'));
  }
}

/** One record on its way to a device. */
export class RecordSource implements ChunkSource {
  left: Uint8Array;
  readonly #kernel: LegacyKernel;

  constructor(kernel: LegacyKernel, record: Uint8Array) {
    this.#kernel = kernel;
    this.left = record;
  }

  async take(length: number): Promise<Uint8Array> {
    if (length > this.left.length || length < 1) throw new RangeError(`${length} of ${this.left.length} bytes`);
    const taken = this.left.slice(0, length);
    this.left = this.left.subarray(length);
    return taken;
  }

  pump(): Promise<void> {
    return Promise.reject(new Error('a region has no data fd'));
  }

  async pumpPieces(pieces: readonly ChunkPiece[]): Promise<void> {
    const bytes = await this.take(pieces.reduce((sum, piece) => sum + lengthOf(piece), 0));
    let at = 0;
    for (const piece of pieces) {
      const part = bytes.subarray(at, at + lengthOf(piece));
      at += part.length;
      if ('bytes' in piece) piece.bytes.set(part);
      else if ('mapping' in piece) new Uint8Array(piece.mapping.view, piece.offset, piece.length).set(part);
      else if (this.#kernel.pwrite(piece.fd, piece.offset, part) !== part.length) throw new SysError('pwrite', EIO);
    }
  }
}
