// Rule: a compacted kernel fills guest memory exactly as the original does, byte for byte, wherever its zeros lie; it is never bigger;
// entry and notes stay. Checked against a painter that reads both files by the gABI alone.
import { describe, expect, test } from 'vitest';
import { compactElf } from '../../../vmm/boot/compact-elf.ts';
import { parseElf, pvhEntry } from '../../../vmm/boot/elf.ts';
import { PVH_ENTRY, vmlinux } from '../../fakes/kernel-files.ts';

/** Memory after loading: file bytes, then zeros to memsz; 0xee where nothing is loaded. */
function paint(file: Buffer, size: number, base: number): Buffer {
  const memory = Buffer.alloc(size, 0xee);
  const count = file.readUInt16LE(56);
  for (let i = 0; i < count; i++) {
    const at = Number(file.readBigUInt64LE(32)) + i * 56;
    if (file.readUInt32LE(at) !== 1) continue;
    const [offset, , paddr, fileSize, memSize] = [8, 16, 24, 32, 40].map((o) => Number(file.readBigUInt64LE(at + o)));
    memory.fill(0, paddr! - base, paddr! - base + memSize!);
    file.copy(memory, paddr! - base, offset!, offset! + fileSize!);
  }
  return memory;
}

function kernelWith(segments: readonly { paddr: number; content: Buffer; memSize: number }[]): Buffer {
  const head = Buffer.alloc(4096);
  vmlinux({ pvh: true }).copy(head, 0, 0, 64);
  head.writeUInt16LE(segments.length, 56);
  let offset = 4096;
  for (const [i, s] of segments.entries()) {
    head.writeUInt32LE(1, 64 + i * 56);
    for (const [k, v] of [offset, s.paddr, s.paddr, s.content.length, s.memSize].entries()) {
      head.writeBigUInt64LE(BigInt(v), 64 + i * 56 + 8 + k * 8);
    }
    offset += s.content.length;
  }
  return Buffer.concat([head, ...segments.map((s) => s.content)]);
}

const BASE = 0x100_0000;
const PAGE = 4096;
const pages = (...parts: readonly (readonly [count: number, byte: number])[]): Buffer =>
  Buffer.concat(parts.map(([count, byte]) => Buffer.alloc(count * PAGE, byte)));

describe('compacted vmlinux', () => {
  test.each<[string, Buffer, number]>([
    ['zeros in the middle', pages([3, 1], [40, 0], [2, 5]), 0],
    ['zeros at the end, and bss after', pages([3, 1], [40, 0]), 50 * PAGE],
    ['zeros at the start', pages([40, 0], [3, 1]), 0],
    ['nothing but zeros', pages([40, 0]), 0],
    ['short runs stay', pages([1, 1], [3, 0], [1, 2], [15, 0], [1, 3], [16, 0], [1, 4]), 0],
    ['not a multiple of a page', Buffer.concat([pages([2, 7], [20, 0]), Buffer.from('tail')]), 100],
    ['ends in a short run', pages([2, 7], [3, 0]), 0],
    ['no file bytes', Buffer.alloc(0), 10 * PAGE],
  ])('%s', (_, content, bss) => {
    const after = { paddr: BASE + 0x10_0000, content: pages([1, 9]), memSize: 2 * PAGE };
    const file = kernelWith([{ paddr: BASE, content, memSize: content.length + bss }, after]);
    const compact = compactElf(file);
    expect(paint(compact, 0x20_0000, BASE).equals(paint(file, 0x20_0000, BASE))).toBe(true);
    expect(compact.length).toBeLessThanOrEqual(file.length + PAGE);
  });

  test('random kernels', () => {
    let seed = 12345;
    const random = (n: number): number => {
      seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
      return (seed >>> 8) % n;
    };
    for (let round = 0; round < 60; round++) {
      const content = pages(
        ...Array.from({ length: 1 + random(8) }, () => [1 + random(30), random(2) * 0x41] as const),
      );
      const cut = content.subarray(0, content.length - random(PAGE));
      const file = kernelWith([{ paddr: BASE, content: cut, memSize: cut.length + random(3) * 5000 }]);
      expect(paint(compactElf(file), 0x20_0000, BASE).equals(paint(file, 0x20_0000, BASE)), `round ${round}`).toBe(
        true,
      );
    }
  });

  test('entry and PVH note stay; what is not a 64-bit ELF file is left alone', () => {
    const compact = compactElf(vmlinux({ pvh: true }));
    const elf = parseElf(compact, compact.length);
    if (typeof elf === 'string') throw new Error(elf);
    const note = elf.notes[0]!;
    expect(pvhEntry(compact.subarray(note.offset, note.offset + note.size))).toBe(PVH_ENTRY);
    expect(elf.entry).toBe(BASE);
    const text = Buffer.from('no kernel '.repeat(1000));
    expect(compactElf(text)).toBe(text);
  });
});
