// Dirty sources for devices that log nothing themselves: the container's pages ('container') and, without those, all of RAM.
// The container's is one per machine, shared by its devices. Driven by the machine's dirty tracker.
// linux/vfio.h, VFIO_IOMMU_DIRTY_PAGES: for an IOMMU-backed device every mapped page is reported at every query, hence `coarse`.
import type { DirtySource, GpaRange, PageBitmap, RamRange } from '../../contract.ts';
import type { ContainerDirtyPort } from '../transport.ts';

const PAGE = 4096;

export class ContainerDirty implements DirtySource {
  readonly name = 'container';
  readonly coarse: boolean;
  readonly fallback = null;
  readonly #port: ContainerDirtyPort;
  readonly #ram: readonly RamRange[];
  readonly #newBitmap: () => PageBitmap;
  /** The kernel overwrites it; it is ORed into the round. Null: not started. */
  #scratch: PageBitmap | null = null;

  constructor(port: ContainerDirtyPort, ram: readonly RamRange[], newBitmap: () => PageBitmap, coarse: boolean) {
    this.#port = port;
    this.#ram = ram;
    this.#newBitmap = newBitmap;
    this.coarse = coarse;
  }

  /** Several devices share this source; the tracker starts and stops it once. */
  async start(_ranges: readonly GpaRange[]): Promise<void> {
    if (this.#scratch !== null) return;
    await this.#port.start();
    this.#scratch = this.#newBitmap();
  }

  async collect(into: PageBitmap): Promise<number> {
    const scratch = this.#scratch;
    if (scratch === null) return 0;
    scratch.zero();
    // Per mapping: GET_BITMAP may not split one.
    for (const range of this.#ram) await this.#port.report(range, scratch);
    into.or(scratch);
    return scratch.count;
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
