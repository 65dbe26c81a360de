// Rule: every flat test guest builds without a warning and is what a multiboot-1 loader takes: ELF32 at 4 MiB with a valid header.
import { readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { parseElf } from '../../../vmm/boot/elf.ts';
import { multibootFlags, multibootRefusal } from '../../../vmm/boot/multiboot.ts';
import { buildFlatGuest } from '../../guests/build.ts';

describe('flat test guests', () => {
  test.each(['hello', 'exits', 'worker', 'smp', 'ends', 'timer'])('%s is a multiboot-1 ELF32 image', (name) => {
    const bytes = readFileSync(buildFlatGuest(name));
    const elf = parseElf(bytes, bytes.length);
    if (typeof elf === 'string') throw new Error(elf);
    expect(elf.bits).toBe(32);
    expect(elf.low).toBe(0x400000);
    const flags = multibootFlags(bytes.subarray(0, 8192));
    expect(flags).toBe(3);
    expect(multibootRefusal(flags ?? 0, elf)).toBeNull();
  });
});
