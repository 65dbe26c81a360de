// Loads an uncompressed vmlinux by its PVH entry: 32-bit flat protected mode, EBX pointing at hvm_start_info. Skips the kernel's own
// decompressor, which costs up to seconds in nested machines. Called by load.ts.
// Specs: Xen docs/misc/pvh.pandoc ("x86/HVM direct boot ABI"), xen/include/public/arch-x86/hvm/start_info.h.
import type { FileHandle } from 'node:fs/promises';
import { VmmError } from '../../native/errno.ts';
import type { ElfImage } from './elf.ts';
import { type InitrdFile, loadInitrd, type PlacedInitrd } from './initrd.ts';
import { COMMAND_LINE_MAX, flatGdt, LOW, memoryMap } from './memory-map.ts';
import type { RamImage } from './ram-image.ts';
import { type BootRegisters, flat32 } from './registers.ts';

const START_MAGIC = 0x336e_c578;
const START_INFO_SIZE = 56;
const MODULE_ENTRY_SIZE = 32;
const MAP_ENTRY_SIZE = 24;
/** What vmlinux needs beyond its own end before it knows its memory map (brk area is inside memsz; this is slack for alignment). */
const KERNEL_SLACK = 2 ** 21;
/** Without boot_params there is no initrd_addr_max; all of low RAM is mapped by the time the kernel looks. */
const INITRD_MAX = 0xffff_ffff;

export interface LinuxBoot {
  readonly initrd: InitrdFile | null;
  readonly append: string;
  /** Guest address of the ACPI RSDP. */
  readonly rsdp: number;
}

export async function loadPvh(
  ram: RamImage,
  kernel: { file: FileHandle; elf: ElfImage; entry: number },
  boot: LinuxBoot,
): Promise<BootRegisters> {
  await loadSegments(ram, kernel.file, kernel.elf);
  const initrd = await loadInitrd(ram, boot.initrd, kernel.elf.high + KERNEL_SLACK, INITRD_MAX);
  writeCommandLine(ram, boot.append);
  writeStartInfo(ram, initrd, boot.rsdp);
  const gdt = flatGdt(false);
  ram.write(LOW.gdt, gdt);
  return flat32(kernel.entry, { ebx: LOW.startInfo }, { base: BigInt(LOW.gdt), limit: gdt.length - 1 });
}

/** Copies every PT_LOAD to its physical address and zeroes what the file does not cover. */
export async function loadSegments(ram: RamImage, file: FileHandle, elf: ElfImage): Promise<void> {
  for (const segment of elf.segments) {
    await ram.readFile(file, segment.offset, segment.paddr, segment.fileSize);
    ram.zero(segment.paddr + segment.fileSize, segment.memSize - segment.fileSize);
  }
}

export function writeCommandLine(ram: RamImage, append: string): void {
  const bytes = new TextEncoder().encode(`${append}\0`);
  if (bytes.length > COMMAND_LINE_MAX) {
    throw new VmmError(
      'boot-append',
      `the kernel's command line has ${bytes.length - 1} bytes and Linux takes ${COMMAND_LINE_MAX - 1}; shorten --append`,
    );
  }
  ram.write(LOW.commandLine, bytes);
}

function writeStartInfo(ram: RamImage, initrd: PlacedInitrd | null, rsdp: number): void {
  const map = memoryMap(ram.memory);
  const info = new DataView(new ArrayBuffer(START_INFO_SIZE));
  const tables = new DataView(new ArrayBuffer(MODULE_ENTRY_SIZE + map.length * MAP_ENTRY_SIZE));
  info.setUint32(0, START_MAGIC, true);
  info.setUint32(4, 1, true); // version 1: has the memory map
  info.setUint32(12, initrd === null ? 0 : 1, true);
  info.setBigUint64(16, BigInt(initrd === null ? 0 : LOW.startInfoTables), true);
  info.setBigUint64(24, BigInt(LOW.commandLine), true);
  info.setBigUint64(32, BigInt(rsdp), true);
  info.setBigUint64(40, BigInt(LOW.startInfoTables + MODULE_ENTRY_SIZE), true);
  info.setUint32(48, map.length, true);
  if (initrd !== null) {
    tables.setBigUint64(0, BigInt(initrd.start), true);
    tables.setBigUint64(8, BigInt(initrd.size), true);
  }
  for (const [index, entry] of map.entries()) {
    const at = MODULE_ENTRY_SIZE + index * MAP_ENTRY_SIZE;
    tables.setBigUint64(at, BigInt(entry.start), true);
    tables.setBigUint64(at + 8, BigInt(entry.length), true);
    tables.setUint32(at + 16, entry.type, true);
  }
  ram.write(LOW.startInfo, new Uint8Array(info.buffer));
  ram.write(LOW.startInfoTables, new Uint8Array(tables.buffer));
}
