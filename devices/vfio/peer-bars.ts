// The mapped BARs of passed-through devices as targets of each other's DMA (peer to peer, as between GPUs): a BAR that the guest has placed is
// mapped where it lies into the IOMMU space that the devices share, and unmapped when it goes. Called by regions.ts as BARs come and go,
// one for each DmaSpace (pci-type.ts); the work is done behind, because the kernel walks a BAR page by page. linux/vfio.h, VFIO_IOMMU_MAP_DMA
import type { DeviceLog, GpaRange, HostMapping } from '../contract.ts';
import type { PeerDmaPort } from './transport.ts';

export interface PeerBarsParts {
  readonly port: PeerDmaPort;
  readonly log: DeviceLog;
}

export class PeerBars {
  readonly #port: PeerDmaPort;
  readonly #log: DeviceLog;
  /** Where the guest has them. */
  readonly #placed = new Map<HostMapping, number>();
  /** Where devices reach them. */
  readonly #mapped = new Map<HostMapping, number>();
  /** What the kernel has refused, where it has: not asked for again before the BAR has gone from there. */
  readonly #refused = new Map<HostMapping, number>();
  readonly #followers = new Set<() => void>();
  #devices = 0;
  #work: Promise<void> | null = null;

  constructor({ port, log }: PeerBarsParts) {
    this.#port = port;
    this.#log = log;
  }

  /** A device has come. One alone has no peers, and nothing is mapped. */
  joined(): void {
    this.#devices += 1;
    this.#follow();
  }

  left(): void {
    this.#devices -= 1;
    this.#follow();
  }

  /** `bar`, or a window of one, is at `gpa` now. It must stay mmapped until it was removed and settled() has resolved. */
  place(gpa: number, bar: HostMapping): void {
    this.#placed.set(bar, gpa);
    this.#follow();
  }

  remove(bar: HostMapping): void {
    this.#placed.delete(bar);
    this.#refused.delete(bar);
    this.#follow();
  }

  /** What devices can reach beside RAM. */
  get ranges(): readonly GpaRange[] {
    return [...this.#mapped].map(([bar, gpa]) => ({ start: gpa, length: bar.size }));
  }

  /** `follower` is called whenever `ranges` has changed. */
  onChange(follower: () => void): void {
    this.#followers.add(follower);
  }

  /** What was placed and removed so far is in effect. Never rejects. */
  async settled(): Promise<void> {
    while (this.#work !== null) await this.#work;
  }

  #follow(): void {
    if (this.#work !== null || this.#next() === null) return;
    this.#work = this.#catchUp().finally(() => {
      this.#work = null;
      this.#follow();
    });
  }

  async #catchUp(): Promise<void> {
    let changed = false;
    for (let step = this.#next(); step !== null; step = this.#next()) {
      await step();
      changed = true;
    }
    if (changed) for (const follower of this.#followers) follower();
  }

  /** What goes comes first: BARs may swap places. */
  #next(): (() => Promise<void>) | null {
    for (const [bar, gpa] of this.#mapped) if (this.#wanted(bar) !== gpa) return () => this.#unmap(bar, gpa);
    for (const [bar, gpa] of this.#placed) {
      if (this.#wanted(bar) === gpa && !this.#mapped.has(bar) && this.#refused.get(bar) !== gpa)
        return () => this.#map(bar, gpa);
    }
    return null;
  }

  #wanted(bar: HostMapping): number | null {
    return this.#devices > 1 ? (this.#placed.get(bar) ?? null) : null;
  }

  async #map(bar: HostMapping, gpa: number): Promise<void> {
    try {
      await this.#port.map(gpa, bar);
      this.#mapped.set(bar, gpa);
    } catch (err) {
      // Moved or switched off meanwhile, it cannot be mapped there; else this IOMMU does not reach so far, for example.
      if (this.#wanted(bar) !== gpa) return;
      this.#refused.set(bar, gpa);
      const message = `a BAR at 0x${gpa.toString(16)} (${bar.size} bytes) cannot be mapped for the DMA of the guest's other devices: those do not reach it`;
      this.#log.warn({ err }, message);
    }
  }

  async #unmap(bar: HostMapping, gpa: number): Promise<void> {
    this.#mapped.delete(bar);
    try {
      await this.#port.unmap({ gpa, size: bar.size });
    } catch (err) {
      this.#log.warn({ err }, `a BAR at 0x${gpa.toString(16)} stays mapped for the DMA of the guest's other devices`);
    }
  }
}
