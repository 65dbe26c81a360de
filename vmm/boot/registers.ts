// The registers of the boot vCPU, as plain records that vmm/core-state code puts into KVM_SET_REGS and KVM_SET_SREGS. Made by the
// loaders in this folder; the names are those of struct kvm_regs and struct kvm_sregs (linux/kvm.h, asm/kvm.h).
// Fields that are not named here keep what a fresh vCPU has (apic_base, idt limit, ...).

export interface SegmentRegister {
  readonly base: bigint;
  readonly limit: number;
  readonly selector: number;
  readonly type: number;
  readonly present: number;
  readonly dpl: number;
  readonly db: number;
  readonly s: number;
  readonly l: number;
  readonly g: number;
  readonly avl: number;
}

export interface DescriptorTable {
  readonly base: bigint;
  readonly limit: number;
}

/** General registers that are not zero at the entry. rip and rflags are always there. */
export interface BootRegs {
  readonly rip: bigint;
  readonly rflags: bigint;
  readonly rax: bigint;
  readonly rbx: bigint;
  readonly rsi: bigint;
}

export interface BootSregs {
  readonly cs: SegmentRegister;
  /** For ds, es, fs, gs and ss alike. */
  readonly data: SegmentRegister;
  readonly tr: SegmentRegister;
  readonly gdt: DescriptorTable;
  readonly idt: DescriptorTable;
  readonly cr0: bigint;
  readonly cr3: bigint;
  readonly cr4: bigint;
  readonly efer: bigint;
}

export interface BootRegisters {
  readonly regs: BootRegs;
  readonly sregs: BootSregs;
}

// SDM 3A 3.4.5.1, segment types: execute/read accessed, read/write accessed, and 3.5, 32-bit and 64-bit TSS (busy).
const CODE = 0xb;
const DATA = 0x3;
const TSS_BUSY = 0xb;

const PE = 0x1n;
const ET = 0x10n;
const PG = 1n << 31n;
const PAE = 1n << 5n;
const LME_LMA = 0x500n;
/** Bit 1 of RFLAGS always reads as one (SDM 1 3.4.3). */
const RFLAGS = 0x2n;

function segment(selector: number, type: number, bits: { db: number; l: number }): SegmentRegister {
  const base = 0n;
  return { base, limit: 0xffff_ffff, selector, type, present: 1, dpl: 0, db: bits.db, s: 1, l: bits.l, g: 1, avl: 0 };
}

/** A TSS that is never used, but without which VM entry on Intel fails (SDM 3C 26.3.1.2: TR must be usable and busy). */
function taskState(limit: number): SegmentRegister {
  return {
    base: 0n,
    limit,
    selector: 0,
    type: TSS_BUSY,
    present: 1,
    dpl: 0,
    db: 0,
    s: 0,
    l: 0,
    g: 0,
    avl: 0,
  };
}

/** 32-bit flat protected mode, paging off: what PVH and multiboot ask for. */
export function flat32(entry: number, regs: { eax?: number; ebx: number }, gdt: DescriptorTable): BootRegisters {
  return {
    regs: { rip: BigInt(entry), rflags: RFLAGS, rax: BigInt(regs.eax ?? 0), rbx: BigInt(regs.ebx), rsi: 0n },
    sregs: {
      cs: segment(0x08, CODE, { db: 1, l: 0 }),
      data: segment(0x10, DATA, { db: 1, l: 0 }),
      tr: taskState(0x67),
      gdt,
      idt: { base: 0n, limit: 0 },
      cr0: PE | ET,
      cr3: 0n,
      cr4: 0n,
      efer: 0n,
    },
  };
}

/** Long mode with identity page tables: Linux/x86 boot protocol, "64-bit Boot Protocol": CS 0x10, DS 0x18, RSI = boot_params. */
export function long64(entry: number, bootParams: number, pml4: number, gdt: DescriptorTable): BootRegisters {
  return {
    regs: { rip: BigInt(entry), rflags: RFLAGS, rax: 0n, rbx: 0n, rsi: BigInt(bootParams) },
    sregs: {
      cs: segment(0x10, CODE, { db: 0, l: 1 }),
      data: segment(0x18, DATA, { db: 1, l: 0 }),
      tr: taskState(0x67),
      gdt,
      idt: { base: 0n, limit: 0 },
      cr0: PE | ET | PG,
      cr3: BigInt(pml4),
      cr4: PAE,
      efer: LME_LMA,
    },
  };
}
