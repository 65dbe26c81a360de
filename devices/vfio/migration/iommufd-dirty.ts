// Dirty pages by the IOMMU itself: the dirty bits in a hwpt's page table (AMD, and Intel in scalable mode). Precise, unlike type1.
// Made by open-cdev.ts for a hwpt that was allocated with tracking; driven through ContainerDirty. Queries run on native threads: they
// walk the page table. linux/iommufd.h, IOMMU_HWPT_SET_DIRTY_TRACKING, IOMMU_HWPT_GET_DIRTY_BITMAP
import {
  IOMMU_HWPT_DIRTY_TRACKING_ENABLE,
  IOMMU_HWPT_GET_DIRTY_BITMAP,
  IOMMU_HWPT_SET_DIRTY_TRACKING,
  iommu_hwpt_get_dirty_bitmap,
  iommu_hwpt_set_dirty_tracking,
} from '../../../native/abi/iommufd.ts';
import type { PageBitmap, RamRange } from '../../contract.ts';
import { pinningMs, within } from '../deadline.ts';
import type { IommufdDoor } from '../iommufd-dma.ts';
import type { ContainerDirtyPort } from '../transport.ts';

const PAGE = 4096;

export class HwptDirty implements ContainerDirtyPort {
  readonly kind = 'iommufd';
  readonly coarse = false;
  /** IOMMU_IOAS_UNMAP tells of no dirty pages, and what is written between a report and it nobody knows. */
  readonly unmap = null;
  readonly #on: IommufdDoor;
  readonly #hwpt: number;
  /** Of all that is mapped: enabling and disabling walk the whole table. */
  readonly #bytes: number;

  constructor(on: IommufdDoor, hwpt: number, bytes: number) {
    this.#on = on;
    this.#hwpt = hwpt;
    this.#bytes = bytes;
  }

  /** What was dirty before is forgotten by the kernel here. */
  start(): Promise<void> {
    return this.#set(IOMMU_HWPT_DIRTY_TRACKING_ENABLE, 'on');
  }

  stop(): Promise<void> {
    return this.#set(0, 'off');
  }

  async report(range: RamRange, into: PageBitmap): Promise<void> {
    const arg = new Uint8Array(iommu_hwpt_get_dirty_bitmap.size);
    const view = new DataView(arg.buffer);
    view.setUint32(iommu_hwpt_get_dirty_bitmap.size_at, arg.length, true);
    view.setUint32(iommu_hwpt_get_dirty_bitmap.hwpt_id, this.#hwpt, true);
    view.setBigUint64(iommu_hwpt_get_dirty_bitmap.iova, BigInt(range.gpa), true);
    view.setBigUint64(iommu_hwpt_get_dirty_bitmap.length, BigInt(range.size), true);
    // One bit for each of these, whatever size the table's own entries have: a dirty 2 MiB entry sets 512.
    view.setBigUint64(iommu_hwpt_get_dirty_bitmap.page_size, BigInt(PAGE), true);
    const at = iommu_hwpt_get_dirty_bitmap.data;
    const patch = { at, bitmap: into, firstPage: range.slice.offset / PAGE, pages: range.size / PAGE };
    const { door, fd } = this.#on;
    await within(door.ioctlAsync('IOMMU_HWPT_GET_DIRTY_BITMAP', fd, IOMMU_HWPT_GET_DIRTY_BITMAP, arg, [patch]), {
      ms: pinningMs(range.size),
      what: `the IOMMU's dirty pages at 0x${range.gpa.toString(16)}`,
    });
  }

  async #set(flags: number, word: string): Promise<void> {
    const arg = new Uint8Array(iommu_hwpt_set_dirty_tracking.size);
    const view = new DataView(arg.buffer);
    view.setUint32(iommu_hwpt_set_dirty_tracking.size_at, arg.length, true);
    view.setUint32(iommu_hwpt_set_dirty_tracking.flags, flags, true);
    view.setUint32(iommu_hwpt_set_dirty_tracking.hwpt_id, this.#hwpt, true);
    const { door, fd } = this.#on;
    const name = `IOMMU_HWPT_SET_DIRTY_TRACKING(${word})`;
    await within(door.ioctlAsync(name, fd, IOMMU_HWPT_SET_DIRTY_TRACKING, arg), {
      ms: pinningMs(this.#bytes),
      what: `the IOMMU's dirty tracking: ${word}`,
    });
  }
}
