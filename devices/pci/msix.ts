// The MSI-X capability, vector table and pending bit array of one function as the guest sees them. Owned by a PCI function, which
// routes the table's and the PBA's bytes of their BARs here. Holds no host resources: what a vector sends, message() says.
// PCI 3.0, 6.8.2 (structure) and 6.8.3.4-5 (masking, pending bits).
import { StateError } from '../../native/errno.ts';
import type { Width } from '../contract.ts';
import type { ConfigSpace } from './config-space.ts';
import type { GuestVectors, VectorChanged, VectorMessage } from './guest-vectors.ts';

export const CAPABILITY_MSIX = 0x11;
export const MSIX_CAPABILITY_SIZE = 12;
export const MSIX_ENTRY_SIZE = 16;
const ENABLE = 0x8000;
const FUNCTION_MASK = 0x4000;
const MAX_VECTORS = 2048;
const VECTOR_CONTROL = 12;
const MASKED = 0x1;

export interface MsixShape {
  readonly count: number;
  readonly tableBar: number;
  readonly tableOffset: number;
  readonly pbaBar: number;
  readonly pbaOffset: number;
  /** Where the capability lies; null: the next free place. */
  readonly at: number | null;
}

/** What save() makes. */
export interface MsixState {
  readonly table: Uint8Array;
  readonly pending: Uint8Array;
}

export class Msix implements GuestVectors {
  readonly count: number;
  readonly offset: number;
  readonly tableSize: number;
  readonly pbaSize: number;
  readonly #config: ConfigSpace;
  readonly #changed: VectorChanged;
  readonly #table: Uint8Array;
  readonly #view: DataView;
  readonly #pba: Uint8Array;
  readonly #pbaView: DataView;
  /** Enable and function mask as last acted upon. */
  #live = false;

  constructor(config: ConfigSpace, shape: MsixShape, changed: VectorChanged) {
    const { count } = shape;
    if (!Number.isInteger(count) || count < 1 || count > MAX_VECTORS)
      throw new RangeError(`MSI-X with ${count} vectors`);
    if (shape.tableOffset % 8 !== 0 || shape.pbaOffset % 8 !== 0)
      throw new RangeError('MSI-X table and PBA are 8-aligned');
    this.count = count;
    this.#config = config;
    this.#changed = changed;
    this.tableSize = count * MSIX_ENTRY_SIZE;
    this.pbaSize = Math.ceil(count / 64) * 8;
    this.#table = new Uint8Array(this.tableSize);
    this.#view = new DataView(this.#table.buffer);
    this.#pba = new Uint8Array(this.pbaSize);
    this.#pbaView = new DataView(this.#pba.buffer);
    this.offset = config.addCapability(CAPABILITY_MSIX, MSIX_CAPABILITY_SIZE, shape.at);
    config.set(this.offset + 2, 2, count - 1);
    config.allow(this.offset + 2, 2, ENABLE | FUNCTION_MASK);
    config.set(this.offset + 4, 4, shape.tableOffset | shape.tableBar);
    config.set(this.offset + 8, 4, shape.pbaOffset | shape.pbaBar);
    this.#powerOn();
  }

  get enabled(): boolean {
    return (this.#control & ENABLE) !== 0;
  }

  message(vector: number): VectorMessage | null {
    if (vector >= this.count || (this.#control & (ENABLE | FUNCTION_MASK)) !== ENABLE || this.masked(vector))
      return null;
    const at = vector * MSIX_ENTRY_SIZE;
    // Bits 1:0 of the address are always zero. PCI 3.0, 6.8.2.4.
    return { address: this.#view.getBigUint64(at, true) & ~3n, data: this.#view.getUint32(at + 8, true) };
  }

  /** The vector's own mask bit. */
  masked(vector: number): boolean {
    return (this.#table[vector * MSIX_ENTRY_SIZE + VECTOR_CONTROL]! & MASKED) !== 0;
  }

  pending(vector: number): boolean {
    return vector < this.count && ((this.#pba[vector >> 3]! >> (vector & 7)) & 1) === 1;
  }

  setPending(vector: number, on: boolean): void {
    if (vector >= this.count) return;
    const bit = 1 << (vector & 7);
    this.#pba[vector >> 3] = on ? this.#pba[vector >> 3]! | bit : this.#pba[vector >> 3]! & ~bit;
  }

  readTable(offset: number, width: Width): number {
    return read(this.#view, offset, width);
  }

  readPba(offset: number, width: Width): number {
    return read(this.#pbaView, offset, width);
  }

  /** Only dwords (and pairs of them) are defined; smaller writes have no meaning and are dropped. PCI 3.0, 6.8.2. */
  writeTable(offset: number, width: Width, value: number): void {
    if (width !== 4 || offset % 4 !== 0 || offset + 4 > this.tableSize) return;
    const field = offset % MSIX_ENTRY_SIZE;
    const next = field === VECTOR_CONTROL ? value & MASKED : field === 0 ? (value & ~3) >>> 0 : value >>> 0;
    if (this.#view.getUint32(offset, true) === next) return;
    this.#view.setUint32(offset, next, true);
    const vector = (offset - field) / MSIX_ENTRY_SIZE;
    // An entry that is masked sends nothing, whatever else is written into it: told once it is unmasked.
    if (this.#live && (field === VECTOR_CONTROL || !this.masked(vector))) this.#changed(vector);
  }

  /** After a configuration write: the enable or function-mask bit may have changed. */
  afterWrite(offset: number, width: number): void {
    if (offset < this.offset + 4 && offset + width > this.offset + 2) this.refresh();
  }

  refresh(): void {
    if (!this.enabled) this.#pba.fill(0);
    const live = (this.#control & (ENABLE | FUNCTION_MASK)) === ENABLE;
    if (live === this.#live) return;
    this.#live = live;
    for (let v = 0; v < this.count; v++) if (!this.masked(v)) this.#changed(v);
  }

  /** After the configuration bytes went back to power-on. */
  reset(): void {
    this.refresh();
    this.#powerOn();
  }

  save(): MsixState {
    return { table: this.#table.slice(), pending: this.#pba.slice() };
  }

  check(state: unknown): MsixState {
    const { table, pending } = (state ?? {}) as { table?: unknown; pending?: unknown };
    if (!(table instanceof Uint8Array) || table.length !== this.tableSize) {
      throw new StateError(`MSI-X: a table of ${this.count} vectors wanted`);
    }
    if (!(pending instanceof Uint8Array) || pending.length !== this.pbaSize) {
      throw new StateError(`MSI-X: pending bits of ${this.count} vectors wanted`);
    }
    return { table, pending };
  }

  /** After the configuration bytes are back. What is pending is sent when the gate opens (VectorBinding.attach), not from in here. */
  restore(state: MsixState): void {
    this.#table.set(state.table);
    this.#pba.fill(0);
    this.#live = (this.#control & (ENABLE | FUNCTION_MASK)) === ENABLE;
    for (let v = 0; v < this.count; v++) this.#changed(v);
    this.#pba.set(state.pending);
  }

  get #control(): number {
    return this.#config.read(this.offset + 2, 2);
  }

  /** Every vector is masked after reset. PCI 3.0, 6.8.2.6. */
  #powerOn(): void {
    this.#table.fill(0);
    this.#pba.fill(0);
    for (let v = 0; v < this.count; v++) this.#table[v * MSIX_ENTRY_SIZE + VECTOR_CONTROL] = MASKED;
  }
}

function read(view: DataView, offset: number, width: Width): number {
  if (offset < 0 || offset + width > view.byteLength) return 0;
  if (width === 4) return view.getUint32(offset, true);
  return width === 2 ? view.getUint16(offset, true) : view.getUint8(offset);
}
