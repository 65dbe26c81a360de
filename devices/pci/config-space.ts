// One function's configuration space as the guest sees it: bytes, and for every bit whether a write changes it, clears it or is lost.
// Used by everything that is a PCI function: simple-function.ts (plug-ins), host-bridge.ts (00:00.0), vfio's pci-function.ts.
// It knows bits, not meanings: who owns it looks at command, BARs and capabilities after write(). PCI 3.0, 6.1-6.2; PCIe 5.0, 7.5.
import { StateError } from '../../native/errno.ts';
import type { Width } from '../contract.ts';

/** Offsets of the type 0 header that are needed outside. */
export const HEADER = {
  vendorId: 0x00,
  deviceId: 0x02,
  command: 0x04,
  status: 0x06,
  revision: 0x08,
  classCode: 0x09,
  cacheLineSize: 0x0c,
  latencyTimer: 0x0d,
  headerType: 0x0e,
  bar0: 0x10,
  subsystemVendorId: 0x2c,
  subsystemId: 0x2e,
  romBar: 0x30,
  capabilities: 0x34,
  interruptLine: 0x3c,
  interruptPin: 0x3d,
} as const;

export const COMMAND = { io: 0x1, memory: 0x2, busMaster: 0x4, serr: 0x100, intxDisable: 0x400 } as const;
export const STATUS = { interrupt: 0x8, capabilities: 0x10 } as const;

/** Where capabilities may lie. PCI 3.0, 6.7; the extended ones PCIe 5.0, 7.6. */
const FIRST_CAPABILITY = 0x40;
const LEGACY_SIZE = 0x100;
export const CONFIG_SIZE = 0x1000;

export interface Identity {
  readonly vendorId: number;
  readonly deviceId: number;
  /** 24 bits: class, subclass, programming interface. */
  readonly classCode: number;
  readonly revision: number;
  readonly subsystemVendorId: number;
  readonly subsystemId: number;
}

export class ConfigSpace {
  readonly bytes = new Uint8Array(CONFIG_SIZE);
  /** Bits that a write sets. */
  readonly #writable = new Uint8Array(CONFIG_SIZE);
  /** Bits that a write of one clears (status, error logs). */
  readonly #clears = new Uint8Array(CONFIG_SIZE);
  /** Bits that the device changes by itself: not compared when a state is judged. */
  readonly #volatile = new Uint8Array(CONFIG_SIZE);
  readonly #view = new DataView(this.bytes.buffer);
  /** Past the last byte that a capability uses. */
  #nextCapability = FIRST_CAPABILITY;
  /** Offset of the last extended capability's header, or null. */
  #lastExtended: { offset: number; end: number } | null = null;

  read(offset: number, width: Width): number {
    if (offset < 0 || offset + width > CONFIG_SIZE) return width === 4 ? 0xffffffff : width === 2 ? 0xffff : 0xff;
    if (width === 4) return this.#view.getUint32(offset, true);
    return width === 2 ? this.#view.getUint16(offset, true) : this.bytes[offset]!;
  }

  /** What the guest writes: only writable bits change, write-one-to-clear bits clear. */
  write(offset: number, width: Width, value: number): void {
    if (offset < 0 || offset + width > CONFIG_SIZE) return;
    for (let i = 0; i < width; i++) {
      const at = offset + i;
      const byte = (value >>> (8 * i)) & 0xff;
      const writable = this.#writable[at]!;
      const kept = (this.bytes[at]! & ~writable) | (byte & writable);
      this.bytes[at] = kept & ~(byte & this.#clears[at]!);
    }
  }

  /** What the device itself writes: every bit changes, whatever the masks say. */
  set(offset: number, width: Width, value: number): void {
    if (width === 4) this.#view.setUint32(offset, value >>> 0, true);
    else if (width === 2) this.#view.setUint16(offset, value & 0xffff, true);
    else this.bytes[offset] = value;
  }

  /** Declares which bits of `width` bytes a guest's write changes, and which it clears by writing one. */
  allow(offset: number, width: Width, writable: number, clears = 0): void {
    for (let i = 0; i < width; i++) {
      this.#writable[offset + i] = (writable >>> (8 * i)) & 0xff;
      this.#clears[offset + i] = (clears >>> (8 * i)) & 0xff;
    }
  }

  /** Declares bits that the device itself changes while it runs (status, pending bits). */
  allowDevice(offset: number, width: Width, bits: number): void {
    for (let i = 0; i < width; i++) this.#volatile[offset + i] = (bits >>> (8 * i)) & 0xff;
  }

  writable(offset: number, width: Width): number {
    let mask = 0;
    for (let i = 0; i < width; i++) mask += this.#writable[offset + i]! * 2 ** (8 * i);
    return mask;
  }

  /** The fixed part of a type 0 header. PCI 3.0, 6.2.1-6.2.4. */
  setIdentity(identity: Identity): void {
    this.set(HEADER.vendorId, 2, identity.vendorId);
    this.set(HEADER.deviceId, 2, identity.deviceId);
    this.set(HEADER.revision, 1, identity.revision);
    this.set(HEADER.classCode, 1, identity.classCode);
    this.set(HEADER.classCode + 1, 2, identity.classCode >>> 8);
    this.set(HEADER.subsystemVendorId, 2, identity.subsystemVendorId);
    this.set(HEADER.subsystemId, 2, identity.subsystemId);
    this.allow(HEADER.command, 2, COMMAND.io | COMMAND.memory | COMMAND.busMaster | COMMAND.serr | COMMAND.intxDisable);
    // Parity and abort bits are write-one-to-clear; nothing here ever sets them, but a guest may try. PCI 3.0, 6.2.3.
    this.allow(HEADER.status, 2, 0, 0xf900);
    this.allowDevice(HEADER.status, 2, STATUS.interrupt);
    this.allow(HEADER.cacheLineSize, 1, 0xff);
    this.allow(HEADER.interruptLine, 1, 0xff);
  }

  /** 0: no INTx; 1: INTA#. */
  setInterruptPin(pin: 0 | 1 | 2 | 3 | 4): void {
    this.set(HEADER.interruptPin, 1, pin);
  }

  /**
   * Links a capability of `size` bytes (its two header bytes counted) into the list and returns its offset. The newest comes first,
   * which no guest may care about. `at` pins it (passed-through devices keep their layout), null takes the next free dword.
   */
  addCapability(id: number, size: number, at: number | null = null): number {
    const offset = at ?? this.#nextCapability;
    if (offset < FIRST_CAPABILITY || offset % 4 !== 0 || offset + size > LEGACY_SIZE) {
      throw new RangeError(`capability 0x${id.toString(16)} of ${size} bytes does not fit at 0x${offset.toString(16)}`);
    }
    this.set(offset, 1, id);
    this.set(offset + 1, 1, this.bytes[HEADER.capabilities]!);
    this.set(HEADER.capabilities, 1, offset);
    this.set(HEADER.status, 2, this.read(HEADER.status, 2) | STATUS.capabilities);
    this.#nextCapability = Math.max(this.#nextCapability, (offset + size + 3) & ~3);
    return offset;
  }

  /** The same for the extended space: a chain of dword headers that begins at 0x100. PCIe 5.0, 7.6.3. */
  addExtendedCapability(id: number, version: number, size: number, at: number | null = null): number {
    const last = this.#lastExtended;
    const offset = last === null ? LEGACY_SIZE : (at ?? last.end);
    if (offset % 4 !== 0 || offset + size > CONFIG_SIZE || (last !== null && offset < last.end)) {
      throw new RangeError(`extended capability 0x${id.toString(16)} does not fit at 0x${offset.toString(16)}`);
    }
    this.set(offset, 4, (id | (version << 16)) >>> 0);
    if (last !== null) this.set(last.offset, 4, (this.read(last.offset, 4) & 0x000fffff) | (offset << 20));
    this.#lastExtended = { offset, end: (offset + size + 3) & ~3 };
    return offset;
  }

  /** Only the legacy part unless extended capabilities are there. */
  save(): Uint8Array {
    return this.bytes.slice(0, this.#lastExtended === null ? LEGACY_SIZE : CONFIG_SIZE);
  }

  /** Refuses a state whose fixed bits differ: it is another device's. */
  check(state: unknown): Uint8Array {
    const size = this.#lastExtended === null ? LEGACY_SIZE : CONFIG_SIZE;
    if (!(state instanceof Uint8Array) || state.length !== size) {
      throw new StateError(`configuration space: ${size} bytes wanted`);
    }
    for (let i = 0; i < size; i++) {
      const fixed = ~(this.#writable[i]! | this.#clears[i]! | this.#volatile[i]!) & 0xff;
      if (((state[i]! ^ this.bytes[i]!) & fixed) !== 0) {
        throw new StateError(
          `configuration space: byte 0x${i.toString(16)} is 0x${state[i]!.toString(16)}, this device has 0x${this.bytes[i]!.toString(16)}`,
        );
      }
    }
    return state;
  }

  /** Takes what check() has passed. */
  restore(state: Uint8Array): void {
    this.bytes.set(state);
  }
}
