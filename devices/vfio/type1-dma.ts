// The IOMMU mappings of a VFIO container (type1v2): all guest RAM, mapped once, shared by every device of the machine.
// Called by open-group.ts and through DmaSpace; MAP/UNMAP and dirty queries run on native threads because they take 5 ms a MiB in a
// lab host (pinning) and hold kernel locks. linux/vfio.h, VFIO_IOMMU_GET_INFO, VFIO_IOMMU_MAP_DMA, VFIO_IOMMU_DIRTY_PAGES
import {
  VFIO_DMA_MAP_FLAG_READ,
  VFIO_DMA_MAP_FLAG_WRITE,
  VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP,
  VFIO_IOMMU_DIRTY_PAGES,
  VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP,
  VFIO_IOMMU_DIRTY_PAGES_FLAG_START,
  VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP,
  VFIO_IOMMU_GET_INFO,
  VFIO_IOMMU_INFO_CAPS,
  VFIO_IOMMU_INFO_PGSIZES,
  VFIO_IOMMU_MAP_DMA,
  VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE,
  VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION,
  VFIO_IOMMU_UNMAP_DMA,
  vfio_bitmap,
  vfio_iommu_type1_dirty_bitmap,
  vfio_iommu_type1_dirty_bitmap_get,
  vfio_iommu_type1_dma_map,
  vfio_iommu_type1_dma_unmap,
  vfio_iommu_type1_info,
  vfio_iommu_type1_info_cap_iova_range,
  vfio_iommu_type1_info_cap_migration,
  vfio_iova_range,
} from '../../native/abi/vfio.ts';
import type { Patch } from '../../native/addon.ts';
import type { GpaRange, HostMapping, PageBitmap, RamRange } from '../contract.ts';
import { IOMMU_MS, pinningMs, within } from './deadline.ts';
import { capabilitiesOf } from './info-caps.ts';
import type { KernelDoor } from './kernel-door.ts';
import type { ContainerDirtyPort, DmaSpace, PeerDmaPort } from './transport.ts';

const PAGE = 4096;

export interface Type1Info {
  readonly pageSizes: bigint;
  readonly iovaRanges: readonly GpaRange[];
  /** Page sizes for which the container reports dirty pages; 0n: it does not. */
  readonly dirtyPageSizes: bigint;
  readonly maxDirtyBitmapBytes: bigint;
}

/** VFIO_IOMMU_GET_INFO with its capability chain. */
export function readType1Info(door: KernelDoor, fd: number): Type1Info {
  let bytes = new Uint8Array(vfio_iommu_type1_info.size);
  for (;;) {
    const view = new DataView(bytes.buffer);
    view.setUint32(vfio_iommu_type1_info.argsz, bytes.length, true);
    door.ioctl('VFIO_IOMMU_GET_INFO', fd, VFIO_IOMMU_GET_INFO, bytes);
    const wanted = view.getUint32(vfio_iommu_type1_info.argsz, true);
    if (wanted <= bytes.length) return parseType1Info(bytes);
    bytes = new Uint8Array(wanted);
  }
}

export function parseType1Info(bytes: Uint8Array): Type1Info {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const flags = view.getUint32(vfio_iommu_type1_info.flags, true);
  const pageSizes =
    (flags & VFIO_IOMMU_INFO_PGSIZES) === 0 ? 4096n : view.getBigUint64(vfio_iommu_type1_info.iova_pgsizes, true);
  let iovaRanges: GpaRange[] = [];
  let dirtyPageSizes = 0n;
  let maxDirtyBitmapBytes = 0n;
  const first = (flags & VFIO_IOMMU_INFO_CAPS) === 0 ? 0 : view.getUint32(vfio_iommu_type1_info.cap_offset, true);
  for (const cap of capabilitiesOf(view, first)) {
    if (cap.id === VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE) iovaRanges = iovaRangesOf(view, cap.offset);
    if (cap.id === VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION) {
      const base = cap.offset;
      dirtyPageSizes = view.getBigUint64(base + vfio_iommu_type1_info_cap_migration.pgsize_bitmap, true);
      maxDirtyBitmapBytes = view.getBigUint64(base + vfio_iommu_type1_info_cap_migration.max_dirty_bitmap_size, true);
    }
  }
  return { pageSizes, iovaRanges, dirtyPageSizes, maxDirtyBitmapBytes };
}

function iovaRangesOf(view: DataView, base: number): GpaRange[] {
  const count = view.getUint32(base + vfio_iommu_type1_info_cap_iova_range.nr_iovas, true);
  const ranges: GpaRange[] = [];
  for (let i = 0; i < count; i++) {
    const at = base + vfio_iommu_type1_info_cap_iova_range.iova_ranges + i * vfio_iova_range.size;
    if (at + vfio_iova_range.size > view.byteLength) break;
    const start = Number(view.getBigUint64(at + vfio_iova_range.start, true));
    // A full 64-bit aperture ends at 2^64-1: no guest address is above 2^52, so the rounding does not matter.
    const end = Number(view.getBigUint64(at + vfio_iova_range.end, true));
    ranges.push({ start, length: end - start + 1 });
  }
  return ranges;
}

export class Type1Dma implements DmaSpace {
  readonly pageSizes: bigint;
  readonly iovaRanges: readonly GpaRange[];
  readonly dirty: ContainerDirtyPort | null;
  readonly peers: PeerDmaPort = {
    map: (gpa, bar) => this.#mapBar(gpa, bar),
    unmap: (range) => this.unmap(range),
  };
  readonly #door: KernelDoor;
  readonly #fd: number;

  constructor(door: KernelDoor, fd: number, info: Type1Info, { coarse }: { readonly coarse: boolean }) {
    this.#door = door;
    this.#fd = fd;
    this.pageSizes = info.pageSizes;
    this.iovaRanges = info.iovaRanges;
    this.dirty = (info.dirtyPageSizes & BigInt(PAGE)) === 0n ? null : new Type1Dirty(door, fd, coarse);
  }

  map(range: RamRange): Promise<void> {
    const { ram, offset } = range.slice;
    const patch = { at: vfio_iommu_type1_dma_map.vaddr, ram, offset, length: range.size };
    return this.#map({ gpa: range.gpa, size: range.size }, patch, 'guest RAM');
  }

  /** Another device's BAR, or a part of it, as the target of DMA. It must stay mmapped. */
  #mapBar(gpa: number, bar: HostMapping): Promise<void> {
    const patch = { at: vfio_iommu_type1_dma_map.vaddr, mapping: bar, offset: 0, length: bar.size };
    return this.#map({ gpa, size: bar.size }, patch, "a peer's BAR");
  }

  async #map(range: Pick<RamRange, 'gpa' | 'size'>, patch: Patch, what: string): Promise<void> {
    const arg = new Uint8Array(vfio_iommu_type1_dma_map.size);
    const view = new DataView(arg.buffer);
    view.setUint32(vfio_iommu_type1_dma_map.argsz, arg.length, true);
    view.setUint32(vfio_iommu_type1_dma_map.flags, VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE, true);
    view.setBigUint64(vfio_iommu_type1_dma_map.iova, BigInt(range.gpa), true);
    view.setBigUint64(vfio_iommu_type1_dma_map.size_at, BigInt(range.size), true);
    await within(this.#door.ioctlAsync('VFIO_IOMMU_MAP_DMA', this.#fd, VFIO_IOMMU_MAP_DMA, arg, [patch]), {
      ms: pinningMs(range.size),
      what: `mapping ${what} at ${hex(range.gpa)} for DMA`,
    });
  }

  async unmap(range: Pick<RamRange, 'gpa' | 'size'>): Promise<void> {
    const arg = new Uint8Array(vfio_iommu_type1_dma_unmap.size);
    const view = new DataView(arg.buffer);
    view.setUint32(vfio_iommu_type1_dma_unmap.argsz, arg.length, true);
    view.setBigUint64(vfio_iommu_type1_dma_unmap.iova, BigInt(range.gpa), true);
    view.setBigUint64(vfio_iommu_type1_dma_unmap.size_at, BigInt(range.size), true);
    await within(this.#door.ioctlAsync('VFIO_IOMMU_UNMAP_DMA', this.#fd, VFIO_IOMMU_UNMAP_DMA, arg), {
      ms: pinningMs(range.size),
      what: `unmapping ${hex(range.gpa)} from DMA`,
    });
  }
}

/** VFIO_IOMMU_DIRTY_PAGES: START, STOP and GET_BITMAP exclude each other in one call. */
class Type1Dirty implements ContainerDirtyPort {
  readonly kind = 'container';
  /** Devices behind an IOMMU: type1 knows no more than that their pages are pinned. Those without one write by vfio_dma_rw(), which is seen
   *  page by page (and what they have pinned is reported every time). linux/vfio.h, VFIO_IOMMU_DIRTY_PAGES */
  readonly coarse: boolean;
  readonly #door: KernelDoor;
  readonly #fd: number;

  constructor(door: KernelDoor, fd: number, coarse: boolean) {
    this.#door = door;
    this.#fd = fd;
    this.coarse = coarse;
  }

  start(): Promise<void> {
    return this.#control(VFIO_IOMMU_DIRTY_PAGES_FLAG_START, 'START');
  }

  stop(): Promise<void> {
    return this.#control(VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP, 'STOP');
  }

  async #control(flag: number, word: string): Promise<void> {
    const arg = new Uint8Array(vfio_iommu_type1_dirty_bitmap.size);
    const view = new DataView(arg.buffer);
    view.setUint32(vfio_iommu_type1_dirty_bitmap.argsz, arg.length, true);
    view.setUint32(vfio_iommu_type1_dirty_bitmap.flags, flag, true);
    await within(this.#door.ioctlAsync(`VFIO_IOMMU_DIRTY_PAGES(${word})`, this.#fd, VFIO_IOMMU_DIRTY_PAGES, arg), {
      ms: IOMMU_MS,
      what: `the container's dirty tracking: ${word}`,
    });
  }

  async report(range: RamRange, into: PageBitmap): Promise<void> {
    // GET_BITMAP takes whole mappings only and the smallest page size only; we map one RAM range in one piece.
    const get = vfio_iommu_type1_dirty_bitmap.data;
    const arg = new Uint8Array(get + vfio_iommu_type1_dirty_bitmap_get.size);
    const view = new DataView(arg.buffer);
    view.setUint32(vfio_iommu_type1_dirty_bitmap.argsz, arg.length, true);
    view.setUint32(vfio_iommu_type1_dirty_bitmap.flags, VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP, true);
    view.setBigUint64(get + vfio_iommu_type1_dirty_bitmap_get.iova, BigInt(range.gpa), true);
    view.setBigUint64(get + vfio_iommu_type1_dirty_bitmap_get.size_at, BigInt(range.size), true);
    const patch = bitmapOf(range, into, view, get + vfio_iommu_type1_dirty_bitmap_get.bitmap);
    await within(this.#door.ioctlAsync('VFIO_IOMMU_DIRTY_PAGES(GET)', this.#fd, VFIO_IOMMU_DIRTY_PAGES, arg, [patch]), {
      ms: IOMMU_MS,
      what: `the container's dirty pages at ${hex(range.gpa)}`,
    });
  }

  /** linux/vfio.h, VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP: the bitmap follows the argument proper. */
  async unmap(range: RamRange, into: PageBitmap): Promise<void> {
    const bits = vfio_iommu_type1_dma_unmap.data;
    const arg = new Uint8Array(bits + vfio_bitmap.size);
    const view = new DataView(arg.buffer);
    view.setUint32(vfio_iommu_type1_dma_unmap.argsz, arg.length, true);
    view.setUint32(vfio_iommu_type1_dma_unmap.flags, VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP, true);
    view.setBigUint64(vfio_iommu_type1_dma_unmap.iova, BigInt(range.gpa), true);
    view.setBigUint64(vfio_iommu_type1_dma_unmap.size_at, BigInt(range.size), true);
    const patch = bitmapOf(range, into, view, bits);
    await within(this.#door.ioctlAsync('VFIO_IOMMU_UNMAP_DMA(GET)', this.#fd, VFIO_IOMMU_UNMAP_DMA, arg, [patch]), {
      ms: pinningMs(range.size),
      what: `unmapping ${hex(range.gpa)} from DMA, and its dirty pages`,
    });
  }
}

/** A struct vfio_bitmap at `at`, for one bit a page of `range` at its place in RAM. */
function bitmapOf(range: RamRange, into: PageBitmap, view: DataView, at: number): Patch {
  const pages = range.size / PAGE;
  view.setBigUint64(at + vfio_bitmap.pgsize, BigInt(PAGE), true);
  view.setBigUint64(at + vfio_bitmap.size_at, BigInt(Math.ceil(pages / 64) * 8), true);
  return { at: at + vfio_bitmap.data, bitmap: into, firstPage: range.slice.offset / PAGE, pages };
}

function hex(value: number): string {
  return `0x${value.toString(16)}`;
}
