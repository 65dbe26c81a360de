// The memory map that the guest is told (e820, hvm_memmap_table_entry and multiboot's mmap carry the same types) and where in low RAM
// the loaders put what they hand to a kernel. Called by pvh.ts, linux64.ts and multiboot.ts. ACPI 6.4, 15.1 (address range types).
import type { GuestMemory } from '../../devices/contract.ts';
import { ECAM, IDENTITY_MAP_ADDR, IOAPIC_BASE, LAPIC_BASE, LEGACY_HOLE } from '../layout.ts';

export const E820_RAM = 1;
export const E820_RESERVED = 2;

export interface MapEntry {
  readonly start: number;
  readonly length: number;
  readonly type: number;
}

/** Low RAM, below the kernel. Linux copies what it wants from here before it uses this memory (it keeps the first MiB for itself). */
export const LOW = {
  gdt: 0x500,
  startInfo: 0x6000,
  /** Module list and memory map of the PVH start info. */
  startInfoTables: 0x6100,
  bootParams: 0x7000,
  pageTables: 0x9000,
  commandLine: 0x20000,
  /** Multiboot information: near the top, since flat guests may be linked low (16 KiB). */
  multiboot: 0x9e000,
  end: LEGACY_HOLE.start,
} as const;

/** COMMAND_LINE_SIZE of Linux/x86, with the terminating zero. */
export const COMMAND_LINE_MAX = 2048;

const PAGE = 4096;

/** In ascending order, without overlap. ECAM must be reserved or Linux will not use MCFG (PCI Firmware 3.2, 4.1.2). */
export function memoryMap(memory: GuestMemory): MapEntry[] {
  const map: MapEntry[] = [
    { start: ECAM.base, length: ECAM.size, type: E820_RESERVED },
    { start: IOAPIC_BASE, length: PAGE, type: E820_RESERVED },
    { start: LAPIC_BASE, length: PAGE, type: E820_RESERVED },
    // Identity map page and three TSS pages of KVM.
    { start: IDENTITY_MAP_ADDR, length: 4 * PAGE, type: E820_RESERVED },
  ];
  for (const range of memory.ranges) {
    const end = range.gpa + range.size;
    if (range.gpa < LEGACY_HOLE.start && end > LEGACY_HOLE.end) {
      map.push({ start: range.gpa, length: LEGACY_HOLE.start - range.gpa, type: E820_RAM });
      map.push({ start: LEGACY_HOLE.start, length: LEGACY_HOLE.end - LEGACY_HOLE.start, type: E820_RESERVED });
      map.push({ start: LEGACY_HOLE.end, length: end - LEGACY_HOLE.end, type: E820_RAM });
    } else {
      map.push({ start: range.gpa, length: range.size, type: E820_RAM });
    }
  }
  return map.sort((a, b) => a.start - b.start);
}

/** The flat GDT that the entry states' selectors point into: 0x08 and 0x10 32-bit code and data; Linux's 0x10 and 0x18 when `long`. */
export function flatGdt(long: boolean): Uint8Array {
  const code32 = 0x00cf_9b00_0000_ffffn;
  const code64 = 0x00af_9b00_0000_ffffn;
  const data = 0x00cf_9300_0000_ffffn;
  const entries = long ? [0n, 0n, code64, data] : [0n, code32, data];
  const bytes = new Uint8Array(entries.length * 8);
  const view = new DataView(bytes.buffer);
  for (const [index, entry] of entries.entries()) view.setBigUint64(index * 8, entry, true);
  return bytes;
}
