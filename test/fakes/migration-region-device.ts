// A device whose migration is one region, v1 or v7, written from the texts (linux/vfio.h of Linux 5.8; the patch of July 2019 and its
// review) and from nothing of devices/vfio: registers at their width only, one staged chunk at a time, chunks with a checksum that must
// come whole and in order, dirty pfns. What no driver could tolerate is an error and is noted in `violations`.
import type { GpaRange } from '../../devices/contract.ts';
import { SysError } from '../../native/errno.ts';
import { DirtyPfnsDevice } from './dirty-pfns-device.ts';
import { EINVAL, EIO, ENODEV, type FakeRegion, type FakeRegionDevice } from './legacy-kernel.ts';
import { RegionBytes } from './region-bytes.ts';

const RUNNING = 1;
const SAVING = 2;
const RESUMING = 4;
const ERROR = 6;

export type RegionRegister =
  | 'device_state'
  | 'reserved'
  | 'pending_bytes'
  | 'data_offset'
  | 'data_size'
  | 'start_pfn'
  | 'page_size'
  | 'total_pfns'
  | 'copied_pfns'
  | 'data';

const REGISTERS: readonly [RegionRegister, number, number][] = [
  ['device_state', 0, 4],
  ['reserved', 4, 4],
  ['pending_bytes', 8, 8],
  ['data_offset', 16, 8],
  ['data_size', 24, 8],
  ['start_pfn', 32, 8],
  ['page_size', 40, 8],
  ['total_pfns', 48, 8],
  ['copied_pfns', 56, 8],
];

export interface RegionDeviceOptions {
  readonly abi?: 'v1' | 'v7';
  readonly type?: number;
  readonly contents?: Uint8Array;
  /** Bytes of contents in a chunk; a chunk has 16 more. */
  readonly chunk?: number;
  readonly dataOffset?: number;
  readonly size?: number;
  readonly areas?: readonly GpaRange[];
  /** Whether RESUMING -> STOP is taken, which the text does not draw. */
  readonly stopAfterLoad?: boolean;
  /** Only the arcs that the text draws. */
  readonly strict?: boolean;
  /** Bits 3-31 of device_state. */
  readonly reservedBits?: number;
  /** Chunks that pre-copy gives. */
  readonly preCopyChunks?: number;
  /** What comes in pieces is put together: drivers that QEMU 5.2-7.2 could split for. */
  readonly takesPieces?: boolean;
  /** RESUMING may be left with nothing loaded: the device stays as it was. */
  readonly emptyLoad?: boolean;
  /** Data of a device with more or less of it are refused: by how many chunks they are of. */
  readonly sameSize?: boolean;
  /** Bugs: data that end early are taken; damaged ones; a chunk of which a part was committed. */
  readonly lax?: 'short' | 'damaged' | 'cut' | 'nothing';
}

/** A state change that is refused, from -> to (bits), and where the device is then. */
export interface RefusedArc {
  readonly from: number;
  readonly to: number;
  readonly lands: number;
}

/** The `nth` access of that kind to that register fails. */
export interface FailedAccess {
  readonly op: 'read' | 'write';
  readonly register: RegionRegister;
  readonly nth: number;
  readonly errno?: number;
  /** Instead of an error: the answer is this short. */
  readonly short?: number;
}

/** "C" and the number of the chunk (u16 each), how many there are, its length, its sum (u32 each), then bytes. */
const CHUNK_HEAD = 16;

export class MigrationRegionDevice implements FakeRegionDevice {
  readonly regions: readonly FakeRegion[];
  readonly violations: string[] = [];
  /** Bits as they were written to device_state. */
  readonly states: number[] = [];
  readonly refuse: RefusedArc[] = [];
  readonly fail: FailedAccess[] = [];
  readonly commits: number[] = [];
  readonly dirty: DirtyPfnsDevice | null;
  contents: Uint8Array;
  bits = RUNNING;
  gone = false;
  resetFails = false;
  resets = 0;
  /** Overrides of what a register says. */
  readonly says = new Map<RegionRegister, bigint>();
  readonly #options: Required<RegionDeviceOptions>;
  readonly #bytes: RegionBytes;
  readonly #headerBytes: number;
  readonly #counts = new Map<string, number>();
  #stream: Uint8Array[] = [];
  #next = 0;
  #staged: Uint8Array | null = null;
  #pendingRead = false;
  #arrived: Uint8Array[] = [];
  #offsetAsked = false;

  constructor(options: RegionDeviceOptions = {}) {
    const abi = options.abi ?? 'v1';
    this.#headerBytes = abi === 'v1' ? 32 : 64;
    this.#options = {
      abi,
      type: options.type ?? 3,
      contents: options.contents ?? Uint8Array.from({ length: 5000 }, (_, i) => (i * 7 + (i >> 8)) & 0xff),
      chunk: options.chunk ?? 1000,
      dataOffset: options.dataOffset ?? (abi === 'v1' ? 32 : 64),
      size: options.size ?? 0x3000,
      areas: options.areas ?? [],
      stopAfterLoad: options.stopAfterLoad ?? true,
      strict: options.strict ?? false,
      reservedBits: options.reservedBits ?? 0xabcd00,
      preCopyChunks: options.preCopyChunks ?? 2,
      takesPieces: options.takesPieces ?? false,
      emptyLoad: options.emptyLoad ?? false,
      sameSize: options.sameSize ?? false,
      lax: options.lax ?? 'nothing',
    };
    const { type, size, areas } = this.#options;
    this.contents = this.#options.contents.slice();
    this.regions = [{ type: [type, 1], size, areas }];
    this.#bytes = new RegionBytes(size, areas);
    this.dirty = abi === 'v1' ? null : new DirtyPfnsDevice(size - this.#options.dataOffset);
  }

  memory(_region: number, area: GpaRange): ArrayBuffer {
    return this.#bytes.area(area);
  }

  reset(): void {
    this.resets += 1;
    if (this.gone) throw new SysError('VFIO_DEVICE_RESET', ENODEV);
    if (this.resetFails) throw new SysError('VFIO_DEVICE_RESET', EIO);
    this.bits = RUNNING;
    this.#enter(RUNNING);
  }

  read(_region: number, offset: number, into: Uint8Array): number {
    if (this.gone) throw new SysError('pread', ENODEV);
    if (offset >= this.#headerBytes) return this.#data('read', offset, into, () => this.#bytes.copyOut(offset, into));
    const register = this.#register(offset, into.length);
    const short = this.#fault('read', register);
    if (short !== null) return short;
    const value = this.says.get(register) ?? this.#value(register);
    const view = new DataView(into.buffer, into.byteOffset, into.length);
    if (into.length === 4) view.setUint32(0, Number(value), true);
    else view.setBigUint64(0, value, true);
    return into.length;
  }

  write(_region: number, offset: number, from: Uint8Array): number {
    if (this.gone) throw new SysError('pwrite', ENODEV);
    if (offset >= this.#headerBytes) return this.#data('write', offset, from, () => this.#bytes.copyIn(offset, from));
    const register = this.#register(offset, from.length);
    const short = this.#fault('write', register);
    if (short !== null) return short;
    const view = new DataView(from.buffer, from.byteOffset, from.length);
    this.#set(register, from.length === 4 ? BigInt(view.getUint32(0, true)) : view.getBigUint64(0, true));
    return from.length;
  }

  #register(offset: number, length: number): RegionRegister {
    const found = REGISTERS.find(([, at, width]) => at === offset && width === length);
    if (found === undefined) throw this.#violation(`an access of ${length} bytes at ${offset}`);
    return found[0];
  }

  #value(register: RegionRegister): bigint {
    if (register === 'device_state') return BigInt(this.bits + this.#options.reservedBits);
    if (register === 'reserved') return 0n;
    if (this.bits === ERROR) throw new SysError('pread', EIO);
    if (register === 'pending_bytes') return this.#pending();
    if (register === 'data_offset') return this.#dataOffset();
    if (register === 'data_size') return this.#dataSize();
    if (register === 'copied_pfns' && this.dirty !== null) {
      if ((this.bits & SAVING) === 0) throw this.#violation('dirty pages are asked for outside of SAVING');
      if (this.#staged !== null) throw this.#violation('dirty pages are asked for in the middle of a chunk');
      return this.dirty.copied((bitmap) => this.#bytes.copyIn(this.#options.dataOffset, bitmap));
    }
    throw this.#violation(`${register} is read`);
  }

  #set(register: RegionRegister, value: bigint): void {
    if (register === 'device_state') this.#goTo(Number(value));
    else if (register === 'data_size' && this.bits === RESUMING) this.#commit(Number(value));
    else if (this.dirty === null || !this.dirty.set(register, value)) throw this.#violation(`${register} is written`);
  }

  #goTo(value: number): void {
    const to = value & 7;
    const from = this.bits;
    this.states.push(to);
    if (value - to !== this.#options.reservedBits) throw this.#violation('bits 3-31 of device_state are not preserved');
    if (to >= 5) throw this.#violation(`state ${to} is written`);
    if (from === ERROR) throw this.#violation('ERROR is left without a reset');
    const refused = this.refuse.find((arc) => arc.from === from && arc.to === to);
    if (refused !== undefined) {
      this.bits = refused.lands;
      throw new SysError('pwrite', EINVAL);
    }
    if (!this.#hasArc(from, to)) throw new SysError('pwrite', EINVAL);
    if (from === RESUMING) this.#judge();
    this.bits = to;
    this.#enter(to, from);
  }

  #hasArc(from: number, to: number): boolean {
    if (from === RESUMING) return to === RUNNING || (to === 0 && this.#options.stopAfterLoad);
    if (to === RESUMING) return from === RUNNING;
    const drawn = ['1>0', '1>2', '1>3', '3>2', '2>0'];
    return !this.#options.strict || drawn.includes(`${from}>${to}`);
  }

  #enter(to: number, from: number = to): void {
    this.#staged = null;
    this.#pendingRead = false;
    if (to === RESUMING) this.#arrived = [];
    if ((to & SAVING) !== 0 && (from & SAVING) === 0) {
      this.#stream = this.#chunks();
      this.#next = 0;
    }
  }

  /** Contents have changed while they are saved: what was not given yet is given as it is now. */
  changed(): void {
    if (this.#stream.length > 0) this.#stream = this.#chunks();
  }

  #chunks(): Uint8Array[] {
    const { chunk } = this.#options;
    const count = Math.max(1, Math.ceil(this.contents.length / chunk));
    return Array.from({ length: count }, (_, i) => {
      const part = this.contents.subarray(i * chunk, (i + 1) * chunk);
      const bytes = new Uint8Array(CHUNK_HEAD + part.length);
      const view = new DataView(bytes.buffer);
      view.setUint16(0, 0x43, true);
      view.setUint16(2, i, true);
      view.setUint32(4, count, true);
      view.setUint32(8, part.length, true);
      view.setUint32(12, sumOf(part), true);
      bytes.set(part, CHUNK_HEAD);
      return bytes;
    });
  }

  #available(): Uint8Array[] {
    if ((this.bits & SAVING) === 0) return [];
    return this.#stream.slice(this.#next, this.bits === SAVING ? undefined : this.#options.preCopyChunks);
  }

  #pending(): bigint {
    if ((this.bits & SAVING) === 0) throw this.#violation('pending_bytes is read outside of SAVING');
    if (this.#staged !== null) {
      this.#staged = null;
      this.#next += 1;
    }
    this.#pendingRead = true;
    return BigInt(this.#available().reduce((sum, { length }) => sum + length, 0));
  }

  #dataOffset(): bigint {
    const at = BigInt(this.#options.dataOffset);
    if (this.bits === RESUMING) this.#offsetAsked = true;
    else if (this.dirty?.answered === true) this.dirty.answered = false;
    else if (this.#staged === null) {
      if (!this.#pendingRead) throw this.#violation('data_offset is read before pending_bytes');
      this.#staged = this.#available()[0] ?? null;
      this.#pendingRead = false;
      if (this.#staged !== null) this.#bytes.copyIn(Number(at), this.#staged);
    }
    return at;
  }

  #dataSize(): bigint {
    if (this.#staged === null) throw this.#violation('data_size is read without a chunk');
    return BigInt(this.#staged.length);
  }

  #data(op: 'read' | 'write', offset: number, bytes: Uint8Array, go: () => void): number {
    if (op === 'write' && this.bits !== RESUMING) throw this.#violation('data are written outside of RESUMING');
    if (offset + bytes.length > this.#options.size) throw this.#violation('data beyond the region');
    const short = this.#fault(op, 'data');
    if (short !== null) return short;
    go();
    return bytes.length;
  }

  #commit(length: number): void {
    if (!this.#offsetAsked) throw this.#violation('data_size is written before data_offset was read');
    this.#offsetAsked = false;
    const { dataOffset, size, takesPieces } = this.#options;
    if (length > size - dataOffset) throw this.#violation('data_size is beyond the region');
    const chunk = new Uint8Array(this.#options.lax === 'cut' ? this.#wholeLength() : length);
    this.#bytes.copyOut(dataOffset, chunk);
    this.commits.push(length);
    this.#arrived.push(chunk);
    // In order, and whole.
    if (!takesPieces && this.#numberOf(chunk) !== this.#arrived.length - 1) throw new SysError('pwrite', EINVAL);
  }

  #wholeLength(): number {
    const head = new Uint8Array(CHUNK_HEAD);
    this.#bytes.copyOut(this.#options.dataOffset, head);
    return CHUNK_HEAD + lengthOf(head);
  }

  #numberOf(chunk: Uint8Array): number {
    if (this.#options.lax === 'damaged' && chunk.length >= CHUNK_HEAD) return viewOf(chunk).getUint16(2, true);
    return numberOf(chunk);
  }

  /** RESUMING is left: all chunks must be there. */
  #judge(): void {
    if (this.#options.emptyLoad && this.#arrived.length === 0) return;
    const all = Uint8Array.from(Buffer.concat(this.#arrived));
    const parts: Uint8Array[] = [];
    let whole = all.length > 0;
    let at = 0;
    for (let count = 1; whole && parts.length < count; ) {
      const rest = all.subarray(at);
      if (rest.length === 0 && this.#options.lax === 'short') break;
      whole = this.#numberOf(rest.subarray(0, CHUNK_HEAD + lengthOf(rest))) === parts.length;
      if (!whole) break;
      count = viewOf(rest).getUint32(4, true);
      parts.push(rest.subarray(CHUNK_HEAD, CHUNK_HEAD + lengthOf(rest)));
      at += CHUNK_HEAD + lengthOf(rest);
    }
    if (!whole || at !== all.length) throw new SysError('pwrite', EINVAL);
    const declared = viewOf(all).getUint32(4, true);
    if (this.#options.sameSize && declared !== this.#chunks().length) throw new SysError('pwrite', EINVAL);
    this.contents = Uint8Array.from(Buffer.concat(parts));
  }

  #fault(op: 'read' | 'write', register: RegionRegister): number | null {
    const key = `${op} ${register}`;
    const count = (this.#counts.get(key) ?? 0) + 1;
    this.#counts.set(key, count);
    const fault = this.fail.find((each) => each.op === op && each.register === register && each.nth === count);
    if (fault === undefined) return null;
    if (fault.short !== undefined) return fault.short;
    throw new SysError(op === 'read' ? 'pread' : 'pwrite', fault.errno ?? EIO);
  }

  #violation(what: string): SysError {
    this.violations.push(what);
    return new SysError('a driver would say', EINVAL);
  }
}

const viewOf = (bytes: Uint8Array) => new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
const lengthOf = (chunk: Uint8Array) => (chunk.length < CHUNK_HEAD ? 0 : viewOf(chunk).getUint32(8, true));

/** Of a whole and unaltered chunk; -1 otherwise. */
function numberOf(chunk: Uint8Array): number {
  if (chunk.length < CHUNK_HEAD || viewOf(chunk).getUint16(0, true) !== 0x43) return -1;
  const part = chunk.subarray(CHUNK_HEAD);
  const fits = part.length === lengthOf(chunk) && viewOf(chunk).getUint32(12, true) === sumOf(part);
  return fits ? viewOf(chunk).getUint16(2, true) : -1;
}

function sumOf(bytes: Uint8Array): number {
  let sum = 1;
  for (const byte of bytes) sum = (sum * 31 + byte) >>> 0;
  return sum;
}
