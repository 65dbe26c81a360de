// A machine as a device sees it, made of records: what it claimed, which lines and messages it drove, what it asked for.
// For unit tests of devices; no KVM, no threads. Overlap is refused like vmm/bus.ts does it.
import type {
  AddressSpace,
  Claim,
  ClaimHandle,
  Device,
  DeviceHost,
  FastWindow,
  IrqPort,
  MsiVector,
  Region,
  Space,
  Width,
} from '../../devices/contract.ts';
import { VmmError } from '../../native/errno.ts';

interface Placed {
  space: Space;
  base: number;
  region: Region;
  fast: FastWindow | null;
}

/** Ports and memory addresses, with accesses as a guest makes them. */
export class FakeBus implements AddressSpace {
  readonly windows: Placed[] = [];

  claim(claim: Claim): ClaimHandle {
    const placed: Placed = { space: claim.space, base: claim.base, region: claim.region, fast: claim.region.fast };
    this.#insert(placed);
    return {
      get base() {
        return placed.base;
      },
      move: (base) => {
        this.#remove(placed);
        placed.base = base;
        this.#insert(placed);
      },
      refreshFast: (fast) => {
        placed.fast = fast;
      },
      release: () => this.#remove(placed),
    };
  }

  /** Claims what the machine would claim for a device. */
  plug(device: Device): void {
    for (const claim of device.claims) this.claim(claim);
  }

  in(address: number, width: Width = 1, space: Space = 'pio'): number {
    const hit = this.find(address, width, space);
    return hit === null ? 2 ** (8 * width) - 1 : hit.region.read(address - hit.base, width);
  }

  out(address: number, value: number, width: Width = 1, space: Space = 'pio'): void {
    const hit = this.find(address, width, space);
    hit?.region.write(address - hit.base, width, value);
  }

  find(address: number, width: Width, space: Space): Placed | null {
    const fits = (w: Placed) => w.space === space && address >= w.base && address + width <= w.base + w.region.size;
    return this.windows.find(fits) ?? null;
  }

  #insert(placed: Placed): void {
    const end = placed.base + placed.region.size;
    const clash = this.windows.find(
      (other) => other.space === placed.space && placed.base < other.base + other.region.size && end > other.base,
    );
    if (clash !== undefined) throw new VmmError('bus-overlap', `${placed.region.name} overlaps ${clash.region.name}`);
    this.windows.push(placed);
  }

  #remove(placed: Placed): void {
    const at = this.windows.indexOf(placed);
    if (at >= 0) this.windows.splice(at, 1);
  }
}

/** A vector whose eventfd is a counter; sent messages end up in `irq.sent`. */
export class FakeVector implements MsiVector {
  readonly eventFd = -1;
  route_: { address: bigint; data: number } | null = null;
  attached = false;
  count = 0;
  released = false;
  readonly requesterId: number;
  readonly #irq: FakeIrq;

  constructor(irq: FakeIrq, requesterId: number) {
    this.#irq = irq;
    this.requesterId = requesterId;
  }

  route(address: bigint, data: number): void {
    this.route_ = { address, data };
  }
  mask(): void {
    this.attached = false;
  }
  unmask(): void {
    this.attached = true;
  }
  takePending(): boolean {
    const pending = this.count > 0;
    this.count = 0;
    return pending;
  }
  trigger(): void {
    if (this.attached && this.route_ !== null) this.#irq.sent.push(this.route_);
    else this.count++;
  }
  release(): void {
    this.released = true;
    this.attached = false;
  }
}

export class FakeIrq implements IrqPort {
  readonly levels = new Map<number, boolean>();
  /** Every change of a line, in order. */
  readonly edges: { gsi: number; level: boolean }[] = [];
  readonly vectors: FakeVector[] = [];
  readonly sent: { address: bigint; data: number }[] = [];
  commits = 0;

  line(gsi: number): { set(level: boolean): void } {
    return {
      set: (level) => {
        if (this.levels.get(gsi) !== level) this.edges.push({ gsi, level });
        this.levels.set(gsi, level);
      },
    };
  }
  levelIrqFd(): never {
    throw new Error('no emulated device uses level irqfds');
  }
  msi(requesterId: number): MsiVector {
    const vector = new FakeVector(this, requesterId);
    this.vectors.push(vector);
    return vector;
  }
  commit(): void {
    this.commits++;
  }
}

export interface FakeHost extends DeviceHost {
  readonly bus: FakeBus;
  readonly irq: FakeIrq;
  /** requestReset and requestEnd, as they came. */
  readonly asked: string[];
  /** The log's warnings. */
  readonly warned: string[];
}

export function fakeHost(): FakeHost {
  const asked: string[] = [];
  const warned: string[] = [];
  const nothing = () => {};
  return {
    log: { debug: nothing, info: nothing, warn: (_fields, message) => warned.push(message) },
    bus: new FakeBus(),
    irq: new FakeIrq(),
    asked,
    warned,
    memory: { ranges: [], read: () => false, write: () => false },
    get ram(): never {
      throw new Error('no RAM in this fake');
    },
    slots: {
      map: () => {
        throw new Error('no slots in this fake');
      },
    },
    kvmVfio: { add: nothing, remove: nothing },
    now: () => process.hrtime.bigint(),
    requestReset: (reason) => asked.push(`reset ${reason}`),
    requestEnd: (reason, exitCode) => asked.push(`end ${reason} ${exitCode}`),
    watch: () => ({ close: nothing }),
  };
}
