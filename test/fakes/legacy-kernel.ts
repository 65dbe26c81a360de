// The kernel's side of a device whose migration lies in regions: passes reads, writes and mmaps of the device fd on to a scripted device
// and tells what its regions are. Beneath tests of region-door.ts, of the older back ends and of probing. Calls are kept in order.
import type { GpaRange } from '../../devices/contract.ts';
import type { RegionPlace } from '../../devices/vfio/kernel-device.ts';
import type { HostMapping, PageBitmap } from '../../native/addon.ts';
import { kvmNode } from '../../native/addon.ts';
import { SysError } from '../../native/errno.ts';
import { FakeVfioKernel, regionInfo } from './vfio-kernel.ts';

export const EIO = 5;
export const ENODEV = 19;
export const EINVAL = 22;

export interface FakeRegion {
  readonly type: readonly [number, number];
  readonly size: number;
  readonly areas: readonly GpaRange[];
}

/** Errors are SysErrors; what is returned is what pread and pwrite return. */
export interface FakeRegionDevice {
  readonly regions: readonly FakeRegion[];
  read(region: number, offset: number, into: Uint8Array): number;
  write(region: number, offset: number, from: Uint8Array): number;
  /** The memory behind a mapped area. */
  memory(region: number, area: GpaRange): ArrayBuffer;
  reset(): void;
}

const SHIFT = 2 ** 40;
/** VFIO_PCI_NUM_REGIONS: the fixed ones, which this device does without. */
export const FIRST_REGION = 9;
export const DEVICE_FD = 3;

export class LegacyKernel extends FakeVfioKernel {
  readonly device: FakeRegionDevice;
  /** "read REGION+OFFSET/LENGTH" and so on. */
  readonly accesses: string[] = [];
  /** Mappings that are there now. */
  mapped = 0;
  refuseMmap = false;
  /** Each access of a native thread waits for it. */
  stall: Promise<void> | null = null;

  constructor(device: FakeRegionDevice) {
    super();
    this.device = device;
    const none = Array.from({ length: FIRST_REGION }, () => new Uint8Array(0));
    const own = device.regions.map(({ type, size, areas }, i) => {
      const list = areas.map(({ start, length }): [bigint, bigint] => [BigInt(start), BigInt(length)]);
      return regionInfo(FIRST_REGION + i, BigInt(size), areas.length > 0 ? 7 : 3, list, type);
    });
    this.regions = [...none, ...own];
    this.answers.set('VFIO_DEVICE_RESET', () => {
      device.reset();
      return 0;
    });
  }

  /** As kernel-device.ts would have read it. */
  place(index: number): RegionPlace {
    const { type, size, areas } = this.device.regions[index]!;
    return {
      index: FIRST_REGION + index,
      size,
      readable: true,
      writable: true,
      areas,
      type: { type: type[0], subtype: type[1] },
      fdOffset: (FIRST_REGION + index) * SHIFT,
    };
  }

  override mapFd(_fd: number, offset: number, size: number): HostMapping {
    // As the addon: that is no errno but our own mistake.
    if (size === 0 || size % 4096 !== 0 || offset % 4096 !== 0) throw new RangeError('multiples of 4096');
    if (this.refuseMmap) throw new SysError('mmap', EINVAL);
    const { region, at } = placeOf(offset);
    this.mapped += 1;
    return {
      size,
      view: this.device.memory(region, { start: at, length: size }),
      unmap: () => {
        this.mapped -= 1;
      },
    };
  }

  override pread(_fd: number, offset: bigint | number, into: Uint8Array): number {
    const { region, at } = placeOf(Number(offset));
    this.accesses.push(`read ${region}+${at}/${into.length}`);
    return this.device.read(region, at, into);
  }

  override pwrite(_fd: number, offset: bigint | number, from: Uint8Array): number {
    const { region, at } = placeOf(Number(offset));
    this.accesses.push(`write ${region}+${at}/${from.length}`);
    return this.device.write(region, at, from);
  }

  override async preadAsync(fd: number, offset: bigint | number, into: Uint8Array): Promise<number> {
    await this.stall;
    return this.pread(fd, offset, into);
  }

  override async pwriteAsync(fd: number, offset: bigint | number, from: Uint8Array): Promise<number> {
    await this.stall;
    return this.pwrite(fd, offset, from);
  }

  /** A native bitmap whose orFrom() reads this kernel's device. */
  override createBitmap(pages: number): PageBitmap {
    const bitmap = kvmNode().createBitmap(pages);
    const orFrom: PageBitmap['orFrom'] = async ({ fd, offset, bits }, start, granule) => {
      const bytes = new Uint8Array(Math.ceil(bits / 8));
      if ((await this.preadAsync(fd, offset, bytes)) !== bytes.length) throw new SysError('pread', EIO);
      if (bits % 8 !== 0) bytes[bytes.length - 1]! &= (1 << (bits % 8)) - 1;
      bitmap.orBytes(start, bytes, granule);
    };
    return Object.defineProperty(bitmap, 'orFrom', { value: orFrom });
  }
}

function placeOf(offset: number): { region: number; at: number } {
  return { region: Math.floor(offset / SHIFT) - FIRST_REGION, at: offset % SHIFT };
}
