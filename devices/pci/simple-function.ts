// A PCI function composed of its parts: identity, BARs, one kind of interrupt, and the device's own state. This is what plug-ins are
// made with (docs/plugins.md); the author writes register semantics, everything that PCI asks for is here. JS thread.
import type {
  DeviceHost,
  DirtySource,
  InterruptGate,
  Migratable,
  PciAddress,
  PciFunction,
  Stateful,
  Width,
} from '../contract.ts';
import { StateRecord } from '../state-record.ts';
import { type BarKind, Bars } from './bars.ts';
import { COMMAND, CONFIG_SIZE, ConfigSpace, HEADER, STATUS } from './config-space.ts';
import { guardedRegion, type RegisterAccess } from './guarded-region.ts';
import { MsiCapability } from './msi.ts';
import { MSIX_ENTRY_SIZE, Msix, type MsixState } from './msix.ts';
import { VectorBinding } from './vector-binding.ts';

export interface SimpleBar extends RegisterAccess {
  readonly index: number;
  readonly kind: BarKind;
  readonly size: number;
  readonly prefetchable?: boolean;
}

export type SimpleInterrupts =
  | { readonly kind: 'none' }
  /** INTA#, by setLine(). */
  | { readonly kind: 'intx' }
  /** `count` 1, 2, 4 ... 32, by raise(). */
  | { readonly kind: 'msi'; readonly count: number }
  /** `bar`: a memory BAR of its own for the table and the pending bits; by raise(). */
  | { readonly kind: 'msix'; readonly count: number; readonly bar: number };

export interface SimpleFunctionSpec {
  readonly host: DeviceHost;
  readonly id: string;
  /** The registry's name of the type. */
  readonly type: string;
  readonly vendorId: number;
  readonly deviceId: number;
  readonly classCode: number;
  readonly revision?: number;
  readonly subsystemVendorId?: number;
  readonly subsystemId?: number;
  readonly bars: readonly SimpleBar[];
  readonly interrupts: SimpleInterrupts;
  /** The device's own registers; null when it has none that outlive an access. */
  readonly state: Stateful | null;
  readonly live?: Migratable | null;
  readonly dirty?: DirtySource | null;
  /** Registers back to power-on. */
  reset(): void;
  close?(): void | Promise<void>;
}

/** What the author gets: a PciFunction, and the way to its interrupts. */
export interface SimpleFunction extends PciFunction {
  /** Sends vector n, or keeps it pending while the guest has it masked. Nothing happens while MSI is switched off. */
  raise(vector: number): void;
  /** INTA#: stays as set until it is set again. */
  setLine(level: boolean): void;
}

/** Both MSI kinds as far as this file tells them apart: not at all. */
interface Vectors {
  afterWrite(offset: number, width: number): void;
  reset(): void;
  save(): unknown;
  /** Throws StateError, else hands back what puts the state in place. */
  prepare(state: unknown): () => void;
}

const PBA_ALIGNMENT = 0x800;
const STATE_VERSION = 1;

export function createPciFunction(spec: SimpleFunctionSpec): SimpleFunction {
  return new ComposedFunction(spec);
}

class ComposedFunction implements SimpleFunction {
  readonly id: string;
  readonly type: string;
  readonly claims = [];
  readonly live: Migratable | null;
  readonly dirty: DirtySource | null;
  readonly state: Stateful = {
    version: STATE_VERSION,
    save: () => this.#save(),
    load: (state, version) => this.#load(state, version),
  };
  readonly #spec: SimpleFunctionSpec;
  readonly #config = new ConfigSpace();
  readonly #bars: Bars;
  readonly #vectors: Vectors | null;
  #binding: VectorBinding | null = null;
  readonly #powerOn: Uint8Array;
  #line: { set(level: boolean): void } | null = null;
  #level = false;

  constructor(spec: SimpleFunctionSpec) {
    this.#spec = spec;
    this.id = spec.id;
    this.type = spec.type;
    this.live = spec.live ?? null;
    this.dirty = spec.dirty ?? null;
    this.#config.setIdentity({
      vendorId: spec.vendorId,
      deviceId: spec.deviceId,
      classCode: spec.classCode,
      revision: spec.revision ?? 0,
      subsystemVendorId: spec.subsystemVendorId ?? 0,
      subsystemId: spec.subsystemId ?? 0,
    });
    this.#bars = new Bars(this.#config, spec.host.bus, spec.host.log);
    for (const bar of spec.bars) {
      const region = guardedRegion(`${spec.id}.bar${bar.index}`, bar.size, bar, spec.host.log);
      this.#bars.add({ ...bar, prefetchable: bar.prefetchable ?? false, region, mapping: null });
    }
    this.#vectors = this.#addInterrupts(spec.interrupts);
    this.#powerOn = this.#config.save();
  }

  get interrupts(): InterruptGate | null {
    return this.#binding;
  }

  attached(address: PciAddress): void {
    this.#binding?.attachedAs((address.bus << 8) | (address.slot << 3) | address.function);
    if (this.#spec.interrupts.kind === 'intx') this.#line = this.#spec.host.irq.line(address.gsi);
  }

  readConfig(offset: number, width: Width): number {
    return this.#config.read(offset, width);
  }

  writeConfig(offset: number, width: Width, value: number): void {
    this.#config.write(offset, width, value);
    if (this.#bars.touches(offset, width)) this.#bars.update();
    this.#vectors?.afterWrite(offset, width);
    if (offset < HEADER.command + 2 && offset + width > HEADER.command) this.#driveLine();
  }

  raise(vector: number): void {
    this.#binding?.raise(vector);
  }

  setLine(level: boolean): void {
    this.#level = level;
    const status = this.#config.read(HEADER.status, 2) & ~STATUS.interrupt;
    this.#config.set(HEADER.status, 2, status | (level ? STATUS.interrupt : 0));
    this.#driveLine();
  }

  reset(): void {
    this.setLine(false);
    this.#bars.close();
    this.#config.restore(this.#powerOn);
    this.#vectors?.reset();
    this.#spec.reset();
  }

  async close(): Promise<void> {
    this.#bars.close();
    this.#binding?.release();
    await this.#spec.close?.();
  }

  #addInterrupts(interrupts: SimpleInterrupts): Vectors | null {
    if (interrupts.kind === 'none') return null;
    if (interrupts.kind === 'intx') {
      this.#config.setInterruptPin(1);
      return null;
    }
    const changed = (vector: number) => this.#binding?.changed(vector);
    if (interrupts.kind === 'msi') {
      const shape = { count: interrupts.count, address64: true, perVectorMask: true, at: null };
      const msi = new MsiCapability(this.#config, shape, changed);
      this.#binding = new VectorBinding(this.#spec.host.irq, msi);
      return {
        afterWrite: (offset, width) => msi.afterWrite(offset, width),
        reset: () => msi.refresh(),
        save: () => msi.save(),
        prepare: (state) => {
          const checked = msi.check(state);
          return () => msi.restore(checked);
        },
      };
    }
    const msix = this.#addMsix(interrupts.count, interrupts.bar, changed);
    this.#binding = new VectorBinding(this.#spec.host.irq, msix);
    return {
      afterWrite: (offset, width) => msix.afterWrite(offset, width),
      reset: () => msix.reset(),
      save: () => msix.save(),
      prepare: (state) => {
        const checked: MsixState = msix.check(state);
        return () => msix.restore(checked);
      },
    };
  }

  #addMsix(count: number, bar: number, changed: (vector: number) => void): Msix {
    const pbaOffset = Math.ceil((count * MSIX_ENTRY_SIZE) / PBA_ALIGNMENT) * PBA_ALIGNMENT;
    const shape = { count, tableBar: bar, tableOffset: 0, pbaBar: bar, pbaOffset, at: null };
    const msix = new Msix(this.#config, shape, changed);
    const size = Math.max(4096, 2 ** Math.ceil(Math.log2(pbaOffset + msix.pbaSize)));
    const access: RegisterAccess = {
      read: (offset, width) => {
        if (offset < msix.tableSize) return msix.readTable(offset, width);
        return offset >= pbaOffset ? msix.readPba(offset - pbaOffset, width) : 0;
      },
      // The pending bits are read-only. PCI 3.0, 6.8.2.
      write: (offset, width, value) => {
        if (offset < msix.tableSize) msix.writeTable(offset, width, value);
      },
    };
    const region = guardedRegion(`${this.id}.msix`, size, access, this.#spec.host.log);
    this.#bars.add({ index: bar, kind: 'mem32', size, prefetchable: false, region, mapping: null });
    return msix;
  }

  /** The line is shared with the status bit, which the guest sees even while the command register keeps the line down. */
  #driveLine(): void {
    const disabled = (this.#config.read(HEADER.command, 2) & COMMAND.intxDisable) !== 0;
    this.#line?.set(this.#level && !disabled);
  }

  #save(): unknown {
    const own = this.#spec.state;
    return {
      config: this.#config.save(),
      line: this.#level,
      vectors: this.#vectors?.save() ?? null,
      device: own?.save() ?? null,
      deviceVersion: own?.version ?? 0,
    };
  }

  /** Everything is judged before anything is changed; the device's own load() judges for itself, so it comes first. */
  #load(state: unknown, version: number): void {
    const record = new StateRecord(this.id, state, version, STATE_VERSION);
    const bytes = this.#config.check(record.bytes('config', 0, CONFIG_SIZE));
    const line = record.flag('line');
    const deviceVersion = record.integer('deviceVersion', Number.MAX_SAFE_INTEGER);
    const { vectors, device } = state as { vectors: unknown; device: unknown };
    const placeVectors = this.#vectors?.prepare(vectors) ?? null;
    this.#spec.state?.load(device, deviceVersion);
    this.#config.restore(bytes);
    this.#bars.update();
    placeVectors?.();
    this.setLine(line);
  }
}
