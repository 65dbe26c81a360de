// Dirty system memory of the device state regions: a range is written to CTL, the bitmap is read from the DIRTY_BITMAP region. Used by
// device-state-regions.ts, by turns with everything else. What was told before the device stopped for good is kept until the tracker asks.
// GVT-g checks neither page_nr nor the length of a read: both are bounded here, and the bitmap is read from offset 0 on.
// struct vfio_device_state_ctl of February 2019, "get system memory dirty bitmap"
import { VmmError } from '../../../native/errno.ts';
import type { PageBitmap, RamRange } from '../../contract.ts';
import type { RegionDirtyPort } from '../transport.ts';
import type { RegionDoor } from './region-door.ts';
import { CTL } from './state-ctl.ts';
import type { Turns } from './turns.ts';

/** The text leaves it open; GVT-g's pages are the host's. */
const PAGE = 4096;
/** GVT-g counts them in an int. */
const MOST_PAGES = 2 ** 30;

export interface StateDirtyParts {
  readonly ctl: RegionDoor;
  readonly bitmap: RegionDoor;
  readonly turns: Turns;
  /** 'kept': it has stopped and all that it wrote was kept. 'unknown': it is told in the LOGGING states only. */
  readonly told: () => 'logging' | 'kept' | 'unknown';
}

export class StateDirty implements RegionDirtyPort {
  readonly #parts: StateDirtyParts;
  #ram: readonly RamRange[] = [];
  /** Told by the device and not yet asked for by the tracker. Null: not started. */
  #kept: PageBitmap | null = null;
  /** What was to be kept could not be read: the tracker hears of it when it asks, and takes all RAM. */
  #lost: unknown = null;

  constructor(parts: StateDirtyParts) {
    this.#parts = parts;
  }

  start(ram: readonly RamRange[], newBitmap: () => PageBitmap): void {
    this.#ram = ram;
    this.#kept ??= newBitmap();
  }

  collect(into: PageBitmap): Promise<void> {
    return this.#parts.turns.run(async () => {
      const kept = this.#kept;
      if (kept === null) return;
      const lost = this.#lost;
      this.#lost = null;
      if (lost !== null) throw lost;
      const told = this.#parts.told();
      if (told === 'unknown') {
        const what = `${this.#parts.ctl.name}: dirty pages are told in the LOGGING states only`;
        throw new VmmError('vfio-dirty', what, { exitCode: 1 });
      }
      if (told === 'logging') await this.#ask(into);
      into.or(kept);
      kept.zero();
    });
  }

  /** Within a turn of the caller's. */
  async keep(): Promise<void> {
    if (this.#kept === null) return;
    try {
      await this.#ask(this.#kept);
    } catch (error) {
      this.#lost = error;
    }
  }

  stop(): void {
    this.#kept?.close();
    this.#kept = null;
    this.#lost = null;
    this.#ram = [];
  }

  async #ask(into: PageBitmap): Promise<void> {
    const { bitmap } = this.#parts;
    const most = Math.min(MOST_PAGES, Math.floor(bitmap.size / 8) * 64);
    for (const range of this.#ram) {
      for (let done = 0; done < range.size; done += most * PAGE) {
        const pages = Math.min(most, (range.size - done) / PAGE);
        await this.#query(range.gpa + done, pages);
        await bitmap.orBits({ offset: 0, bits: pages }, into, range.slice.offset + done, PAGE);
      }
    }
  }

  async #query(address: number, pages: number): Promise<void> {
    const bytes = new Uint8Array(16);
    const view = new DataView(bytes.buffer);
    view.setBigUint64(0, BigInt(address), true);
    view.setBigUint64(8, BigInt(pages), true);
    await this.#parts.ctl.write(CTL.systemMemory, bytes);
  }
}
