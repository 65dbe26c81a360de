// A machine as a passed-through device sees it, in this process: KVM's irqfds, the bus, memory slots. For tests of devices/vfio.
// signal(fd) is what the device's interrupt does: injected where the irqfd is on, counted in the eventfd where it is off.
import type {
  Claim,
  ClaimHandle,
  DeviceHost,
  FastWindow,
  GuestRam,
  IrqPort,
  LevelIrqFd,
  MsiVector,
  RamRange,
  SlotHandle,
} from '../../devices/contract.ts';

export interface Injected {
  readonly address: bigint;
  readonly data: number;
}

interface FakeVector {
  readonly fd: number;
  address: bigint;
  data: number;
  /** As asked for, and as commit() made it. */
  wanted: boolean;
  assigned: boolean;
  count: number;
}

export class FakeIrqPort implements IrqPort {
  readonly injected: Injected[] = [];
  readonly vectors: FakeVector[] = [];
  readonly levels: { gsi: number; fd: number; resampleFd: number; on: boolean; acknowledged: boolean }[] = [];
  commits = 0;
  #nextFd = 1000;

  line(): { set(level: boolean): void } {
    return { set: () => {} };
  }

  levelIrqFd(gsi: number): LevelIrqFd {
    const level = { gsi, fd: this.#nextFd++, resampleFd: this.#nextFd++, on: false, acknowledged: false };
    this.levels.push(level);
    return {
      eventFd: level.fd,
      resampleFd: level.resampleFd,
      takeResample: () => {
        const was = level.acknowledged;
        level.acknowledged = false;
        return was;
      },
      mask: () => {
        level.on = false;
      },
      unmask: () => {
        level.on = true;
      },
      release: () => {
        this.levels.splice(this.levels.indexOf(level), 1);
      },
    };
  }

  msi(): MsiVector {
    const vector: FakeVector = { fd: this.#nextFd++, address: 0n, data: 0, wanted: false, assigned: false, count: 0 };
    this.vectors.push(vector);
    return {
      eventFd: vector.fd,
      route: (address, data) => {
        vector.address = address;
        vector.data = data;
      },
      mask: () => {
        vector.wanted = false;
      },
      unmask: () => {
        vector.wanted = true;
      },
      takePending: () => {
        const had = vector.count > 0;
        vector.count = 0;
        return had;
      },
      trigger: () => this.signal(vector.fd),
      release: () => {
        this.vectors.splice(this.vectors.indexOf(vector), 1);
      },
    };
  }

  commit(): void {
    this.commits += 1;
    for (const vector of this.vectors) {
      vector.assigned = vector.wanted;
      if (vector.assigned && vector.count > 0) {
        vector.count = 0;
        this.injected.push({ address: vector.address, data: vector.data });
      }
    }
  }

  signal(fd: number): void {
    const vector = this.vectors.find((each) => each.fd === fd);
    if (vector === undefined) return;
    if (vector.assigned) this.injected.push({ address: vector.address, data: vector.data });
    else vector.count += 1;
  }
}

export interface FakeSlot {
  readonly gpa: number;
  readonly size: number;
}

export class FakeHost implements DeviceHost {
  readonly irq = new FakeIrqPort();
  readonly claims: Claim[] = [];
  /** What the vCPU threads may answer of each. */
  readonly fast = new Map<Claim, FastWindow | null>();
  readonly mapped: FakeSlot[] = [];
  readonly warnings: string[] = [];
  readonly infos: string[] = [];
  readonly groupFds: number[] = [];
  readonly ram: GuestRam;
  readonly memory: DeviceHost['memory'];
  readonly watched: { fd: number; callback: (count: bigint) => void }[] = [];

  constructor(ram: GuestRam, ranges?: readonly RamRange[]) {
    this.ram = ram;
    this.memory = {
      ranges: ranges ?? [{ gpa: 0, size: ram.size, slice: { ram, offset: 0, size: ram.size } }],
      read: () => false,
      write: () => false,
    };
  }

  readonly log = {
    debug: () => {},
    info: (_fields: object, message: string) => {
      this.infos.push(message);
    },
    warn: (_fields: object, message: string) => {
      this.warnings.push(message);
    },
  };

  readonly bus = {
    claim: (claim: Claim): ClaimHandle => {
      this.claims.push(claim);
      this.fast.set(claim, claim.region.fast);
      return {
        base: claim.base,
        move: () => {},
        refreshFast: (fast) => {
          this.fast.set(claim, fast);
        },
        release: () => {
          this.claims.splice(this.claims.indexOf(claim), 1);
        },
      };
    },
  };

  readonly slots = {
    map: (gpa: number, _mapping: unknown, _offset: number, size: number): SlotHandle => {
      const slot = { gpa, size };
      this.mapped.push(slot);
      return { unmap: () => this.mapped.splice(this.mapped.indexOf(slot), 1) };
    },
  };

  readonly kvmVfio = {
    add: (fd: number) => {
      this.groupFds.push(fd);
    },
    remove: (fd: number) => {
      this.groupFds.splice(this.groupFds.indexOf(fd), 1);
    },
  };

  now(): bigint {
    return process.hrtime.bigint();
  }
  requestReset(): void {}
  requestEnd(): void {}

  watch(fd: number, callback: (count: bigint) => void): { close(): void } {
    const watch = { fd, callback };
    this.watched.push(watch);
    return { close: () => this.watched.splice(this.watched.indexOf(watch), 1) };
  }

  fastAt(base: number): FastWindow | null {
    const claim = this.claims.find((each) => each.base === base);
    return claim === undefined ? null : (this.fast.get(claim) ?? null);
  }

  /** What a guest's access to the bus finds. */
  regionAt(base: number) {
    return this.claims.find((claim) => claim.base === base)?.region ?? null;
  }
}

/** RAM that is never touched: for tests that need its size only. */
export function sizedRam(size: number): GuestRam {
  return { size, resident: () => 0 } as unknown as GuestRam;
}
