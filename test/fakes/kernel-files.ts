// Small kernels made by hand for tests of the loaders: an ELF64 "vmlinux" with or without a PVH note, and a bzImage around it, compressed
// by the same tools that Debian's kernels are. Written from the ELF gABI and the boot protocol, not with the loaders' own code.
import { execFileSync } from 'node:child_process';
import { gzipSync } from 'node:zlib';

export const KERNEL_BASE = 0x100_0000;
export const PVH_ENTRY = 0x100_0040;
/** Long enough that every compressor makes it smaller, with zeros at the end as a kernel's bss has. */
export const KERNEL_TEXT: Buffer = Buffer.from(
  Array.from({ length: 50_000 }, (_, i) => (i < 40_000 ? (i >> 4) & 0xff : 0)),
);
export const KERNEL_MEMORY = 0x20000;

export function vmlinux(options: { pvh: boolean }): Buffer {
  const textAt = 0x1000;
  const noteAt = 0x200;
  const file = Buffer.alloc(textAt + KERNEL_TEXT.length);
  file.write('\x7fELF\x02\x01\x01', 0, 'latin1');
  file.writeUInt16LE(2, 16);
  file.writeUInt16LE(62, 18);
  file.writeUInt32LE(1, 20);
  file.writeBigUInt64LE(BigInt(KERNEL_BASE), 24);
  file.writeBigUInt64LE(64n, 32);
  file.writeUInt16LE(64, 52);
  file.writeUInt16LE(56, 54);
  file.writeUInt16LE(2, 56);
  const header = (at: number, type: number, fields: readonly number[]): void => {
    file.writeUInt32LE(type, at);
    for (const [i, value] of fields.entries()) file.writeBigUInt64LE(BigInt(value), at + 8 + i * 8);
  };
  // offset, vaddr, paddr, filesz, memsz
  header(64, 1, [textAt, KERNEL_BASE, KERNEL_BASE, KERNEL_TEXT.length, KERNEL_MEMORY]);
  header(120, 4, [noteAt, 0, 0, 20, 20]);
  file.writeUInt32LE(4, noteAt);
  file.writeUInt32LE(4, noteAt + 4);
  file.writeUInt32LE(options.pvh ? 18 : 6, noteAt + 8);
  file.write('Xen\0', noteAt + 12, 'latin1');
  file.writeUInt32LE(PVH_ENTRY, noteAt + 16);
  KERNEL_TEXT.copy(file, textAt);
  return file;
}

export type Compression = 'gzip' | 'lz4' | 'xz' | 'zstd' | 'none';

function compressed(bytes: Buffer, how: Compression): Buffer {
  const size = Buffer.alloc(4);
  size.writeUInt32LE(bytes.length);
  if (how === 'none') return Buffer.concat([bytes, size]);
  if (how === 'gzip') return gzipSync(bytes);
  const args = { lz4: ['-l', '-9', '-c', '-'], xz: ['--check=crc32', '-c'], zstd: ['-19', '-c'] }[how];
  return Buffer.concat([execFileSync(how, args, { input: bytes, stdio: ['pipe', 'pipe', 'ignore'] }), size]);
}

export function bzImage(kernel: Buffer, how: Compression): Buffer {
  const payload = compressed(kernel, how);
  const setupSectors = 4;
  const start = (setupSectors + 1) * 512;
  const payloadOffset = 0x300;
  const file = Buffer.alloc(start + payloadOffset + payload.length + 100);
  file.writeUInt8(setupSectors, 0x1f1);
  file.writeUInt16LE(0xaa55, 0x1fe);
  file.writeUInt16LE(0x6aeb, 0x200); // jmp: the header ends at 0x26c
  file.write('HdrS', 0x202, 'latin1');
  file.writeUInt16LE(0x20f, 0x206);
  file.writeUInt8(1, 0x211);
  file.writeUInt32LE(0x7fff_ffff, 0x22c);
  file.writeUInt16LE(0x3f, 0x236);
  file.writeUInt32LE(payloadOffset, 0x248);
  file.writeUInt32LE(payload.length, 0x24c);
  file.writeBigUInt64LE(BigInt(KERNEL_BASE), 0x258);
  file.writeUInt32LE(0x40_0000, 0x260);
  payload.copy(file, start + payloadOffset);
  return file;
}
