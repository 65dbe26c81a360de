// Where everything lies in a guest: physical addresses, I/O ports, GSIs. The one table; ACPI, e820, the bus and the devices' bases are
// made from it. Called by memory.ts, machine.ts, boot/ and acpi/; pure constants and functions, any thread.
//
//   0              RAM, at most 3 GiB (0xa0000-0xfffff is reserved in the e820, but backed)
//   0xc0000000     32-bit PCI window (992 MiB)
//   0xfe000000     ECAM of bus 0 (1 MiB)
//   0xfec00000     IOAPIC          0xfee00000  LAPIC and MSI: never RAM, never a BAR
//   0xfffbc000     identity map page, then three TSS pages (KVM's own, Intel only)
//   4 GiB          the rest of RAM; the memfd goes on where low RAM ended
//   above RAM      64-bit PCI window, up to 2^39

const MIB = 2 ** 20;
const GIB = 2 ** 30;

export const LOW_RAM_END = 3 * GIB;
export const HIGH_RAM_BASE = 4 * GIB;
/** VGA and option ROM space of a PC: reserved in the memory map that the guest is told. */
export const LEGACY_HOLE = { start: 0xa0000, end: 0x100000 } as const;

export const MMIO32 = { start: LOW_RAM_END, end: 0xfe000000 } as const;
/** Only bus 0 exists, so its 1 MiB is all of the ECAM that MCFG announces; 256 buses would take a quarter of the 32-bit window. */
export const ECAM = { base: 0xfe000000, size: MIB, startBus: 0, endBus: 0 } as const;
export const IOAPIC_BASE = 0xfec00000;
export const LAPIC_BASE = 0xfee00000;
/** Writes here are interrupts (Intel SDM 3, 11.11). */
export const MSI_WINDOW = { start: 0xfee00000, end: 0xfef00000 } as const;
/** KVM api.rst, KVM_SET_IDENTITY_MAP_ADDR and KVM_SET_TSS_ADDR: one page and three pages that no slot may cover. */
export const IDENTITY_MAP_ADDR = 0xfffbc000;
export const TSS_ADDR = 0xfffbd000;
/** Above this VT-d with a 39-bit aperture (the lab's) cannot map what a BAR or RAM has. */
export const GPA_END = 2 ** 39;
/** Half of it, so that a 64-bit window always remains. */
export const MAX_MEMORY = 2 ** 38;

export const PORT = {
  i8042Data: 0x60,
  i8042Command: 0x64,
  rtc: 0x70,
  systemControlA: 0x92,
  debugExit: 0xf4,
  com1: 0x3f8,
  pvpanic: 0x505,
  pm1Event: 0x600,
  pm1Control: 0x604,
  pciConfigAddress: 0xcf8,
  resetControl: 0xcf9,
  pciConfigData: 0xcfc,
} as const;
/** Ports for BARs. Below are the board's own. */
export const PCI_IO = { start: 0x1000, end: 0x10000 } as const;

/** 0-15: ISA, wired to PIC and IOAPIC (the PIT's IRQ 0 is IOAPIC pin 2). 16-23: PCI INTx, IOAPIC only. 24 and up: MSI. */
export const GSI = { rtc: 8, com1: 4, sci: 9, pciFirst: 16, pciCount: 8, ioapicPins: 24, msiFirst: 24 } as const;

/** INTA# of slot s. Eight lines go round the slots; the pins of a multi-function slot follow each other. PCI 3.0, 2.2.6. */
export function pciGsi(slot: number, pin: 0 | 1 | 2 | 3): number {
  return GSI.pciFirst + ((slot + pin) % GSI.pciCount);
}

export interface RamSpan {
  readonly gpa: number;
  readonly size: number;
  /** Where it lies in the memfd. */
  readonly offset: number;
}

/** How `memory` bytes (a multiple of 4096) are split around the PCI hole. */
export function ramSpans(memory: number): RamSpan[] {
  const low = Math.min(memory, LOW_RAM_END);
  const spans: RamSpan[] = [{ gpa: 0, size: low, offset: 0 }];
  if (memory > low) spans.push({ gpa: HIGH_RAM_BASE, size: memory - low, offset: low });
  return spans;
}

/** The 64-bit PCI window above RAM. `physBits`: the guest's physical address width (CPUID 0x80000008). */
export function mmio64(memory: number, physBits = 39): { readonly start: number; readonly end: number } {
  const top = memory > LOW_RAM_END ? HIGH_RAM_BASE + memory - LOW_RAM_END : HIGH_RAM_BASE;
  const start = Math.ceil(top / GIB) * GIB;
  return { start, end: Math.max(start, Math.min(GPA_END, 2 ** physBits)) };
}
