// A device with a migration region (v1, v7) under check: device_state by read-modify-write, chunks out and in, what came of each. Made anew for
// each rule by run-rule.ts; a chunk is a whole buffer here, to be cut and damaged. Shares nothing with the back ends in migration/.
// linux/vfio.h of Linux 5.8, struct vfio_device_migration_info; the patch of July 2019
import {
  VFIO_REGION_SUBTYPE_MIGRATION,
  VFIO_REGION_TYPE_MIGRATION_V1,
  VFIO_REGION_TYPE_MIGRATION_V7,
  vfio_device_migration_info_v1,
  vfio_device_migration_info_v7,
} from '../../../native/abi/vfio-legacy.ts';
import { VmmError } from '../../../native/errno.ts';
import { type CheckRegion, regionOf, u64Bytes } from './check-region.ts';
import { type BenchHost, OpenedDevice, openWith } from './opened.ts';
import { Unreachable } from './rule.ts';

export const STOPPED = 0b000;
export const RUNNING = 0b001;
export const STOP_AND_COPY = 0b010;
export const PRE_COPY = 0b011;
export const RESUMING = 0b100;
export const ERROR = 0b110;
const STATES = 0b111;

export const REG = vfio_device_migration_info_v7;
const MOST_BYTES = 512 * 2 ** 20;
const MOST_CHUNKS = 2 ** 18;

const NAMES = ['STOP', 'RUNNING', 'stop-and-copy', 'pre-copy', 'RESUMING'];

export function bitsName(bits: number): string {
  const text = `${bits.toString(2).padStart(3, '0')}b`;
  return NAMES[bits] === undefined ? text : `${text} (${NAMES[bits]})`;
}

export interface PutAnswer {
  /** null: the write succeeded. */
  readonly error: string | null;
  /** By a read right afterwards. */
  readonly state: number;
}

/** A chunk as the driver offered it. */
export interface Chunk {
  readonly offset: bigint;
  readonly bytes: Uint8Array;
}

export class RegionBench extends OpenedDevice {
  readonly abi: 'v1' | 'v7';
  readonly region: CheckRegion;

  private constructor(host: BenchHost, fd: number, abi: 'v1' | 'v7') {
    super(host, fd);
    this.abi = abi;
    const types = [VFIO_REGION_TYPE_MIGRATION_V1, ...(abi === 'v7' ? [VFIO_REGION_TYPE_MIGRATION_V7] : [])];
    const found = types
      .map((type) => regionOf(this, type, VFIO_REGION_SUBTYPE_MIGRATION))
      .find((each) => each !== null);
    if (found === undefined || found === null || found.size <= this.headerBytes) {
      throw new VmmError(
        'migration-abi',
        `${host.place.name} has no migration region with room for ${abi}'s registers`,
      );
    }
    this.region = found;
  }

  static openV1(host: BenchHost): RegionBench {
    return openWith(host, (fd) => new RegionBench(host, fd, 'v1'));
  }

  static openV7(host: BenchHost): RegionBench {
    return openWith(host, (fd) => new RegionBench(host, fd, 'v7'));
  }

  get headerBytes(): number {
    return this.abi === 'v1' ? vfio_device_migration_info_v1.size : vfio_device_migration_info_v7.size;
  }

  offers(): string[] {
    const { type } = this.region.place;
    return [`region (${type?.type},${type?.subtype})`, ...(this.device.info.canReset ? ['RESET'] : [])];
  }

  /** device_state with its reserved bits. */
  word(): Promise<number> {
    return this.region.u32(REG.device_state, 'device_state');
  }

  async state(): Promise<number> {
    return (await this.word()) & STATES;
  }

  /** One read-modify-write of device_state, whatever comes of it. */
  async put(bits: number): Promise<PutAnswer> {
    const word = await this.word();
    const error = await this.region.setU32(REG.device_state, ((word & ~STATES) | bits) >>> 0);
    return { error, state: await this.state() };
  }

  /** From where it is. */
  async go(...way: readonly number[]): Promise<void> {
    for (const bits of way) {
      const from = await this.state();
      if (from === bits) continue;
      const { error, state } = await this.put(bits);
      if (error === null && state === bits) continue;
      throw new Unreachable(
        `${bitsName(from)} -> ${bitsName(bits)} did not work (${error ?? `in ${bitsName(state)}`})`,
      );
    }
  }

  /** From RUNNING, by arcs that the text draws. */
  async enter(bits: number): Promise<void> {
    await this.home();
    await this.go(bits);
  }

  /** 000 -> 001 is not among the arcs that the text draws, so that a driver may refuse it. */
  async home(): Promise<void> {
    const from = await this.state();
    if (from === RUNNING) return;
    if (from <= PRE_COPY && (await this.put(RUNNING)).state === RUNNING) return;
    if (!this.device.info.canReset || (await this.reset()) !== null) await this.reopen();
    if ((await this.state()) !== RUNNING) throw new Unreachable(`nothing led back to RUNNING from ${bitsName(from)}`);
  }

  pending(): Promise<bigint> {
    return this.region.u64(REG.pending_bytes, 'pending_bytes');
  }

  dataOffset(): Promise<bigint> {
    return this.region.u64(REG.data_offset, 'data_offset');
  }

  dataSize(): Promise<bigint> {
    return this.region.u64(REG.data_size, 'data_size');
  }

  /** Steps b to d of an iteration, after pending_bytes was read and is not 0. */
  async chunk(): Promise<Chunk> {
    const offset = await this.dataOffset();
    const size = await this.dataSize();
    if (offset + size > BigInt(this.region.size)) throw new Unreachable('a chunk lies beyond its region');
    return { offset, bytes: await this.region.read(Number(offset), Number(size), 'the data section') };
  }

  /** Until pending_bytes is 0: all there is in stop-and-copy, all for now in pre-copy. `most`: no more chunks than that. */
  async chunks(most: number = MOST_CHUNKS): Promise<Uint8Array[]> {
    const chunks: Uint8Array[] = [];
    let total = 0;
    // Reading pending_bytes is also what takes the chunk before it, so that it comes before the count.
    while ((await this.pending()) > 0n && chunks.length < most) {
      const { bytes } = await this.chunk();
      if (bytes.length === 0) {
        if ((await this.state()) === STOP_AND_COPY)
          throw new Unreachable('a chunk has no bytes while some are pending');
        break;
      }
      chunks.push(bytes);
      total += bytes.length;
      if (total > MOST_BYTES || chunks.length === MOST_CHUNKS) throw new Unreachable('the data never end');
    }
    return chunks;
  }

  /** A whole save of the device as it is now; leaves it RUNNING. */
  async save(): Promise<Uint8Array[]> {
    await this.enter(STOP_AND_COPY);
    const chunks = await this.chunks();
    if (chunks.length === 0) throw new Unreachable('the device gives no data: there is nothing to load');
    await this.home();
    return chunks;
  }

  /** Into RESUMING; gives the errno with which a chunk was refused. `commit`: what is written to data_size instead of the chunk's length. */
  async load(chunks: readonly Uint8Array[], commit: (chunk: number) => number | null = () => null) {
    await this.enter(RESUMING);
    for (const [i, bytes] of chunks.entries()) {
      const offset = await this.dataOffset();
      if (offset + BigInt(bytes.length) > BigInt(this.region.size)) throw new Unreachable('a chunk does not fit back');
      const refused =
        (await this.region.tryWrite(Number(offset), bytes)) ??
        (await this.region.tryWrite(REG.data_size, u64Bytes(BigInt(commit(i) ?? bytes.length))));
      if (refused !== null) return `chunk ${i}: ${refused}`;
    }
    return null;
  }

  /** Leaves RESUMING with what was loaded: null, or how it was refused. A driver may only judge on the way to RUNNING. */
  async verdict(): Promise<string | null> {
    const stop = await this.put(STOPPED);
    if (stop.error === null && stop.state === STOPPED) return null;
    if (stop.state !== RESUMING) return `RESUMING -> STOP: ${stop.error}, in ${bitsName(stop.state)}`;
    const run = await this.put(RUNNING);
    return run.error === null && run.state === RUNNING ? null : `RESUMING -> RUNNING: ${run.error}`;
  }

  async tryLoad(chunks: readonly Uint8Array[], commit?: (chunk: number) => number | null): Promise<string | null> {
    const refused = await this.load(chunks, commit);
    return refused ?? (await this.verdict());
  }
}
