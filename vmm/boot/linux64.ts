// Starts Linux by the 64-bit boot protocol: boot_params in RSI, long mode, identity page tables. For a bzImage whose payload cannot be
// unpacked on this host (the kernel then unpacks itself), and for a 64-bit vmlinux without a PVH note. Called by load.ts.
// Spec: Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header" and "64-bit Boot Protocol"; zero-page.rst for offsets.
import type { FileHandle } from 'node:fs/promises';
import { VmmError } from '../../native/errno.ts';
import type { BzImageHeader } from './bzimage.ts';
import type { ElfImage } from './elf.ts';
import { loadInitrd } from './initrd.ts';
import { flatGdt, LOW, memoryMap } from './memory-map.ts';
import { type LinuxBoot, loadSegments, writeCommandLine } from './pvh.ts';
import type { RamImage } from './ram-image.ts';
import { type BootRegisters, long64 } from './registers.ts';

const PAGE = 4096;
const BOOT_PARAMS_SIZE = PAGE;
const SETUP_HEADER = 0x1f1;
const LOADER_UNDEFINED = 0xff;
const LOADED_HIGH = 1;
const E820_TABLE = 0x2d0;
const E820_ENTRY_SIZE = 20;
/** boot_params of a vmlinux that came without a setup header: HdrS, protocol 2.12. */
const HDRS = 0x5372_6448;
const KERNEL_SLACK = 2 ** 21;
const INITRD_MAX = 0x7fff_ffff;

/** `setup`: the bytes of the file's setup header; the protected-mode kernel follows the setup sectors. */
export async function loadBzImage(
  ram: RamImage,
  kernel: { file: FileHandle; header: BzImageHeader; size: number; path: string },
  boot: LinuxBoot,
): Promise<BootRegisters> {
  const { header } = kernel;
  const at = header.preferredAddress;
  if (!ram.contains(at, header.initSize)) {
    const need = Math.ceil((at + header.initSize) / 2 ** 20);
    throw new VmmError(
      'boot-kernel',
      `the kernel ${kernel.path} needs ${need} MiB of RAM to unpack itself; give --memory ${need}M or more`,
    );
  }
  await ram.readFile(kernel.file, header.payloadStart, at, kernel.size - header.payloadStart);
  const params = new Uint8Array(BOOT_PARAMS_SIZE);
  params.set(header.setup, SETUP_HEADER);
  const initrd = await loadInitrd(ram, boot.initrd, at + header.initSize, header.initrdMax);
  writeBootParams(ram, params, boot, initrd);
  return enter(ram, at + 0x200);
}

export async function loadElf64(
  ram: RamImage,
  kernel: { file: FileHandle; elf: ElfImage },
  boot: LinuxBoot,
): Promise<BootRegisters> {
  await loadSegments(ram, kernel.file, kernel.elf);
  const initrd = await loadInitrd(ram, boot.initrd, kernel.elf.high + KERNEL_SLACK, INITRD_MAX);
  const params = new Uint8Array(BOOT_PARAMS_SIZE);
  const view = new DataView(params.buffer);
  view.setUint16(0x1fe, 0xaa55, true);
  view.setUint32(0x202, HDRS, true);
  view.setUint16(0x206, 0x20c, true);
  view.setUint32(0x230, 2 ** 21, true); // kernel_alignment
  writeBootParams(ram, params, boot, initrd);
  return enter(ram, kernel.elf.entry);
}

function writeBootParams(
  ram: RamImage,
  params: Uint8Array,
  boot: LinuxBoot,
  initrd: { start: number; size: number } | null,
): void {
  const view = new DataView(params.buffer);
  const map = memoryMap(ram.memory);
  view.setBigUint64(0x070, BigInt(boot.rsdp), true); // acpi_rsdp_addr
  view.setUint8(0x1e8, map.length);
  view.setUint16(0x1fa, 0xffff, true); // vid_mode: normal
  view.setUint8(0x210, LOADER_UNDEFINED);
  view.setUint8(0x211, view.getUint8(0x211) | LOADED_HIGH);
  view.setUint32(0x218, initrd?.start ?? 0, true);
  view.setUint32(0x21c, initrd?.size ?? 0, true);
  view.setUint32(0x228, LOW.commandLine, true);
  for (const [index, entry] of map.entries()) {
    const at = E820_TABLE + index * E820_ENTRY_SIZE;
    view.setBigUint64(at, BigInt(entry.start), true);
    view.setBigUint64(at + 8, BigInt(entry.length), true);
    view.setUint32(at + 16, entry.type, true);
  }
  writeCommandLine(ram, boot.append);
  ram.write(LOW.bootParams, params);
}

/** Identity map of the first 4 GiB in 2 MiB pages: kernel, boot_params and command line must be in it. */
function enter(ram: RamImage, entry: number): BootRegisters {
  const tables = new DataView(new ArrayBuffer(6 * PAGE));
  const presentWritable = 3n;
  const largePage = 0x83n;
  tables.setBigUint64(0, BigInt(LOW.pageTables + PAGE) | presentWritable, true);
  for (let gib = 0; gib < 4; gib++) {
    const directory = LOW.pageTables + (2 + gib) * PAGE;
    tables.setBigUint64(PAGE + gib * 8, BigInt(directory) | presentWritable, true);
    for (let i = 0; i < 512; i++) {
      tables.setBigUint64((2 + gib) * PAGE + i * 8, (BigInt(gib * 512 + i) << 21n) | largePage, true);
    }
  }
  ram.write(LOW.pageTables, new Uint8Array(tables.buffer));
  const gdt = flatGdt(true);
  ram.write(LOW.gdt, gdt);
  return long64(entry, LOW.bootParams, LOW.pageTables, { base: BigInt(LOW.gdt), limit: gdt.length - 1 });
}
