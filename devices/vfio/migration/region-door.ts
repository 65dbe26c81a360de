// One migration region of a device: its registers, each in one pread/pwrite of exactly the field's width, and the pieces that a stretch of
// its data section is made of (mmapped windows and the trapped rest). Used by the back ends of the older interfaces and by probe-abi.ts.
// A driver works while a register is accessed, so that runs on a native thread with a deadline. linux/vfio.h, VFIO_REGION_INFO
import { SysError, VmmError } from '../../../native/errno.ts';
import type { ChunkPiece, GpaRange, HostMapping, PageBitmap } from '../../contract.ts';
import { within } from '../deadline.ts';
import type { RegionPlace } from '../kernel-device.ts';
import type { KernelDoor } from '../kernel-door.ts';
import { wholePages } from '../regions.ts';

/** A register: what the text calls it, and its offset in the region. */
export interface Field {
  readonly name: string;
  readonly at: number;
}

export interface RegionDoorParts {
  readonly door: KernelDoor;
  readonly fd: number;
  /** For messages: the PCI address. */
  readonly name: string;
  readonly region: RegionPlace;
  /** Drivers may talk to slow firmware at any access. */
  readonly deadlineMs: number;
}

/** An area that was mapped when it was first needed; null: the driver refused that, so it is trapped. */
interface Window {
  readonly area: GpaRange;
  readonly mapping: HostMapping | null;
}

export class RegionDoor {
  readonly name: string;
  readonly index: number;
  readonly size: number;
  readonly #parts: RegionDoorParts;
  #windows: readonly Window[] | null = null;
  /** An access that outlived its deadline: the next one waits for it, for the driver would make it wait anyway. */
  #overdue: Promise<void> | null = null;

  constructor(parts: RegionDoorParts) {
    this.name = parts.name;
    this.index = parts.region.index;
    this.size = parts.region.size;
    this.#parts = parts;
  }

  async readU32(field: Field): Promise<number> {
    return new DataView(await this.#read(field, 4)).getUint32(0, true);
  }

  async readU64(field: Field): Promise<bigint> {
    return new DataView(await this.#read(field, 8)).getBigUint64(0, true);
  }

  writeU32(field: Field, value: number): Promise<void> {
    const bytes = new Uint8Array(4);
    new DataView(bytes.buffer).setUint32(0, value, true);
    return this.write(field, bytes);
  }

  writeU64(field: Field, value: number): Promise<void> {
    const bytes = new Uint8Array(8);
    new DataView(bytes.buffer).setBigUint64(0, BigInt(value), true);
    return this.write(field, bytes);
  }

  /** All of `bytes` in one pwrite. */
  async write(field: Field, bytes: Uint8Array): Promise<void> {
    const { door, fd, region } = this.#parts;
    await this.#access('writing', field, bytes.length, () => door.pwriteAsync(fd, region.fdOffset + field.at, bytes));
  }

  /** What [offset, offset + length) of the region is made of, in order. The caller has checked that it lies within. */
  piecesOf(offset: number, length: number): ChunkPiece[] {
    const pieces: ChunkPiece[] = [];
    const end = offset + length;
    let at = offset;
    const trapped = (until: number): void => {
      if (until <= at) return;
      pieces.push({ ...this.fdPlace(at), length: until - at });
      at = until;
    };
    for (const { area, mapping } of this.#mapped()) {
      const stop = Math.min(end, area.start + area.length);
      if (mapping === null || stop <= at || area.start >= end) continue;
      trapped(area.start);
      pieces.push({ mapping, offset: at - area.start, length: stop - at });
      at = stop;
    }
    trapped(end);
    return pieces;
  }

  /** Where a byte of the region lies in the device fd. */
  fdPlace(offset: number): { fd: number; offset: number } {
    return { fd: this.#parts.fd, offset: this.#parts.region.fdOffset + offset };
  }

  /** ORs a bitmap that the driver has put at `offset` into `into`: `bits` granules of `granule` bytes from RAM offset `start` on. */
  async orBits(at: { offset: number; bits: number }, into: PageBitmap, start: number, granule: number): Promise<void> {
    const what = `${this.name}: reading the dirty bitmap in region ${this.index}`;
    const work = into.orFrom({ ...this.fdPlace(at.offset), bits: at.bits }, start, granule);
    await this.#within(what, work);
  }

  /** Takes the mapped windows down. The device fd is its opener's. */
  close(): void {
    for (const { mapping } of this.#windows ?? []) mapping?.unmap();
    this.#windows = null;
  }

  async #read(field: Field, length: number): Promise<ArrayBuffer> {
    const { door, fd, region } = this.#parts;
    const bytes = new Uint8Array(length);
    await this.#access('reading', field, length, () => door.preadAsync(fd, region.fdOffset + field.at, bytes));
    return bytes.buffer;
  }

  async #access(doing: string, field: Field, length: number, go: () => Promise<number>): Promise<void> {
    const what = `${this.name}: ${doing} ${field.name} of region ${this.index}`;
    await this.#afterOverdue(what);
    const done = await this.#within(what, go());
    // Some drivers answer with how much they did not do, so that any other number is an error.
    if (done === length) return;
    throw new VmmError('vfio-region', `${what} gave ${done} instead of ${length} bytes`, { exitCode: 1 });
  }

  async #within<T>(what: string, work: Promise<T>): Promise<T> {
    try {
      return await within(work, { ms: this.#parts.deadlineMs, what });
    } catch (cause) {
      if (isOverdue(cause)) this.#overdue = settled(work);
      if (!(cause instanceof SysError)) throw cause;
      throw new VmmError('vfio-region', `${what} failed (${cause.code})`, { cause, exitCode: 1 });
    }
  }

  async #afterOverdue(what: string): Promise<void> {
    if (this.#overdue === null) return;
    await within(this.#overdue, { ms: this.#parts.deadlineMs, what: `${what}, behind an access that is overdue` });
    this.#overdue = null;
  }

  #mapped(): readonly Window[] {
    const { door, fd, region } = this.#parts;
    this.#windows ??= region.areas
      .map(({ start, length }) => wholePages(start, length))
      .filter(({ length }) => length > 0)
      .sort((a, b) => a.start - b.start)
      .map((area) => ({
        area,
        mapping: mapped(() => door.mapFd(fd, region.fdOffset + area.start, area.length, region.writable)),
      }));
    return this.#windows;
  }
}

/** Whether the driver may still be at work on what was asked of it. */
export function isOverdue(error: unknown): boolean {
  return error instanceof VmmError && error.code === 'deadline';
}

/** Using mmap is optional: what cannot be mapped is read and written. */
function mapped(map: () => HostMapping): HostMapping | null {
  try {
    return map();
  } catch (error) {
    if (error instanceof SysError) return null;
    throw error;
  }
}

function settled(work: Promise<unknown>): Promise<void> {
  return work.then(
    () => undefined,
    () => undefined,
  );
}
