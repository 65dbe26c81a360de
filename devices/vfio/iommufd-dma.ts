// iommufd's objects: an I/O address space (IOAS) that holds all guest RAM, hardware page tables (hwpt) over it, and the bond of a device
// with them. Called by open-cdev.ts and probe-cdev.ts; what pins RAM or fills page tables runs on native threads.
// linux/iommufd.h; linux/vfio.h, VFIO_DEVICE_BIND_IOMMUFD, VFIO_DEVICE_ATTACH_IOMMUFD_PT
import {
  IOMMU_DESTROY,
  IOMMU_GET_HW_INFO,
  IOMMU_HW_CAP_DIRTY_TRACKING,
  IOMMU_HWPT_ALLOC,
  IOMMU_HWPT_ALLOC_DIRTY_TRACKING,
  IOMMU_IOAS_ALLOC,
  IOMMU_IOAS_IOVA_RANGES,
  IOMMU_IOAS_MAP,
  IOMMU_IOAS_MAP_FIXED_IOVA,
  IOMMU_IOAS_MAP_READABLE,
  IOMMU_IOAS_MAP_WRITEABLE,
  IOMMU_IOAS_UNMAP,
  iommu_destroy,
  iommu_hw_info,
  iommu_hwpt_alloc,
  iommu_ioas_alloc,
  iommu_ioas_iova_ranges,
  iommu_ioas_map,
  iommu_ioas_unmap,
  iommu_iova_range,
} from '../../native/abi/iommufd.ts';
import {
  VFIO_DEVICE_ATTACH_IOMMUFD_PT,
  VFIO_DEVICE_BIND_IOMMUFD,
  vfio_device_attach_iommufd_pt,
  vfio_device_bind_iommufd,
} from '../../native/abi/vfio.ts';
import { SysError } from '../../native/errno.ts';
import type { GpaRange, RamRange } from '../contract.ts';
import { pinningMs, within } from './deadline.ts';
import type { KernelDoor } from './kernel-door.ts';

/** Opening a device enables it, which may reset it. */
const BIND_MS = 60_000;
const MOST_RANGES = 65_536;

export interface IommufdDoor {
  readonly door: KernelDoor;
  /** Of /dev/iommu. */
  readonly fd: number;
}

export class Ioas {
  readonly id: number;
  readonly #on: IommufdDoor;

  private constructor(on: IommufdDoor, id: number) {
    this.#on = on;
    this.id = id;
  }

  static alloc(on: IommufdDoor): Ioas {
    const arg = new Uint8Array(iommu_ioas_alloc.size);
    const view = sized(arg);
    on.door.ioctl('IOMMU_IOAS_ALLOC', on.fd, IOMMU_IOAS_ALLOC, arg);
    return new Ioas(on, view.getUint32(iommu_ioas_alloc.out_ioas_id, true));
  }

  /** Where the attached devices can reach: each one that is attached narrows it. `alignment`: the smallest page. */
  reach(): { ranges: GpaRange[]; alignment: bigint } {
    for (let room = 32; ; room *= 8) {
      const arg = new Uint8Array(iommu_ioas_iova_ranges.size);
      const view = sized(arg);
      const list = new Uint8Array(room * iommu_iova_range.size);
      view.setUint32(iommu_ioas_iova_ranges.ioas_id, this.id, true);
      view.setUint32(iommu_ioas_iova_ranges.num_iovas, room, true);
      const patch = { at: iommu_ioas_iova_ranges.allowed_iovas, bytes: list };
      try {
        this.#on.door.ioctl('IOMMU_IOAS_IOVA_RANGES', this.#on.fd, IOMMU_IOAS_IOVA_RANGES, arg, [patch]);
      } catch (error) {
        if (error instanceof SysError && error.code === 'EMSGSIZE' && room < MOST_RANGES) continue;
        throw error;
      }
      const count = Math.min(room, view.getUint32(iommu_ioas_iova_ranges.num_iovas, true));
      return {
        ranges: rangesOf(list, count),
        alignment: view.getBigUint64(iommu_ioas_iova_ranges.out_iova_alignment, true),
      };
    }
  }

  async map(range: RamRange): Promise<void> {
    const arg = new Uint8Array(iommu_ioas_map.size);
    const view = sized(arg);
    const flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE;
    view.setUint32(iommu_ioas_map.flags, flags, true);
    view.setUint32(iommu_ioas_map.ioas_id, this.id, true);
    view.setBigUint64(iommu_ioas_map.length, BigInt(range.size), true);
    view.setBigUint64(iommu_ioas_map.iova, BigInt(range.gpa), true);
    const { ram, offset } = range.slice;
    const patch = { at: iommu_ioas_map.user_va, ram, offset, length: range.size };
    await within(this.#on.door.ioctlAsync('IOMMU_IOAS_MAP', this.#on.fd, IOMMU_IOAS_MAP, arg, [patch]), {
      ms: pinningMs(range.size),
      what: `mapping guest RAM at ${hex(range.gpa)} for DMA`,
    });
  }

  async unmap(range: RamRange): Promise<void> {
    const arg = new Uint8Array(iommu_ioas_unmap.size);
    const view = sized(arg);
    view.setUint32(iommu_ioas_unmap.ioas_id, this.id, true);
    view.setBigUint64(iommu_ioas_unmap.iova, BigInt(range.gpa), true);
    view.setBigUint64(iommu_ioas_unmap.length, BigInt(range.size), true);
    await within(this.#on.door.ioctlAsync('IOMMU_IOAS_UNMAP', this.#on.fd, IOMMU_IOAS_UNMAP, arg), {
      ms: pinningMs(range.size),
      what: `unmapping guest RAM at ${hex(range.gpa)} from DMA`,
    });
  }
}

/** What GET_HW_INFO says of a bound device. 'emulated': no IOMMU behind it (mdev), it has an access object and takes no hwpt.
 *  'unknown': the kernel does not say, so it has to be tried. */
export type HwTracking = 'yes' | 'no' | 'emulated' | 'unknown';

export function hwTracking(on: IommufdDoor, device: number): HwTracking {
  const arg = new Uint8Array(iommu_hw_info.size);
  const view = sized(arg);
  view.setUint32(iommu_hw_info.dev_id, device, true);
  try {
    on.door.ioctl('IOMMU_GET_HW_INFO', on.fd, IOMMU_GET_HW_INFO, arg);
  } catch (error) {
    if (!(error instanceof SysError)) throw error;
    // The id that BIND gave is of another kind of object than an IOMMU's device.
    return error.code === 'ENOENT' ? 'emulated' : 'unknown';
  }
  const capabilities = view.getBigUint64(iommu_hw_info.out_capabilities, true);
  return (capabilities & BigInt(IOMMU_HW_CAP_DIRTY_TRACKING)) === 0n ? 'no' : 'yes';
}

export interface HwptWish {
  readonly device: number;
  readonly ioas: number;
  readonly tracking: boolean;
  /** What is mapped already, and goes into the new table at once. */
  readonly bytes: number;
}

/**
 * A page table of our own instead of the one that ATTACH to an IOAS makes by itself: it outlives the device's fd, so the RAM is not
 * unpinned by close() on the JS thread, and only such a one can track dirty pages.
 */
export async function allocHwpt(on: IommufdDoor, wish: HwptWish): Promise<number> {
  const arg = new Uint8Array(iommu_hwpt_alloc.size);
  const view = sized(arg);
  view.setUint32(iommu_hwpt_alloc.flags, wish.tracking ? IOMMU_HWPT_ALLOC_DIRTY_TRACKING : 0, true);
  view.setUint32(iommu_hwpt_alloc.dev_id, wish.device, true);
  view.setUint32(iommu_hwpt_alloc.pt_id, wish.ioas, true);
  const name = wish.tracking ? 'IOMMU_HWPT_ALLOC(DIRTY_TRACKING)' : 'IOMMU_HWPT_ALLOC';
  await within(on.door.ioctlAsync(name, on.fd, IOMMU_HWPT_ALLOC, arg), {
    ms: pinningMs(wish.bytes),
    what: 'making an IOMMU page table',
  });
  return view.getUint32(iommu_hwpt_alloc.out_hwpt_id, true);
}

/** `id`: an IOAS or a hwpt that nothing uses any more. */
export async function destroyObject(on: IommufdDoor, id: number, bytes: number): Promise<void> {
  const arg = new Uint8Array(iommu_destroy.size);
  sized(arg).setUint32(iommu_destroy.id, id, true);
  await within(on.door.ioctlAsync('IOMMU_DESTROY', on.fd, IOMMU_DESTROY, arg), {
    ms: pinningMs(bytes),
    what: 'giving back an IOMMU page table',
  });
}

/** Makes the device fd usable. Gives the device's id in the iommufd; undone by closing the device fd. */
export async function bindDevice(door: KernelDoor, fd: number, iommufd: number): Promise<number> {
  const arg = new Uint8Array(vfio_device_bind_iommufd.size);
  const view = sized(arg);
  view.setInt32(vfio_device_bind_iommufd.iommufd, iommufd, true);
  await within(door.ioctlAsync('VFIO_DEVICE_BIND_IOMMUFD', fd, VFIO_DEVICE_BIND_IOMMUFD, arg), {
    ms: BIND_MS,
    what: 'binding the device to /dev/iommu',
  });
  return view.getUint32(vfio_device_bind_iommufd.out_devid, true);
}

/** `table`: a hwpt, or an IOAS for a device with an emulated IOMMU. Undone by closing the device fd. */
export async function attachDevice(door: KernelDoor, fd: number, table: number, bytes: number): Promise<void> {
  const arg = new Uint8Array(vfio_device_attach_iommufd_pt.size);
  sized(arg).setUint32(vfio_device_attach_iommufd_pt.pt_id, table, true);
  await within(door.ioctlAsync('VFIO_DEVICE_ATTACH_IOMMUFD_PT', fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, arg), {
    ms: pinningMs(bytes),
    what: 'attaching the device to its IOMMU page table',
  });
}

function rangesOf(list: Uint8Array, count: number): GpaRange[] {
  const view = new DataView(list.buffer);
  return Array.from({ length: count }, (_, i) => {
    const at = i * iommu_iova_range.size;
    const start = Number(view.getBigUint64(at + iommu_iova_range.start, true));
    // A full 64-bit space ends at 2^64-1: no guest address is above 2^52, so the rounding does not matter.
    const last = Number(view.getBigUint64(at + iommu_iova_range.last, true));
    return { start, length: last - start + 1 };
  });
}

/** Every struct of both interfaces begins with its own size. */
function sized(arg: Uint8Array): DataView {
  const view = new DataView(arg.buffer);
  view.setUint32(0, arg.length, true);
  return view;
}

function hex(value: number): string {
  return `0x${value.toString(16)}`;
}
