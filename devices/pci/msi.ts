// The MSI capability of one function as the guest sees it: address, data, enable, number of messages, per-vector masks.
// Owned by a PCI function, which calls afterWrite() for configuration writes that touch it. Holds no host resources. PCI 3.0, 6.8.1.
import { StateError } from '../../native/errno.ts';
import type { ConfigSpace } from './config-space.ts';
import type { GuestVectors, VectorChanged, VectorMessage } from './guest-vectors.ts';

export const CAPABILITY_MSI = 0x05;
const ENABLE = 0x1;
const MAX_MESSAGES = 32;

export interface MsiShape {
  /** 1, 2, 4 ... 32. */
  readonly count: number;
  readonly address64: boolean;
  readonly perVectorMask: boolean;
  /** null: the next free place. */
  readonly at: number | null;
}

export class MsiCapability implements GuestVectors {
  readonly count: number;
  readonly offset: number;
  readonly size: number;
  readonly #config: ConfigSpace;
  readonly #shape: MsiShape;
  readonly #changed: VectorChanged;
  readonly #dataAt: number;
  readonly #pending: boolean[];
  /** What each vector sent after the last write, so that only changes are told. */
  #seen: (VectorMessage | null)[];

  constructor(config: ConfigSpace, shape: MsiShape, changed: VectorChanged) {
    const log2 = Math.log2(shape.count);
    if (!Number.isInteger(log2) || shape.count > MAX_MESSAGES) throw new RangeError(`MSI with ${shape.count} messages`);
    this.count = shape.count;
    this.#config = config;
    this.#shape = shape;
    this.#changed = changed;
    this.size = (shape.address64 ? 14 : 10) + (shape.perVectorMask ? 10 : 0);
    const at = config.addCapability(CAPABILITY_MSI, this.size, shape.at);
    this.offset = at;
    this.#dataAt = at + (shape.address64 ? 12 : 8);
    config.set(at + 2, 2, (log2 << 1) | (shape.address64 ? 0x80 : 0) | (shape.perVectorMask ? 0x100 : 0));
    config.allow(at + 2, 2, 0x70 | ENABLE);
    config.allow(at + 4, 4, 0xfffffffc);
    if (shape.address64) config.allow(at + 8, 4, 0xffffffff);
    config.allow(this.#dataAt, 2, 0xffff);
    if (shape.perVectorMask) {
      config.allow(this.#maskAt, 4, 2 ** shape.count - 1);
      config.allowDevice(this.#maskAt + 4, 4, 2 ** shape.count - 1);
    }
    this.#pending = new Array<boolean>(shape.count).fill(false);
    this.#seen = new Array<VectorMessage | null>(shape.count).fill(null);
  }

  get enabled(): boolean {
    return (this.#config.read(this.offset + 2, 2) & ENABLE) !== 0;
  }

  /** How many messages the guest has allowed: never more than we asked for. */
  get allowed(): number {
    return Math.min(1 << ((this.#config.read(this.offset + 2, 2) >> 4) & 7), this.count);
  }

  message(vector: number): VectorMessage | null {
    const allowed = this.allowed;
    if (!this.enabled || vector >= allowed || this.#masked(vector)) return null;
    const config = this.#config;
    const high = this.#shape.address64 ? config.read(this.offset + 8, 4) : 0;
    // A function with n messages changes the low log2(n) bits of the data only. PCI 3.0, 6.8.1.6.
    const data = (config.read(this.#dataAt, 2) & ~(allowed - 1)) | vector;
    return { address: (BigInt(high) << 32n) | BigInt(config.read(this.offset + 4, 4)), data };
  }

  pending(vector: number): boolean {
    return this.#pending[vector] ?? false;
  }

  setPending(vector: number, on: boolean): void {
    if (vector >= this.count) return;
    this.#pending[vector] = on;
    if (this.#shape.perVectorMask) this.#config.set(this.#maskAt + 4, 4, this.#pendingBits());
  }

  /** After a configuration write: tells which vectors changed. */
  afterWrite(offset: number, width: number): void {
    if (offset < this.offset + this.size && offset + width > this.offset) this.refresh();
  }

  /** Compares with what was told last. Also after a reset or a load has changed the bytes. */
  refresh(): void {
    if (!this.enabled) for (let v = 0; v < this.count; v++) this.setPending(v, false);
    const before = this.#seen;
    this.#seen = before.map((_, vector) => this.message(vector));
    for (let v = 0; v < this.count; v++) if (!same(before[v] ?? null, this.#seen[v] ?? null)) this.#changed(v);
  }

  /** Address, data and masks are configuration bytes; only what is pending is ours. */
  save(): unknown {
    return { pending: this.#pendingBits() };
  }

  check(state: unknown): { readonly pending: number } {
    const pending = (state as { pending?: unknown } | null)?.pending;
    if (typeof pending !== 'number' || !Number.isInteger(pending) || pending < 0 || pending >= 2 ** this.count) {
      throw new StateError(`MSI: pending bits of ${this.count} vectors wanted`);
    }
    return { pending };
  }

  /** After the configuration bytes are back. What is pending is sent when the gate opens (VectorBinding.attach), not from in here. */
  restore(state: { readonly pending: number }): void {
    this.refresh();
    for (let v = 0; v < this.count; v++) this.setPending(v, ((state.pending >>> v) & 1) === 1);
  }

  /** Configuration offset of the mask bits; the pending bits follow. */
  get #maskAt(): number {
    return this.offset + (this.#shape.address64 ? 16 : 12);
  }

  #masked(vector: number): boolean {
    return this.#shape.perVectorMask && ((this.#config.read(this.#maskAt, 4) >>> vector) & 1) === 1;
  }

  #pendingBits(): number {
    let bits = 0;
    for (let v = 0; v < this.count; v++) if (this.#pending[v]) bits += 2 ** v;
    return bits;
  }
}

function same(a: VectorMessage | null, b: VectorMessage | null): boolean {
  if (a === null || b === null) return a === b;
  return a.address === b.address && a.data === b.data;
}
