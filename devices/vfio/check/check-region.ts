// One region of a device under check, as the rules access it: any offset and any width in one pread or pwrite, and what the driver answered.
// Shares nothing with migration/region-door.ts, of which the rules are to be a second witness. Accesses run on native threads.
// linux/vfio.h, VFIO_DEVICE_GET_REGION_INFO
import { type RegionPlace, readRegions } from '../kernel-device.ts';
import { codeOf, type OpenedDevice } from './opened.ts';
import { Unreachable } from './rule.ts';

const MOST_REGIONS = 64;

export class CheckRegion {
  readonly place: RegionPlace;
  readonly #bench: OpenedDevice;

  constructor(bench: OpenedDevice, place: RegionPlace) {
    this.#bench = bench;
    this.place = place;
  }

  get size(): number {
    return this.place.size;
  }

  /** null, or why it was refused: the errno's name, or how little was done. */
  async tryRead(offset: number, into: Uint8Array): Promise<string | null> {
    const { door, fd } = this.#bench;
    return answerOf(door.preadAsync(fd, this.place.fdOffset + offset, into), into.length);
  }

  async tryWrite(offset: number, from: Uint8Array): Promise<string | null> {
    const { door, fd } = this.#bench;
    return answerOf(door.pwriteAsync(fd, this.place.fdOffset + offset, from), from.length);
  }

  /** What must be readable for a rule to go on. */
  async read(offset: number, length: number, what: string): Promise<Uint8Array> {
    const bytes = new Uint8Array(length);
    const error = await this.tryRead(offset, bytes);
    if (error !== null) throw new Unreachable(`reading ${what} failed (${error})`);
    return bytes;
  }

  async u32(offset: number, what: string): Promise<number> {
    return new DataView((await this.read(offset, 4, what)).buffer).getUint32(0, true);
  }

  async u64(offset: number, what: string): Promise<bigint> {
    return new DataView((await this.read(offset, 8, what)).buffer).getBigUint64(0, true);
  }

  setU32(offset: number, value: number): Promise<string | null> {
    return this.tryWrite(offset, u32Bytes(value));
  }

  setU64(offset: number, value: bigint): Promise<string | null> {
    return this.tryWrite(offset, u64Bytes(value));
  }
}

export function u32Bytes(value: number): Uint8Array {
  const bytes = new Uint8Array(4);
  new DataView(bytes.buffer).setUint32(0, value >>> 0, true);
  return bytes;
}

export function u64Bytes(...values: readonly bigint[]): Uint8Array {
  const bytes = new Uint8Array(8 * values.length);
  const view = new DataView(bytes.buffer);
  for (const [i, value] of values.entries()) view.setBigUint64(8 * i, value, true);
  return bytes;
}

/** The region of that type and subtype; null: the device has none. */
export function regionOf(bench: OpenedDevice, type: number, subtype: number): CheckRegion | null {
  const count = Math.min(MOST_REGIONS, 1 + Math.max(-1, ...bench.device.info.regions.map(({ index }) => index)));
  const places = readRegions(bench.door, bench.fd, count);
  const place = places.find((each) => each.type?.type === type && each.type.subtype === subtype);
  return place === undefined ? null : new CheckRegion(bench, place);
}

async function answerOf(access: Promise<number>, wanted: number): Promise<string | null> {
  try {
    const done = await access;
    return done === wanted ? null : `${done} of ${wanted} bytes`;
  } catch (error) {
    return codeOf(error);
  }
}
