// The data of a migration region, chunk by chunk, which v1 and v7 share: pending_bytes, data_offset, data_size, data, pending_bytes again.
// Called by region-port.ts, one call at a time: data_offset stages a chunk and the next read of pending_bytes gives it up. A chunk is
// indivisible: one record of the stream, one write of data_size. linux/vfio.h of Linux 5.8, "The sequence to be followed"
import { vfio_device_migration_info_v1 } from '../../../native/abi/vfio-legacy.ts';
import { SysError, VmmError } from '../../../native/errno.ts';
import type { ChunkSink, ChunkSource, PumpResult } from '../../contract.ts';
import type { Field, RegionDoor } from './region-door.ts';

const PENDING_BYTES: Field = { name: 'pending_bytes', at: vfio_device_migration_info_v1.pending_bytes };
const DATA_OFFSET: Field = { name: 'data_offset', at: vfio_device_migration_info_v1.data_offset };
const DATA_SIZE: Field = { name: 'data_size', at: vfio_device_migration_info_v1.data_size };
/** One record of the stream; more is no state but a driver gone wrong. */
export const CHUNK_MAX = 2 ** 30;
/** A part of what is thrown away; Channel.read() gives at most 16 MiB at once. */
const DISCARD = 2 ** 20;

export interface ChunkOptions {
  /** Where the data section may begin: behind the registers. */
  readonly headerBytes: number;
  /** Chunks that are larger than the data section are committed in pieces. Not in the text; QEMU 5.2-7.2 did so. */
  readonly split: boolean;
}

export class RegionChunks {
  readonly #region: RegionDoor;
  readonly #options: ChunkOptions;

  constructor(region: RegionDoor, options: ChunkOptions) {
    this.#region = region;
    this.#options = options;
  }

  /** Has no side effect but giving up the chunk that was read. Rounded above 2^53. */
  async pending(): Promise<number> {
    return Number(await this.#region.readU64(PENDING_BYTES));
  }

  /** Where the driver has put, or wants, its data (v7: or its bitmap). */
  async dataOffset(): Promise<number> {
    const offset = Number(await this.#region.readU64(DATA_OFFSET));
    const { headerBytes } = this.#options;
    if (offset >= headerBytes && offset <= this.#region.size) return offset;
    throw this.#error(
      `its driver's data_offset is ${offset}, which is not between ${headerBytes} and the end of region ${this.#region.index} (${this.#region.size})`,
    );
  }

  /** `stopped`: no more data will come to be, so that 0 bytes to come are the end. */
  async save(sink: ChunkSink, budget: number, stopped: boolean): Promise<PumpResult> {
    for (let bytes = 0, pending = await this.pending(); ; ) {
      if (pending === 0) return { bytes, end: stopped ? 'end' : 'drained' };
      if (bytes >= budget) return { bytes, end: 'more' };
      const length = await this.#saveChunk(sink, pending, stopped);
      bytes += length;
      // Also when the budget is used up: the driver may reuse the chunk's place from here on.
      pending = await this.pending();
      if (length === 0) return { bytes, end: 'drained' };
    }
  }

  /** 0: a running device has nothing to give although it says that some is to come. */
  async #saveChunk(sink: ChunkSink, pending: number, stopped: boolean): Promise<number> {
    const offset = await this.dataOffset();
    const length = Number(await this.#region.readU64(DATA_SIZE));
    if (length === 0 && !stopped) return 0;
    if (length === 0)
      throw this.#error(`its driver says that ${pending} bytes are to come and gives none (data_size 0)`);
    const room = Math.min(this.#region.size - offset, CHUNK_MAX);
    if (length > room) {
      throw this.#error(
        `its driver's data_size is ${length}, but there is room for ${room} bytes at data_offset ${offset}`,
      );
    }
    await sink.pumpPieces(this.#region.piecesOf(offset, length));
    return length;
  }

  /** One record. Whatever happens, its bytes are taken from `source`. */
  async load(source: ChunkSource, length: number): Promise<void> {
    let left = length;
    const claim = (part: number): void => {
      left -= part;
    };
    try {
      await this.#load(source, length, claim);
    } catch (cause) {
      await discard(source, left);
      throw refusalOf(cause, this.#region.name) ?? cause;
    }
  }

  async #load(source: ChunkSource, length: number, claim: (part: number) => void): Promise<void> {
    if (length > CHUNK_MAX) throw this.#error(`a chunk of ${length} bytes is not loaded: ${CHUNK_MAX} are allowed`);
    for (let left = length; left > 0; ) {
      const offset = await this.dataOffset();
      const room = this.#region.size - offset;
      if (room === 0 || (left > room && !this.#options.split)) throw this.#tooLarge(length, room);
      const part = Math.min(left, room);
      claim(part);
      left -= part;
      await source.pumpPieces(this.#region.piecesOf(offset, part));
      await this.#region.writeU64(DATA_SIZE, part);
    }
  }

  #tooLarge(length: number, room: number): VmmError {
    return this.#error(
      `a chunk of ${length} bytes does not fit into the data section of this host's driver (${room} bytes): move to a host with the source's driver, or try split=on`,
    );
  }

  #error(what: string): VmmError {
    return new VmmError('vfio-data', `${this.#region.name}: ${what}`, { exitCode: 1 });
  }
}

/** What a device that refuses its state is told as: a register or the data section failed. null: that is another matter. */
export function refusalOf(error: unknown, name: string): VmmError | null {
  // The channel has syscalls of its own that fail.
  const ofData = error instanceof SysError && /^p(read|write)\b/.test(error.syscall);
  if (!ofData && !(error instanceof VmmError && error.code === 'vfio-region')) return null;
  // Without the name of the device, which the sentence around it has.
  const text = `${name}: the device refused its state (${error.message.replace(`${name}: `, '')})`;
  return new VmmError('vfio-data', text, { cause: error, exitCode: 1 });
}

/** So that the stream stays in step behind a record that nobody wants. */
export async function discard(source: ChunkSource, length: number): Promise<void> {
  for (let left = length; left > 0; left -= Math.min(left, DISCARD)) await source.take(Math.min(left, DISCARD));
}
