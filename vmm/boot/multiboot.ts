// Loads flat multiboot-1 ELF32 kernels (kvm-unit-tests' *.flat and our own test guests): 32-bit flat protected mode, EAX the magic,
// EBX the information structure with memory sizes, command line, one module and the memory map. Called by load.ts.
// Spec: Multiboot Specification 0.6.96, 3.1-3.3.
import type { FileHandle } from 'node:fs/promises';
import { VmmError } from '../../native/errno.ts';
import type { ElfImage } from './elf.ts';
import { flatGdt, LOW, memoryMap } from './memory-map.ts';
import type { RamImage } from './ram-image.ts';
import { type BootRegisters, flat32 } from './registers.ts';

const HEADER_MAGIC = 0x1bad_b002;
const LOADER_MAGIC = 0x2bad_b002;
/** "The Multiboot header must be contained completely within the first 8192 bytes". */
export const MULTIBOOT_SEARCH = 8192;
/** Header flags 0-15 that a loader must know or refuse; 0 page-aligned modules and 1 memory information are ours, 2 is video. */
const REQUIRED_UNKNOWN = 0xfffc;
const ADDRESS_FIELDS = 1 << 16;

const INFO_MEMORY = 1 << 0;
const INFO_COMMAND_LINE = 1 << 2;
const INFO_MODULES = 1 << 3;
const INFO_MEMORY_MAP = 1 << 6;
const INFO_LOADER_NAME = 1 << 9;

const PAGE = 4096;
/** Offsets from LOW.multiboot. */
const MODULES_AT = 0x80;
const MAP_AT = 0x100;
const LOADER_NAME_AT = 0x400;
const MODULE_NAME_AT = 0x500;
const COMMAND_LINE_AT = 0x800;
const COMMAND_LINE_MAX = LOW.end - LOW.multiboot - COMMAND_LINE_AT;

/** Flags of the multiboot header in the file's first bytes, or null. */
export function multibootFlags(head: Uint8Array): number | null {
  const view = new DataView(head.buffer, head.byteOffset, head.byteLength);
  const end = Math.min(head.length, MULTIBOOT_SEARCH) - 12;
  for (let at = 0; at <= end; at += 4) {
    if (view.getUint32(at, true) !== HEADER_MAGIC) continue;
    const flags = view.getUint32(at + 4, true);
    if (((HEADER_MAGIC + flags + view.getUint32(at + 8, true)) & 0xffff_ffff) === 0) return flags;
  }
  return null;
}

/** What we cannot do for this kernel, as the end of a sentence, or null. */
export function multibootRefusal(flags: number, elf: ElfImage): string | null {
  if (elf.bits !== 32) return 'is a 64-bit multiboot image; link it as ELF32 (objcopy -O elf32-i386)';
  if ((flags & ADDRESS_FIELDS) !== 0) return 'uses the address fields of the multiboot header; link it as plain ELF32';
  if ((flags & REQUIRED_UNKNOWN) !== 0)
    return `asks for multiboot features (flags 0x${flags.toString(16)}) that are not offered`;
  return null;
}

export interface MultibootBoot {
  readonly file: FileHandle;
  readonly elf: ElfImage;
  readonly kernelPath: string;
  readonly module: { readonly file: FileHandle; readonly path: string; readonly size: number } | null;
  readonly append: string;
}

export async function loadMultiboot(ram: RamImage, boot: MultibootBoot): Promise<BootRegisters> {
  for (const segment of boot.elf.segments) {
    await ram.readFile(boot.file, segment.offset, segment.paddr, segment.fileSize);
    ram.zero(segment.paddr + segment.fileSize, segment.memSize - segment.fileSize);
  }
  const moduleAt = Math.ceil(boot.elf.high / PAGE) * PAGE;
  if (boot.module !== null) {
    if (!ram.contains(moduleAt, boot.module.size)) {
      throw new VmmError(
        'boot-module',
        `the module ${boot.module.path} does not fit into guest RAM; give more --memory`,
      );
    }
    await ram.readFile(boot.module.file, 0, moduleAt, boot.module.size);
  }
  const info = informationStructure(ram, boot, moduleAt);
  ram.write(LOW.multiboot, info);
  const gdt = flatGdt(false);
  ram.write(LOW.gdt, gdt);
  const table = { base: BigInt(LOW.gdt), limit: gdt.length - 1 };
  return flat32(boot.elf.entry, { eax: LOADER_MAGIC, ebx: LOW.multiboot }, table);
}

function informationStructure(ram: RamImage, boot: MultibootBoot, moduleAt: number): Uint8Array {
  const text = new TextEncoder();
  // QEMU's form: the kernel's name, then its arguments. Test guests rely on argv[0] being there.
  const commandLine = text.encode(`${boot.kernelPath} ${boot.append}`.trimEnd());
  if (commandLine.length >= COMMAND_LINE_MAX) {
    throw new VmmError(
      'boot-append',
      `the kernel's command line is longer than ${COMMAND_LINE_MAX - 1} bytes; shorten --append`,
    );
  }
  const bytes = new Uint8Array(COMMAND_LINE_AT + commandLine.length + 1);
  const view = new DataView(bytes.buffer);
  let flags = INFO_MEMORY | INFO_COMMAND_LINE | INFO_MEMORY_MAP | INFO_LOADER_NAME;
  view.setUint32(4, LOW.end / 1024, true);
  view.setUint32(8, (ram.lowEnd - 2 ** 20) / 1024, true);
  view.setUint32(16, LOW.multiboot + COMMAND_LINE_AT, true);
  bytes.set(commandLine, COMMAND_LINE_AT);
  if (boot.module !== null) {
    flags |= INFO_MODULES;
    view.setUint32(20, 1, true);
    view.setUint32(24, LOW.multiboot + MODULES_AT, true);
    view.setUint32(MODULES_AT, moduleAt, true);
    view.setUint32(MODULES_AT + 4, moduleAt + boot.module.size, true);
    view.setUint32(MODULES_AT + 8, LOW.multiboot + MODULE_NAME_AT, true);
    bytes.set(text.encode(boot.module.path).subarray(0, COMMAND_LINE_AT - MODULE_NAME_AT - 1), MODULE_NAME_AT);
  }
  const map = memoryMap(ram.memory);
  for (const [index, entry] of map.entries()) {
    // Each entry's size field does not count itself (3.3, mmap_addr).
    const at = MAP_AT + index * 24;
    view.setUint32(at, 20, true);
    view.setBigUint64(at + 4, BigInt(entry.start), true);
    view.setBigUint64(at + 12, BigInt(entry.length), true);
    view.setUint32(at + 20, entry.type, true);
  }
  view.setUint32(44, map.length * 24, true);
  view.setUint32(48, LOW.multiboot + MAP_AT, true);
  view.setUint32(64, LOW.multiboot + LOADER_NAME_AT, true);
  bytes.set(text.encode('ferry'), LOADER_NAME_AT);
  view.setUint32(0, flags, true);
  return bytes;
}
