// The base address registers of one PCI function: sizing, and decoding that follows PCI_COMMAND and what the guest writes into them.
// Called by simple-function.ts and vfio's pci-function.ts after every configuration write. A BAR that is switched off, not assigned or
// in somebody's way is not decoded; nothing here throws because of a guest. PCI 3.0, 6.2.5.1.
import type { AddressSpace, ClaimHandle, DeviceLog, Region } from '../contract.ts';
import { COMMAND, type ConfigSpace, HEADER } from './config-space.ts';

export type BarKind = 'io' | 'mem32' | 'mem64';

export interface BarSpec {
  /** 0-5; a mem64 takes the next one too. */
  readonly index: number;
  readonly kind: BarKind;
  /** A power of two; at least 4 for I/O, 16 for memory. */
  readonly size: number;
  readonly prefetchable: boolean;
  /** Answers what exits; its size is the BAR's. */
  readonly region: Region;
  /** Told after the window was claimed, and before it is given back (memory slots go with it). null: trapped access is all there is. */
  readonly mapping: BarMapping | null;
}
export interface BarMapping {
  /** May fail half-way: removed() follows then. */
  placed(base: number): void;
  removed(): void;
}

interface Bar {
  readonly spec: BarSpec;
  readonly register: number;
  claim: ClaimHandle | null;
}

/** Above this no x86 has addresses; what a guest writes while it sizes a 64-bit BAR is beyond it. */
const ADDRESS_END = 2 ** 52;
const PORT_END = 0x10000;
const SPACE_IO = 0x1;
const TYPE_64 = 0x4;
const PREFETCHABLE = 0x8;

export class Bars {
  readonly #config: ConfigSpace;
  readonly #bus: AddressSpace;
  readonly #log: DeviceLog;
  readonly #bars: Bar[] = [];

  constructor(config: ConfigSpace, bus: AddressSpace, log: DeviceLog) {
    this.#config = config;
    this.#bus = bus;
    this.#log = log;
  }

  /** Before the guest runs. Throws RangeError on what cannot be a BAR: that is the device's author's mistake. */
  add(spec: BarSpec): void {
    const { index, kind, size } = spec;
    const smallest = kind === 'io' ? 4 : 16;
    const last = kind === 'mem64' ? 4 : 5;
    if (!Number.isInteger(index) || index < 0 || index > last) throw new RangeError(`BAR ${index} of kind ${kind}`);
    if (size < smallest || !Number.isInteger(Math.log2(size)) || (kind === 'io' && size > 256)) {
      throw new RangeError(`BAR ${index}: ${size} bytes is no size of a ${kind} BAR`);
    }
    if (kind === 'mem32' && size > 2 ** 31) throw new RangeError(`BAR ${index}: ${size} bytes needs mem64`);
    if (spec.region.size !== size) throw new RangeError(`BAR ${index}: its region has ${spec.region.size} bytes`);
    const register = HEADER.bar0 + 4 * index;
    const taken = this.#bars.some((bar) => overlaps(bar.spec, spec));
    if (taken) throw new RangeError(`BAR ${index} is there already`);
    const config = this.#config;
    if (kind === 'io') {
      // The upper 16 bits of a PC's I/O BAR are hard-wired to zero. PCI 3.0, 6.2.5.1.
      config.set(register, 4, SPACE_IO);
      config.allow(register, 4, PORT_END - size);
    } else {
      config.set(register, 4, (kind === 'mem64' ? TYPE_64 : 0) | (spec.prefetchable ? PREFETCHABLE : 0));
      config.allow(register, 4, size >= 2 ** 32 ? 0 : (2 ** 32 - size) >>> 0);
      if (kind === 'mem64') {
        config.set(register + 4, 4, 0);
        config.allow(register + 4, 4, size > 2 ** 32 ? (2 ** 32 - size / 2 ** 32) >>> 0 : 0xffffffff);
      }
    }
    this.#bars.push({ spec, register, claim: null });
  }

  /** Whether a configuration write to these bytes may change what is decoded. */
  touches(offset: number, width: number): boolean {
    const command = offset < HEADER.command + 2 && offset + width > HEADER.command;
    return command || (offset < HEADER.bar0 + 24 && offset + width > HEADER.bar0);
  }

  /** Makes the claims what command and BARs say. What goes is given back before anything new is claimed: BARs may swap places. */
  update(): void {
    for (const bar of this.#bars) {
      if (bar.claim !== null && bar.claim.base !== this.#wanted(bar)) this.#remove(bar);
    }
    for (const bar of this.#bars) {
      const wanted = this.#wanted(bar);
      if (bar.claim === null && wanted !== null) this.#place(bar, wanted);
    }
  }

  /** What the vCPU threads may answer of the regions has changed (Region.fast). */
  refreshFast(): void {
    for (const { claim, spec } of this.#bars) claim?.refreshFast(spec.region.fast);
  }

  /** Where the BAR is decoded now, or null. */
  base(index: number): number | null {
    return this.#bars.find((bar) => bar.spec.index === index)?.claim?.base ?? null;
  }

  /** Back to power-on: unassigned, nothing decoded. The command register is the caller's. */
  reset(): void {
    for (const bar of this.#bars) {
      this.#remove(bar);
      this.#config.write(bar.register, 4, 0);
      if (bar.spec.kind === 'mem64') this.#config.write(bar.register + 4, 4, 0);
    }
  }

  close(): void {
    for (const bar of this.#bars) this.#remove(bar);
  }

  #wanted(bar: Bar): number | null {
    const { kind, size } = bar.spec;
    const config = this.#config;
    const enabled = config.read(HEADER.command, 2) & (kind === 'io' ? COMMAND.io : COMMAND.memory);
    if (enabled === 0) return null;
    const low = config.read(bar.register, 4);
    if (kind === 'io') {
      const base = low & 0xfffc;
      return base === 0 || base + size > PORT_END ? null : base;
    }
    const high = kind === 'mem64' ? config.read(bar.register + 4, 4) : 0;
    const base = high * 2 ** 32 + low - (low & 0xf);
    // Zero is what an unassigned BAR holds; all-ones is what one being sized holds, and would wrap.
    if (base === 0 || base + size > ADDRESS_END) return null;
    return kind === 'mem32' && base + size >= 2 ** 32 ? null : base;
  }

  #place(bar: Bar, base: number): void {
    const { kind, region, mapping, index } = bar.spec;
    try {
      bar.claim = this.#bus.claim({ space: kind === 'io' ? 'pio' : 'mmio', base, region });
      mapping?.placed(base);
    } catch (error) {
      // Over RAM or another window: the guest's mistake or a moment while it moves things. Tried again at the next update.
      const why = error instanceof Error ? error.message : String(error);
      this.#log.debug({ bar: index, base, why }, 'BAR not decoded');
      this.#remove(bar);
    }
  }

  #remove(bar: Bar): void {
    if (bar.claim === null) return;
    bar.spec.mapping?.removed();
    bar.claim.release();
    bar.claim = null;
  }
}

function overlaps(a: BarSpec, b: BarSpec): boolean {
  const end = (spec: BarSpec) => spec.index + (spec.kind === 'mem64' ? 2 : 1);
  return a.index < end(b) && b.index < end(a);
}
