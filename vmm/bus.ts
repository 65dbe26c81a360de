// The guest's port and physical address space: who answers which access. Called by exits.ts for every exit (no allocation there) and
// by devices through AddressSpace (BARs come and go). Runs on the JS thread. Windows that the vCPU threads may answer by themselves
// (Region.fast) are handed down to the loop here and follow their claim.
import type { AddressSpace, Claim, ClaimHandle, FastWindow, Region, Space, Width } from '../devices/contract.ts';
import type { VcpuLoop } from '../native/addon.ts';
import { VmmError } from '../native/errno.ts';

export type FastPort = Pick<VcpuLoop, 'addFast' | 'removeFast' | 'drainPosted'>;

const PORTS = 0x10000;
/** Answers what nobody claims: a floating bus reads all-ones, and forgets writes. */
const NOBODY: Region = {
  name: 'unclaimed',
  size: 0,
  read: (_offset, width) => (width === 4 ? 0xffffffff : width === 2 ? 0xffff : 0xff),
  write: () => {},
  wide: null,
  fast: null,
};

interface Window {
  readonly space: Space;
  base: number;
  end: number;
  readonly region: Region;
  fast: FastWindow | null;
  fastId: number | null;
}

/** Physical ranges that no claim may touch: RAM, the interrupt controllers, KVM's own pages. */
export interface Reserved {
  readonly name: string;
  readonly start: number;
  readonly end: number;
}

const NONE: Window = { space: 'mmio', base: 0, end: 0, region: NOBODY, fast: null, fastId: null };

export class Bus implements AddressSpace {
  readonly #fast: FastPort;
  readonly #reserved: readonly Reserved[];
  /** Index into #ports by port number; 0 is nobody. One load a lookup. */
  readonly #portIndex = new Uint16Array(PORTS);
  readonly #ports: (Window | null)[] = [NONE];
  /** Sorted by base, never overlapping. */
  #mmio: Window[] = [];
  #lastMmio: Window = NONE;
  readonly #byFastId = new Map<number, Window>();

  constructor(fast: FastPort, reserved: readonly Reserved[]) {
    this.#fast = fast;
    this.#reserved = reserved;
  }

  claim(claim: Claim): ClaimHandle {
    const window: Window = {
      space: claim.space,
      base: claim.base,
      end: claim.base + claim.region.size,
      region: claim.region,
      fast: null,
      fastId: null,
    };
    this.#insert(window, claim.base);
    this.#addFast(window, claim.region.fast);
    let released = false;
    return {
      get base() {
        return window.base;
      },
      move: (base) => {
        if (released || base === window.base) return;
        this.#move(window, base);
      },
      refreshFast: (fast) => {
        if (released) return;
        this.#removeFast(window);
        this.#addFast(window, fast);
      },
      release: () => {
        if (released) return;
        released = true;
        this.#removeFast(window);
        this.#remove(window);
      },
    };
  }

  readPort(port: number, width: Width): number {
    const window = this.#port(port);
    if (port + width <= window.end || window === NONE) {
      // A wider access that begins where nobody is may still end where somebody is.
      if (window !== NONE || width === 1 || !this.#anyPort(port, width)) {
        return window.region.read(port - window.base, width);
      }
    }
    let value = 0;
    for (let i = 0; i < width; i++) {
      const byte = this.#port(port + i);
      value += (byte.region.read(port + i - byte.base, 1) & 0xff) * 2 ** (8 * i);
    }
    return value;
  }

  writePort(port: number, width: Width, value: number): void {
    const window = this.#port(port);
    if (window !== NONE && port + width <= window.end) {
      window.region.write(port - window.base, width, value);
      return;
    }
    for (let i = 0; i < width; i++) {
      const byte = this.#port(port + i);
      byte.region.write(port + i - byte.base, 1, (value >>> (8 * i)) & 0xff);
    }
  }

  /** Reads `length` bytes (1-8) at `gpa` into `view` at `at`, little-endian as the guest sees them. */
  readMmio(gpa: number, length: number, view: DataView, at: number): void {
    const window = this.#find(gpa);
    if (window !== NONE && gpa + length <= window.end) {
      const offset = gpa - window.base;
      const region = window.region;
      if (length === 4) view.setUint32(at, region.read(offset, 4), true);
      else if (length === 1) view.setUint8(at, region.read(offset, 1));
      else if (length === 2) view.setUint16(at, region.read(offset, 2), true);
      else if (length === 8 && region.wide !== null) view.setBigUint64(at, region.wide.read(offset), true);
      else if (length === 8) {
        view.setUint32(at, region.read(offset, 4), true);
        view.setUint32(at + 4, region.read(offset + 4, 4), true);
      } else for (let i = 0; i < length; i++) view.setUint8(at + i, region.read(offset + i, 1));
      return;
    }
    for (let i = 0; i < length; i++) {
      const byte = this.#find(gpa + i);
      view.setUint8(at + i, byte.region.read(gpa + i - byte.base, 1));
    }
  }

  writeMmio(gpa: number, length: number, view: DataView, at: number): void {
    const window = this.#find(gpa);
    if (window !== NONE && gpa + length <= window.end) {
      const offset = gpa - window.base;
      const region = window.region;
      if (length === 4) region.write(offset, 4, view.getUint32(at, true));
      else if (length === 1) region.write(offset, 1, view.getUint8(at));
      else if (length === 2) region.write(offset, 2, view.getUint16(at, true));
      else if (length === 8 && region.wide !== null) region.wide.write(offset, view.getBigUint64(at, true));
      else if (length === 8) {
        region.write(offset, 4, view.getUint32(at, true));
        // The first half may have moved or released the window; the second goes where it was meant to.
        region.write(offset + 4, 4, view.getUint32(at + 4, true));
      } else for (let i = 0; i < length; i++) region.write(offset + i, 1, view.getUint8(at + i));
      return;
    }
    for (let i = 0; i < length; i++) {
      const byte = this.#find(gpa + i);
      byte.region.write(gpa + i - byte.base, 1, view.getUint8(at + i));
    }
  }

  /** A posted write of the fast path, in guest order. Its window may be gone by now: then so is the write. */
  posted(fastId: number, offset: number, width: number, value: number): void {
    const window = this.#byFastId.get(fastId);
    if (window !== undefined) window.region.write(offset, width as Width, value);
  }

  #port(port: number): Window {
    return port < PORTS ? (this.#ports[this.#portIndex[port]!] ?? NONE) : NONE;
  }

  #anyPort(port: number, width: number): boolean {
    for (let i = 0; i < width; i++) if (this.#port(port + i) !== NONE) return true;
    return false;
  }

  #find(gpa: number): Window {
    const last = this.#lastMmio;
    if (gpa >= last.base && gpa < last.end) return last;
    let low = 0;
    let high = this.#mmio.length - 1;
    while (low <= high) {
      const middle = (low + high) >> 1;
      const window = this.#mmio[middle]!;
      if (gpa < window.base) high = middle - 1;
      else if (gpa >= window.end) low = middle + 1;
      else {
        this.#lastMmio = window;
        return window;
      }
    }
    return NONE;
  }

  #insert(window: Window, base: number): void {
    const end = base + window.region.size;
    const clash = this.#clash(window.space, base, end, window);
    if (clash !== null) {
      const at = `${window.space} 0x${base.toString(16)}-0x${(end - 1).toString(16)}`;
      throw new VmmError(
        'bus-overlap',
        `cannot place ${window.region.name} at ${at}: ${clash} is there; choose another address`,
      );
    }
    window.base = base;
    window.end = end;
    if (window.space === 'pio') {
      let index = this.#ports.indexOf(null);
      if (index < 0) index = this.#ports.length;
      this.#ports[index] = window;
      this.#portIndex.fill(index, base, end);
      return;
    }
    const at = this.#mmio.findIndex((other) => other.base > base);
    this.#mmio.splice(at < 0 ? this.#mmio.length : at, 0, window);
  }

  #remove(window: Window): void {
    if (window.space === 'pio') {
      const index = this.#ports.indexOf(window);
      this.#portIndex.fill(0, window.base, window.end);
      this.#ports[index] = null;
      return;
    }
    this.#mmio = this.#mmio.filter((other) => other !== window);
    this.#lastMmio = NONE;
  }

  #move(window: Window, base: number): void {
    const from = window.base;
    const fast = window.fast;
    this.#removeFast(window);
    this.#remove(window);
    try {
      this.#insert(window, base);
    } catch (error) {
      this.#insert(window, from);
      this.#addFast(window, fast);
      throw error;
    }
    this.#addFast(window, fast);
  }

  /** The name of what lies in [base, end) already, or null. */
  #clash(space: Space, base: number, end: number, self: Window): string | null {
    if (!Number.isSafeInteger(base) || base < 0 || end <= base) return 'no such address';
    if (space === 'pio') {
      if (end > PORTS) return 'the end of the port space';
      for (let port = base; port < end; port++) {
        const window = this.#port(port);
        if (window !== NONE && window !== self) return window.region.name;
      }
      return null;
    }
    for (const range of this.#reserved) if (base < range.end && end > range.start) return range.name;
    for (const window of this.#mmio) {
      if (window !== self && base < window.end && end > window.base) return window.region.name;
    }
    return null;
  }

  #addFast(window: Window, fast: FastWindow | null): void {
    window.fast = fast;
    if (fast === null) return;
    window.fastId = this.#fast.addFast(window.space, window.base, window.region.size, fast);
    this.#byFastId.set(window.fastId, window);
  }

  #removeFast(window: Window): void {
    if (window.fastId === null) return;
    const id = window.fastId;
    window.fastId = null;
    this.#fast.removeFast(id);
    // What the vCPUs had posted before still belongs to this window, and the number may be given again.
    this.#fast.drainPosted();
    this.#byFastId.delete(id);
  }
}
