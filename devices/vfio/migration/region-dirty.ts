// The dirty source 'region': pages that a device reports through its migration region (v7's dirty pfns, the bitmap of the device state
// regions). Driven by the machine's dirty tracker; started before the device saves, asked only while it does. JS thread.
import type { DirtySource, GpaRange, PageBitmap, RamRange } from '../../contract.ts';
import type { RegionDirtyPort } from '../transport.ts';

export class RegionDirty implements DirtySource {
  readonly name = 'region';
  readonly coarse = false;
  readonly fallback: DirtySource | null;
  readonly #port: RegionDirtyPort;
  readonly #ram: readonly RamRange[];
  readonly #newBitmap: () => PageBitmap;
  /** Separate, to count what this source alone says. Null: not started. */
  #scratch: PageBitmap | null = null;

  constructor(
    port: RegionDirtyPort,
    ram: readonly RamRange[],
    newBitmap: () => PageBitmap,
    fallback: DirtySource | null,
  ) {
    this.#port = port;
    this.#ram = ram;
    this.#newBitmap = newBitmap;
    this.fallback = fallback;
  }

  async start(_ranges: readonly GpaRange[]): Promise<void> {
    if (this.#scratch !== null) return;
    this.#scratch = this.#newBitmap();
    this.#port.start(this.#ram, this.#newBitmap);
  }

  async collect(into: PageBitmap): Promise<number> {
    const scratch = this.#scratch;
    if (scratch === null) return 0;
    scratch.zero();
    await this.#port.collect(scratch);
    into.or(scratch);
    return scratch.count;
  }

  async stop(): Promise<void> {
    if (this.#scratch === null) return;
    this.#scratch.close();
    this.#scratch = null;
    this.#port.stop();
  }
}
