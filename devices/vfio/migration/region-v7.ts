// The migration region as drafted in July 2019 (v7), which NVIDIA's vGPU module still has: v1's registers, and behind them four that tell
// dirty pages. Opened by probe-abi.ts. data_offset serves data and bitmap, so a query never comes between pending_bytes and the end of a
// chunk: both take turns. Pages are IOVA pages. struct vfio_device_migration_info of that patch, and its review
import {
  VFIO_DEVICE_DIRTY_PFNS_ALL,
  VFIO_DEVICE_DIRTY_PFNS_NONE,
  vfio_device_migration_info_v7,
} from '../../../native/abi/vfio-legacy.ts';
import { SysError, VmmError } from '../../../native/errno.ts';
import type { PageBitmap, RamRange } from '../../contract.ts';
import type { RegionDirtyPort } from '../transport.ts';
import { word } from './feature-v2.ts';
import type { Field, RegionDoor } from './region-door.ts';
import { RegionPort, type RegionShared } from './region-port.ts';
import { readRegionState } from './region-state.ts';

const PAGE = 4096;
/** What a device may track by, finest first: the text leaves it to the driver whether it takes a page size. */
const PAGE_SIZES = [PAGE, 2 ** 16, 2 ** 21] as const;

type Register = 'start_pfn' | 'page_size' | 'total_pfns' | 'copied_pfns';
const field = (name: Register): Field => ({ name, at: vfio_device_migration_info_v7[name] });

export async function openRegionV7(region: RegionDoor, split: boolean): Promise<RegionPort> {
  return new RegionPort(region, {
    abi: 'v7',
    headerBytes: vfio_device_migration_info_v7.size,
    split,
    state: await readRegionState(region),
    dirtyOf: (shared) => new DirtyPfns(shared),
  });
}

class DirtyPfns implements RegionDirtyPort {
  readonly #shared: RegionShared;
  #ram: readonly RamRange[] = [];
  #pageSize: number = PAGE;

  constructor(shared: RegionShared) {
    this.#shared = shared;
  }

  start(ram: readonly RamRange[]): void {
    this.#ram = ram;
  }

  async collect(into: PageBitmap): Promise<void> {
    for (const range of this.#ram) await this.#shared.turns.run(() => this.#range(range, into));
  }

  stop(): void {
    this.#ram = [];
  }

  async #range(range: RamRange, into: PageBitmap): Promise<void> {
    const state = this.#shared.state();
    if (state !== 'pre-copy' && state !== 'stop-copy') {
      throw this.#error(`dirty pages are told in the saving states only, and it is in ${word(state)}`);
    }
    for (;;) {
      try {
        await this.#walk(range, into);
        return;
      } catch (error) {
        // What was marked meanwhile stays marked: asking anew can only add to it.
        if (!this.#coarser(range, error)) throw error;
      }
    }
  }

  async #walk(range: RamRange, into: PageBitmap): Promise<void> {
    const size = this.#pageSize;
    if (range.gpa % size !== 0) {
      throw this.#error(`its driver tells dirty pages by ${size} bytes, and RAM begins at 0x${range.gpa.toString(16)}`);
    }
    for (let done = 0, left = Math.ceil(range.size / size); left > 0; ) {
      const copied = await this.#ask(range.gpa / size + done, left);
      const start = range.slice.offset + done * size;
      // First of all, for it is above any number of pages.
      if (copied === VFIO_DEVICE_DIRTY_PFNS_ALL) {
        into.set(start / PAGE, (range.size - done * size) / PAGE);
        return;
      }
      if (copied === BigInt(VFIO_DEVICE_DIRTY_PFNS_NONE)) return;
      if (copied > BigInt(left)) {
        throw this.#error(`its driver's copied_pfns is ${copied}, but ${left} pages were asked for`);
      }
      const bits = Number(copied);
      await this.#shared.region.orBits({ offset: await this.#bitmapAt(bits), bits }, into, start, size);
      done += bits;
      left -= bits;
    }
  }

  /** All three are written each time; the read makes the driver answer. */
  async #ask(start: number, total: number): Promise<bigint> {
    const { region } = this.#shared;
    await region.writeU64(field('start_pfn'), start);
    await region.writeU64(field('page_size'), this.#pageSize);
    await region.writeU64(field('total_pfns'), total);
    return region.readU64(field('copied_pfns'));
  }

  async #bitmapAt(bits: number): Promise<number> {
    const { chunks, region } = this.#shared;
    const offset = await chunks.dataOffset();
    const bytes = Math.ceil(bits / 8);
    if (offset + bytes <= region.size) return offset;
    throw this.#error(
      `its driver's copied_pfns is ${bits}, but there is no room for ${bytes} bytes at data_offset ${offset}`,
    );
  }

  /** Takes the next larger page size where the driver refuses this one. */
  #coarser(range: RamRange, error: unknown): boolean {
    const refused = error instanceof VmmError && error.cause instanceof SysError && error.cause.code === 'EINVAL';
    const next = PAGE_SIZES.find((size) => size > this.#pageSize);
    if (!refused || next === undefined || range.gpa % next !== 0 || range.slice.offset % next !== 0) return false;
    this.#pageSize = next;
    return true;
  }

  #error(what: string): VmmError {
    return new VmmError('vfio-dirty', `${this.#shared.region.name}: ${what}`, { exitCode: 1 });
  }
}
