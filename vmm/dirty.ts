// Which pages of guest RAM must be sent (again): merges KVM's log (kvm-dirty.ts), the VMM's own writes and what the devices report into one bitmap a
// round. Driven by migration/ through DirtyTracker; JS thread, the bits themselves stay in C++. Policy: first round everything; a
// source that fails makes all RAM dirty and is named; coarse sources are asked in the last round only.
import type { DirtySource, DirtySourceKind, GpaRange, PageBitmap } from '../devices/contract.ts';
import type { DirtyOptions, DirtyRound, DirtyTracker, Log } from './api.ts';
import { PAGE } from './memory.ts';

/** What stands in for a device whose writes nobody can tell: all of RAM, once, when the guest stands still. */
export class AllOfRam implements DirtySource {
  readonly name = 'allOfRam';
  readonly coarse = true;
  readonly fallback = null;
  async start(_ranges: readonly GpaRange[]): Promise<void> {}
  async collect(into: PageBitmap): Promise<number> {
    into.fill();
    return into.pages;
  }
  async stop(): Promise<void> {}
}

export interface TrackerParts {
  readonly pages: number;
  readonly ranges: readonly GpaRange[];
  /** KVM's log and the VMM's writes. */
  readonly own: readonly DirtySource[];
  /** Device.dirty of each device that has one. */
  readonly devices: () => readonly DirtySource[];
  readonly createBitmap: (pages: number) => PageBitmap;
  readonly log: Log;
}

export class MergingTracker implements DirtyTracker {
  readonly #parts: TrackerParts;
  readonly #all = new AllOfRam();
  #running: DirtySource[] = [];
  #options: DirtyOptions = { deviceLog: true, drop: null };
  #bitmap: PageBitmap | null = null;
  /** Where a dropped source's bits go (negative controls of the tests). */
  #bin: PageBitmap | null = null;
  #first = true;

  constructor(parts: TrackerParts) {
    this.#parts = parts;
  }

  get sources(): readonly DirtySourceKind[] {
    return [...new Set(this.#wanted(this.#options).map((source) => source.name))];
  }

  get coarseBytes(): number {
    const sources = this.#running.length > 0 ? this.#running : this.#wanted(this.#options);
    return sources.some((source) => source.coarse) ? this.#parts.pages * PAGE : 0;
  }

  async start(options: DirtyOptions): Promise<void> {
    await this.stop();
    this.#options = options;
    this.#first = true;
    this.#bitmap = this.#parts.createBitmap(this.#parts.pages);
    if (options.drop !== null) this.#bin = this.#parts.createBitmap(this.#parts.pages);
    try {
      for (const source of this.#wanted(options)) await this.#begin(source);
    } catch (error) {
      await this.stop();
      throw error;
    }
  }

  async collect(last: boolean): Promise<DirtyRound> {
    const bitmap = this.#bitmap;
    if (bitmap === null) throw new Error('DirtyTracker.collect() before start()');
    const pages: Record<DirtySourceKind, number | null> = {
      kvm: null,
      vmm: null,
      deviceLog: null,
      region: null,
      container: null,
      iommufd: null,
      allOfRam: null,
    };
    for (const source of this.#running) pages[source.name] = 0;
    const failed: string[] = [];
    // Bits that the sender has not cleared yet stay: nothing here ever zeroes the bitmap.
    if (this.#first) bitmap.fill();
    else {
      for (const source of this.#running) {
        if (source.coarse && !last) continue;
        try {
          const into = this.#dropped(source, last) ? this.#bin! : bitmap;
          pages[source.name] = (pages[source.name] ?? 0) + (await source.collect(into));
        } catch (error) {
          this.#parts.log.warn({ err: error, source: source.name }, 'dirty source failed: all RAM counts as dirty');
          failed.push(source.name);
        }
      }
    }
    if (failed.length > 0) bitmap.fill();
    this.#first = false;
    return { bitmap, pages, failed };
  }

  async stop(): Promise<void> {
    const running = this.#running;
    this.#running = [];
    for (const source of running) {
      try {
        await source.stop();
      } catch (error) {
        // The migration is over either way, and the other sources must be stopped too.
        this.#parts.log.warn({ err: error, source: source.name }, 'dirty source did not stop');
      }
    }
    this.#bitmap?.close();
    this.#bin?.close();
    this.#bitmap = null;
    this.#bin = null;
  }

  #wanted(options: DirtyOptions): DirtySource[] {
    const devices = this.#parts
      .devices()
      .map((source) => (source.name === 'deviceLog' && !options.deviceLog ? (source.fallback ?? this.#all) : source));
    // Several devices may name one container or IOMMU page table: it is asked once.
    return [...new Set([...this.#parts.own, ...devices])];
  }

  /** A device's source that does not start is replaced by what is coarser; KVM's and our own have no substitute. */
  async #begin(source: DirtySource): Promise<void> {
    if (this.#running.includes(source)) return;
    try {
      await source.start(this.#parts.ranges);
      this.#running.push(source);
    } catch (error) {
      if (source.name === 'kvm' || source.name === 'vmm' || source === this.#all) throw error;
      const substitute = source.fallback ?? this.#all;
      this.#parts.log.warn(
        { err: error, source: source.name, substitute: substitute.name },
        'dirty source did not start',
      );
      await this.#begin(substitute);
    }
  }

  #dropped(source: DirtySource, last: boolean): boolean {
    const drop = this.#options.drop;
    return (
      (drop === 'deviceLog' && source.name === 'deviceLog') ||
      (drop === 'kvmLastRound' && last && source.name === 'kvm')
    );
  }
}
