// Guest memory: RAM banks in one memfd, their KVM slots with the dirty log's switch, slots over BARs (SlotPort), and RAM as device models
// see it (GuestMemory), whose writes are the dirty source 'vmm'. Made by machine.ts, one per machine; JS thread.
// Spec: KVM api.rst, KVM_SET_USER_MEMORY_REGION.
import type {
  DirtySource,
  GpaRange,
  GuestMemory,
  GuestRam,
  HostMapping,
  PageBitmap,
  RamRange,
  SlotHandle,
  SlotPort,
} from '../devices/contract.ts';
import type { KvmNode } from '../native/addon.ts';
import { VmmError } from '../native/errno.ts';
import type { Vm as VmFd } from '../native/kvm.ts';
import { ramSpans } from './layout.ts';

type SlotFd = Pick<VmFd, 'setSlot' | 'removeSlot'>;

export const PAGE = 4096;

/** KVM slot numbers: RAM's banks first, in gpa order; BARs above. */
const FIRST_BAR_SLOT = 8;

/** One RAM bank and its slot. `firstPage` is its place in the linear bitmap of guest RAM. */
export interface RamBank extends RamRange {
  readonly slot: number;
  readonly firstPage: number;
  readonly pages: number;
}

export class Memory implements GuestMemory, SlotPort {
  readonly ram: GuestRam;
  readonly banks: readonly RamBank[];
  readonly ranges: readonly RamRange[];
  readonly pages: number;
  readonly hostWrites: HostWrites;
  readonly #slots: SlotFd;
  readonly #maxSlots: number;
  readonly #barSlots = new Map<number, { gpa: number; end: number }>();

  constructor(addon: Pick<KvmNode, 'createBitmap'>, slots: SlotFd, ram: GuestRam, maxSlots: number) {
    this.#slots = slots;
    this.#maxSlots = maxSlots;
    this.ram = ram;
    this.pages = ram.size / PAGE;
    this.banks = ramSpans(ram.size).map((span, slot) => ({
      gpa: span.gpa,
      size: span.size,
      slice: { ram, offset: span.offset, size: span.size },
      slot,
      firstPage: span.offset / PAGE,
      pages: span.size / PAGE,
    }));
    this.ranges = this.banks;
    this.hostWrites = new HostWrites(addon, this.pages);
    this.logDirty(false);
  }

  /** KVM_MEM_LOG_DIRTY_PAGES of every RAM slot. BARs are never logged: their writes are the device's own state. */
  logDirty(on: boolean): void {
    for (const bank of this.banks) {
      const { slot, gpa, size } = bank;
      const { ram: backing, offset } = bank.slice;
      this.#slots.setSlot({ slot, gpa, size, backing, offset, readOnly: false, logDirty: on });
    }
  }

  read(gpa: number, into: Uint8Array): boolean {
    const offset = this.#offset(gpa, into.length);
    if (offset === null) return false;
    this.ram.copyOut(offset, into);
    return true;
  }

  write(gpa: number, from: Uint8Array): boolean {
    const offset = this.#offset(gpa, from.length);
    if (offset === null) return false;
    this.ram.copyIn(offset, from);
    this.hostWrites.mark(offset, from.length);
    return true;
  }

  map(gpa: number, mapping: HostMapping, offset: number, size: number, readOnly: boolean): SlotHandle {
    const end = gpa + size;
    const at = `0x${gpa.toString(16)}-0x${(end - 1).toString(16)}`;
    if (gpa % PAGE !== 0 || size % PAGE !== 0 || size <= 0) {
      throw new VmmError('slot-align', `cannot map a BAR at ${at}: not whole pages; trap it instead`);
    }
    const others = [
      ...this.banks.map((bank) => ({ gpa: bank.gpa, end: bank.gpa + bank.size })),
      ...this.#barSlots.values(),
    ];
    if (others.some((other) => gpa < other.end && end > other.gpa)) {
      throw new VmmError('slot-overlap', `cannot map a BAR at ${at}: memory is there already; choose another address`);
    }
    let slot = FIRST_BAR_SLOT;
    while (this.#barSlots.has(slot)) slot++;
    if (slot >= this.#maxSlots) {
      throw new VmmError('no-slot', `cannot map a BAR at ${at}: all ${this.#maxSlots} memory slots of KVM are taken`);
    }
    this.#slots.setSlot({ slot, gpa, size, backing: mapping, offset, readOnly, logDirty: false });
    this.#barSlots.set(slot, { gpa, end });
    let mapped = true;
    return {
      unmap: () => {
        if (!mapped) return;
        mapped = false;
        this.#barSlots.delete(slot);
        this.#slots.removeSlot(slot);
      },
    };
  }

  close(): void {
    this.hostWrites.close();
    this.ram.close();
  }

  /** The memfd offset of [gpa, gpa+length), or null where any byte of it is not RAM. */
  #offset(gpa: number, length: number): number | null {
    for (let i = 0; i < this.banks.length; i++) {
      const bank = this.banks[i]!;
      if (gpa >= bank.gpa && gpa + length <= bank.gpa + bank.size) return bank.slice.offset + (gpa - bank.gpa);
    }
    return null;
  }
}

/** Pages that the VMM itself wrote: device models by GuestMemory, the boot loader at a reset. KVM's log does not see these. */
export class HostWrites implements DirtySource {
  readonly name = 'vmm';
  readonly coarse = false;
  readonly fallback = null;
  readonly #bitmap: PageBitmap;
  #on = false;

  constructor(addon: Pick<KvmNode, 'createBitmap'>, pages: number) {
    this.#bitmap = addon.createBitmap(pages);
  }

  mark(offset: number, length: number): void {
    if (!this.#on || length === 0) return;
    const first = Math.floor(offset / PAGE);
    this.#bitmap.set(first, Math.floor((offset + length - 1) / PAGE) - first + 1);
  }

  /** For writers that go past GuestMemory (the boot loader reads files straight into RAM). */
  markAll(): void {
    if (this.#on) this.#bitmap.fill();
  }

  async start(_ranges: readonly GpaRange[]): Promise<void> {
    this.#bitmap.zero();
    this.#on = true;
  }

  async collect(into: PageBitmap): Promise<number> {
    return into.take(this.#bitmap);
  }

  async stop(): Promise<void> {
    this.#on = false;
  }

  close(): void {
    this.#bitmap.close();
  }
}
