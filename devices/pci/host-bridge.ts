// PCI bus 0: the two ways to its configuration space (mechanism 1 at 0xcf8/0xcfc and ECAM), the host bridge's own function 00:00.0,
// slot assignment and INTx wiring. Built by the machine, which claims `claims` and attaches the functions. JS thread.
// PCI 3.0, 3.2.2.3.2 (mechanism 1); PCIe 5.0, 7.2.2 (ECAM); PCI 3.0, 2.2.6 (interrupt pins).
import { VmmError } from '../../native/errno.ts';
import type { Claim, Device, PciFunction, Region, Stateful, Width } from '../contract.ts';
import type { ResetControl } from '../platform/reset-control.ts';
import { StateRecord } from '../state-record.ts';
import { CONFIG_SIZE, ConfigSpace } from './config-space.ts';

export interface HostBridgeOptions {
  /** 0xcf8; the data window follows at +4. */
  readonly configPort: number;
  /** One MiB a bus; only bus 0 is populated. null: mechanism 1 alone. */
  readonly ecam: { readonly base: number; readonly size: number } | null;
  /** The GSI that a slot's INTA# is wired to. */
  readonly gsi: (slot: number) => number;
  /** 0xcf9 lies inside the address register's dword: byte accesses to it go there. null: nobody answers them. */
  readonly resetControl: ResetControl | null;
}

const SLOTS = 32;
const RESET_CONTROL_OFFSET = 1;
const DATA_OFFSET = 4;
const ENABLE = 0x80000000;
/** Reserved bits read as zero. PCI 3.0, figure 3-2. */
const ADDRESS_BITS = 0x80fffffc;

export class HostBridge implements Device {
  readonly id = 'pci-host';
  readonly type = 'pci-host';
  readonly claims: readonly Claim[];
  readonly live = null;
  readonly dirty = null;
  readonly interrupts = null;
  readonly state: Stateful = {
    version: 1,
    save: () => ({ address: this.#address, config: this.#own.save() }),
    load: (state, version) => this.#load(state, version),
  };
  readonly #own = new ConfigSpace();
  readonly #powerOn: Uint8Array;
  readonly #slots = new Array<PciFunction | null>(SLOTS).fill(null);
  readonly #gsi: (slot: number) => number;
  readonly #resetControl: ResetControl | null;
  #address = 0;

  constructor(options: HostBridgeOptions) {
    this.#gsi = options.gsi;
    this.#resetControl = options.resetControl;
    // Red Hat's generic PCIe host bridge: no driver and no quirk goes by it.
    this.#own.setIdentity({
      vendorId: 0x1b36,
      deviceId: 0x0008,
      classCode: 0x060000,
      revision: 0,
      subsystemVendorId: 0,
      subsystemId: 0,
    });
    this.#powerOn = this.#own.save();
    const claims: Claim[] = [{ space: 'pio', base: options.configPort, region: this.#mechanism1() }];
    if (options.ecam !== null) {
      claims.push({ space: 'mmio', base: options.ecam.base, region: this.#ecam(options.ecam.size) });
    }
    this.claims = claims;
  }

  /** Gives each function its slot: those that ask for one first, then the others in order, each the next free one from 1. */
  attach(wanted: readonly { readonly function: PciFunction; readonly slot: number | null }[]): void {
    for (const entry of wanted) if (entry.slot !== null) this.#take(entry.slot, entry.function);
    for (const entry of wanted) {
      if (entry.slot !== null) continue;
      const free = this.#slots.findIndex((taken, slot) => slot > 0 && taken === null);
      if (free < 0)
        throw new VmmError('pci-full', `no free PCI slot for ${entry.function.id}: bus 0 has 31; remove a device`);
      this.#take(free, entry.function);
    }
  }

  /** In slot order. */
  get functions(): readonly PciFunction[] {
    return this.#slots.filter((entry) => entry !== null);
  }

  reset(): void {
    this.#address = 0;
    this.#own.restore(this.#powerOn);
  }

  close(): void {}

  #take(slot: number, pci: PciFunction): void {
    if (!Number.isInteger(slot) || slot < 1 || slot >= SLOTS) {
      throw new VmmError('pci-slot', `${pci.id}: there is no PCI slot ${slot} for it; use addr=1 to addr=1f`);
    }
    const there = this.#slots[slot] ?? null;
    if (there !== null) {
      const addr = slot.toString(16);
      throw new VmmError('pci-slot', `${pci.id}: PCI slot 0x${addr} is taken by ${there.id}; use another addr=`);
    }
    this.#slots[slot] = pci;
    pci.attached({ bus: 0, slot, function: 0, gsi: this.#gsi(slot) });
  }

  #mechanism1(): Region {
    return {
      name: 'pci-config',
      size: 8,
      read: (offset, width) => this.#readPort(offset, width),
      write: (offset, width, value) => this.#writePort(offset, width, value),
      wide: null,
      // Posting is by byte: posting the address register would post 0xcf9 too, and a reset must not let the vCPU run on.
      fast: null,
    };
  }

  #readPort(offset: number, width: Width): number {
    if (offset >= DATA_OFFSET) {
      if (this.#address < ENABLE) return allOnes(width);
      return this.#readConfig(this.#address & 0xffff00, (this.#address & 0xfc) + offset - DATA_OFFSET, width);
    }
    if (offset === 0 && width === 4) return this.#address;
    if (offset === RESET_CONTROL_OFFSET && width === 1 && this.#resetControl !== null) return this.#resetControl.read();
    return allOnes(width);
  }

  #writePort(offset: number, width: Width, value: number): void {
    if (offset >= DATA_OFFSET) {
      if (this.#address < ENABLE) return;
      this.#writeConfig(this.#address & 0xffff00, (this.#address & 0xfc) + offset - DATA_OFFSET, width, value);
    } else if (offset === 0 && width === 4) {
      // Anything narrower than a dword is not for the address register. PCI 3.0, 3.2.2.3.2.
      this.#address = (value & ADDRESS_BITS) >>> 0;
    } else if (offset === RESET_CONTROL_OFFSET && width === 1) {
      this.#resetControl?.write(value);
    }
  }

  #ecam(size: number): Region {
    return {
      name: 'pci-ecam',
      size,
      read: (offset, width) => this.#readConfig((offset >>> 12) << 8, offset & 0xfff, width),
      write: (offset, width, value) => this.#writeConfig((offset >>> 12) << 8, offset & 0xfff, width, value),
      wide: null,
      fast: null,
    };
  }

  /** `target`: bus, slot, function as in the address register, bits 23-8. */
  #readConfig(target: number, register: number, width: Width): number {
    if (register % width !== 0) {
      let value = 0;
      for (let i = 0; i < width; i++) value += this.#readConfig(target, (register + i) % CONFIG_SIZE, 1) * 2 ** (8 * i);
      return value;
    }
    if (target === 0) return this.#own.read(register, width);
    const there = this.#at(target);
    // Master abort: nobody there. PCI 3.0, 3.2.2.3.4.
    return there === null ? allOnes(width) : there.readConfig(register, width);
  }

  #writeConfig(target: number, register: number, width: Width, value: number): void {
    if (register % width !== 0) {
      for (let i = 0; i < width; i++) {
        this.#writeConfig(target, (register + i) % CONFIG_SIZE, 1, (value >>> (8 * i)) & 0xff);
      }
    } else if (target === 0) this.#own.write(register, width, value);
    else this.#at(target)?.writeConfig(register, width, value);
  }

  #at(target: number): PciFunction | null {
    const onBus0Function0 = (target & 0xff0700) === 0;
    return onBus0Function0 ? (this.#slots[target >>> 11] ?? null) : null;
  }

  #load(state: unknown, version: number): void {
    const record = new StateRecord(this.id, state, version, 1);
    const address = record.integer('address', 0xffffffff);
    const bytes = this.#own.check(record.bytes('config', this.#powerOn.length, this.#powerOn.length));
    this.#address = (address & ADDRESS_BITS) >>> 0;
    this.#own.restore(bytes);
  }
}

function allOnes(width: Width): number {
  return width === 4 ? 0xffffffff : width === 2 ? 0xffff : 0xff;
}
