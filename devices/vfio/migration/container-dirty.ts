// Dirty sources for devices that log nothing themselves: the container's pages ('container'), the dirty bits of iommufd's page tables
// ('iommufd') and, without those, all of RAM. One for all devices that share them. Driven by the machine's dirty tracker.
// linux/vfio.h, VFIO_IOMMU_DIRTY_PAGES; linux/iommufd.h, IOMMU_HWPT_GET_DIRTY_BITMAP
import type { DirtySource, GpaRange, PageBitmap, RamRange } from '../../contract.ts';
import type { ContainerDirtyPort, DmaSpace } from '../transport.ts';
import { Turns } from './turns.ts';

const PAGE = 4096;

export class ContainerDirty implements DirtySource {
  readonly name: ContainerDirtyPort['kind'];
  readonly coarse: boolean;
  readonly fallback = null;
  readonly #port: ContainerDirtyPort;
  readonly #ram: Set<RamRange>;
  readonly #newBitmap: () => PageBitmap;
  /** A report must not be under way while mappings change. */
  readonly #turns = new Turns();
  /** The kernel overwrites it; it is ORed into the round. Null: not started. */
  #scratch: PageBitmap | null = null;

  constructor(port: ContainerDirtyPort, ram: readonly RamRange[], newBitmap: () => PageBitmap) {
    this.name = port.kind;
    this.coarse = port.coarse;
    this.#port = port;
    this.#ram = new Set(ram);
    this.#newBitmap = newBitmap;
  }

  /** Several devices share this source; the tracker starts and stops it once. */
  async start(_ranges: readonly GpaRange[]): Promise<void> {
    if (this.#scratch !== null) return;
    await this.#port.start();
    this.#scratch = this.#newBitmap();
  }

  collect(into: PageBitmap): Promise<number> {
    return this.#turns.run(async () => {
      const scratch = this.#scratch;
      if (scratch === null) return 0;
      // Per mapping: GET_BITMAP may not split one.
      for (const range of this.#ram) await this.#port.report(range, scratch);
      return into.take(scratch);
    });
  }

  /**
   * Takes `range`, one of those given, out of `space`: it is reported no more, and what was written through it comes with the next collect().
   * Where nobody can tell that, all of it does. Rejects when the range stays mapped.
   */
  unmap(range: RamRange, space: Pick<DmaSpace, 'unmap'>): Promise<void> {
    return this.#turns.run(async () => {
      const scratch = this.#scratch;
      const told = scratch === null ? null : this.#port.unmap;
      if (told !== null && scratch !== null) await told.call(this.#port, range, scratch);
      else await space.unmap(range);
      if (told === null) scratch?.set(range.slice.offset / PAGE, range.size / PAGE);
      this.#ram.delete(range);
    });
  }

  /** Maps `range` into `space`, and asks for its pages from now on. */
  map(range: RamRange, space: Pick<DmaSpace, 'map'>): Promise<void> {
    return this.#turns.run(async () => {
      await space.map(range);
      this.#ram.add(range);
    });
  }

  async stop(): Promise<void> {
    if (this.#scratch === null) return;
    this.#scratch.close();
    this.#scratch = null;
    await this.#port.stop();
  }
}

/** Neither the device nor the IOMMU knows: whatever is mapped may have been written. */
export class AllOfRam implements DirtySource {
  readonly name = 'allOfRam';
  readonly coarse = true;
  readonly fallback = null;
  readonly #ram: readonly RamRange[];

  constructor(ram: readonly RamRange[]) {
    this.#ram = ram;
  }

  async start(_ranges: readonly GpaRange[]): Promise<void> {}

  async collect(into: PageBitmap): Promise<number> {
    let pages = 0;
    for (const range of this.#ram) {
      into.set(range.slice.offset / PAGE, range.size / PAGE);
      pages += range.size / PAGE;
    }
    return pages;
  }

  async stop(): Promise<void> {}
}
