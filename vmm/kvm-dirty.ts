// KVM's log of what vCPUs (and KVM itself: kvmclock, steal time) wrote to guest RAM, in the three ways that KVM has: a bitmap that is read
// and cleared in one call, a bitmap that is cleared in pieces (manual protect), and a ring a vCPU. Made by machine.ts, one per machine, and
// used by dirty.ts; JS thread. Spec: KVM api.rst, KVM_GET_DIRTY_LOG, KVM_CLEAR_DIRTY_LOG, 8.29 KVM_CAP_DIRTY_LOG_RING.
import type { DirtySource, GpaRange, HostMapping, PageBitmap } from '../devices/contract.ts';
import {
  KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
  KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
  KVM_CLEAR_DIRTY_LOG,
  KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
  KVM_DIRTY_LOG_PAGE_OFFSET,
  KVM_GET_DIRTY_LOG,
  KVM_RESET_DIRTY_RINGS,
  kvm_clear_dirty_log,
  kvm_dirty_gfn,
  kvm_dirty_log,
} from '../native/abi/kvm.ts';
import type { KvmNode } from '../native/addon.ts';
import { VmmError } from '../native/errno.ts';
import type { DirtyLogChoice } from './api.ts';
import { type Memory, PAGE } from './memory.ts';
import type { Vm } from './vm.ts';

export interface KvmLogParts {
  readonly addon: Pick<KvmNode, 'ioctl' | 'createBitmap' | 'mapFd' | 'harvestDirtyRing' | 'rejoinDirtyRing'>;
  readonly vm: Vm;
  readonly memory: Memory;
}

/** KVM's log as a dirty source, and what the machine must tell it. */
export interface KvmLog extends DirtySource {
  readonly name: 'kvm';
  /** Before the first run: the vCPU's fd. */
  addVcpu(fd: number): void;
  /** KVM_EXIT_DIRTY_RING_FULL: the vCPU goes on when this returns. */
  ringFull(): void;
  close(): void;
}

/** Switches on what `choice` needs, before the first vCPU is made. Throws VmmError when this KVM does not have it. */
export function enableKvmLog(vm: Vm, choice: DirtyLogChoice): void {
  if (choice.kind === 'manual') {
    const able = vm.check(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);
    if ((able & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE) === 0)
      throw lacks('clear its dirty log in pieces', 'dirty-log=manual');
    vm.enable(
      'KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2',
      KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
      KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
    );
    return;
  }
  if (choice.kind !== 'ring') return;
  const bytes = choice.ringEntries * kvm_dirty_gfn.size;
  const most = vm.check(KVM_CAP_DIRTY_LOG_RING_ACQ_REL);
  if (most === 0) throw lacks('keep its dirty log in rings', 'dirty-ring-size=');
  if (bytes > most) {
    throw new VmmError(
      'dirty-ring',
      `--accel kvm,dirty-ring-size=${choice.ringEntries}: this host's KVM allows ${most / kvm_dirty_gfn.size} at most`,
    );
  }
  vm.enable('KVM_CAP_DIRTY_LOG_RING_ACQ_REL', KVM_CAP_DIRTY_LOG_RING_ACQ_REL, bytes);
}

function lacks(what: string, option: string): VmmError {
  return new VmmError('dirty-log', `--accel kvm: this host's KVM cannot ${what}; leave ${option} out`);
}

export function openKvmLog(parts: KvmLogParts, choice: DirtyLogChoice): KvmLog {
  if (choice.kind === 'ring') return new KvmDirtyRing(parts, choice.ringEntries);
  return new KvmDirtyBitmap(parts, choice.kind === 'manual');
}

/** Pages cleared in one call: KVM holds its MMU lock, which the vCPUs want too, for so long. 64 Ki pages are 256 MiB. */
const CLEAR_PAGES = 65536;

/**
 * KVM_GET_DIRTY_LOG: a bitmap a slot. It clears and write-protects in the same call, or, with manual protect, leaves that to
 * KVM_CLEAR_DIRTY_LOG, which does it in pieces: the vCPUs of a large guest are then held up for less at a time.
 */
export class KvmDirtyBitmap implements KvmLog {
  readonly name = 'kvm';
  readonly coarse = false;
  readonly fallback = null;
  readonly #parts: KvmLogParts;
  readonly #manual: boolean;
  readonly #get = new Uint8Array(kvm_dirty_log.size);
  readonly #getView = new DataView(this.#get.buffer);
  readonly #clear = new Uint8Array(kvm_clear_dirty_log.size);
  readonly #clearView = new DataView(this.#clear.buffer);
  /** GET_DIRTY_LOG overwrites; this is ORed into the round. Made while a migration runs. */
  #scratch: PageBitmap | null = null;

  constructor(parts: KvmLogParts, manual: boolean) {
    this.#parts = parts;
    this.#manual = manual;
  }

  addVcpu(): void {}
  ringFull(): void {}

  async start(_ranges: readonly GpaRange[]): Promise<void> {
    const { addon, memory } = this.#parts;
    this.#scratch ??= addon.createBitmap(memory.pages);
    memory.logDirty(true);
  }

  async collect(into: PageBitmap): Promise<number> {
    const scratch = this.#scratch;
    if (scratch === null) return 0;
    const { addon, vm, memory } = this.#parts;
    for (const bank of memory.banks) {
      const { slot, firstPage, pages } = bank;
      this.#getView.setUint32(kvm_dirty_log.slot, slot, true);
      const patch = { at: kvm_dirty_log.dirty_bitmap, bitmap: scratch, firstPage, pages };
      addon.ioctl('KVM_GET_DIRTY_LOG', vm.fd, KVM_GET_DIRTY_LOG, this.#get, [patch]);
      if (this.#manual) this.#clearBank(bank, scratch);
    }
    into.or(scratch);
    return scratch.count;
  }

  /** first_page and num_pages are multiples of 64, but for the end of the slot. KVM api.rst, KVM_CLEAR_DIRTY_LOG. */
  #clearBank({ slot, firstPage, pages }: { slot: number; firstPage: number; pages: number }, bits: PageBitmap): void {
    const { addon, vm } = this.#parts;
    for (let at = 0; at < pages; at += CLEAR_PAGES) {
      const part = Math.min(CLEAR_PAGES, pages - at);
      this.#clearView.setUint32(kvm_clear_dirty_log.slot, slot, true);
      this.#clearView.setUint32(kvm_clear_dirty_log.num_pages, part, true);
      this.#clearView.setBigUint64(kvm_clear_dirty_log.first_page, BigInt(at), true);
      const patch = { at: kvm_clear_dirty_log.dirty_bitmap, bitmap: bits, firstPage: firstPage + at, pages: part };
      addon.ioctl('KVM_CLEAR_DIRTY_LOG', vm.fd, KVM_CLEAR_DIRTY_LOG, this.#clear, [patch]);
    }
  }

  async stop(): Promise<void> {
    if (this.#scratch === null) return;
    this.#parts.memory.logDirty(false);
    this.#scratch.close();
    this.#scratch = null;
  }

  close(): void {
    this.#scratch?.close();
    this.#scratch = null;
  }
}

interface Ring {
  readonly mapping: HostMapping;
  /** Entries taken so far; the ring's place is this modulo its length. */
  taken: number;
}

/**
 * A ring of written pages a vCPU: what a collect costs goes by what was written, not by how much RAM there is, and a guest that writes
 * faster than its ring is emptied waits in an exit (KVM_EXIT_DIRTY_RING_FULL). KVM_RESET_DIRTY_RINGS write-protects the pages again; they
 * are sent after that, so what is written in between is either seen in the page or logged anew.
 */
export class KvmDirtyRing implements KvmLog {
  readonly name = 'kvm';
  readonly coarse = false;
  readonly fallback = null;
  readonly #parts: KvmLogParts;
  readonly #entries: number;
  readonly #rings: Ring[] = [];
  readonly #banks: Float64Array;
  /** What was taken out of the rings since the last collect. Made while a migration runs. */
  #found: PageBitmap | null = null;
  /** KVM went on in a ring that was full: pages are missing since the last collect. */
  #overrun = false;

  constructor(parts: KvmLogParts, entries: number) {
    this.#parts = parts;
    this.#entries = entries;
    this.#banks = Float64Array.from(
      parts.memory.banks.flatMap(({ slot, firstPage, pages }) => [slot, firstPage, pages]),
    );
  }

  addVcpu(fd: number): void {
    const { addon } = this.#parts;
    const mapping = addon.mapFd(fd, KVM_DIRTY_LOG_PAGE_OFFSET * PAGE, this.#entries * kvm_dirty_gfn.size, true);
    this.#rings.push({ mapping, taken: 0 });
  }

  async start(_ranges: readonly GpaRange[]): Promise<void> {
    const { addon, memory } = this.#parts;
    this.#found ??= addon.createBitmap(memory.pages);
    memory.logDirty(true);
  }

  async collect(into: PageBitmap): Promise<number> {
    const found = this.#found;
    if (found === null) return 0;
    this.#harvest(found);
    const pages = found.count;
    into.or(found);
    found.zero();
    if (!this.#overrun) return pages;
    this.#overrun = false;
    throw new VmmError('dirty-ring', 'KVM wrote over entries of a full dirty ring: some written pages are not known', {
      exitCode: 1,
    });
  }

  ringFull(): void {
    if (this.#found !== null) this.#harvest(this.#found);
  }

  async stop(): Promise<void> {
    const found = this.#found;
    if (found === null) return;
    this.#parts.memory.logDirty(false);
    // What is still in the rings is nobody's any more, but would fill them before the next migration.
    this.#harvest(found);
    found.close();
    this.#found = null;
  }

  close(): void {
    this.#found?.close();
    this.#found = null;
    for (const { mapping } of this.#rings.splice(0)) mapping.unmap();
  }

  #harvest(into: PageBitmap): void {
    const { addon, vm } = this.#parts;
    let taken = 0;
    for (const ring of this.#rings) {
      taken += this.#take(ring, into);
      // Linux's KVM leaves a full ring alone. A KVM made in software was seen to go on, and must not cost us a page.
      const gap = addon.rejoinDirtyRing(ring.mapping, ring.taken);
      if (gap === 0) continue;
      this.#overrun = true;
      ring.taken = (ring.taken + gap) % this.#entries;
      taken += gap + this.#take(ring, into);
    }
    if (taken > 0) addon.ioctl('KVM_RESET_DIRTY_RINGS', vm.fd, KVM_RESET_DIRTY_RINGS, 0);
  }

  #take(ring: Ring, into: PageBitmap): number {
    const count = this.#parts.addon.harvestDirtyRing(ring.mapping, ring.taken, into, this.#banks);
    ring.taken = (ring.taken + count) % this.#entries;
    return count;
  }
}
