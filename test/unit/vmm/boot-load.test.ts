// Rules: each kind of kernel is found out and put where its protocol wants it, with the registers that the protocol names; a bzImage of
// every format becomes its vmlinux, from the cache the second time; wrong files are refused in one line with exit code 2; a reset's load
// gives the same RAM as the first; the memory map covers all RAM and reserves the ECAM.
import { chmodSync, existsSync, mkdtempSync, readdirSync, rmSync, utimesSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { GuestMemory } from '../../../devices/contract.ts';
import { VmmError } from '../../../native/errno.ts';
import { type BootImage, openBoot } from '../../../vmm/boot/load.ts';
import { E820_RAM, E820_RESERVED, memoryMap } from '../../../vmm/boot/memory-map.ts';
import { ECAM, HIGH_RAM_BASE, LOW_RAM_END } from '../../../vmm/layout.ts';
import { arrayMemory } from '../../fakes/array-memory.ts';
import { bzImage, KERNEL_BASE, KERNEL_MEMORY, KERNEL_TEXT, PVH_ENTRY, vmlinux } from '../../fakes/kernel-files.ts';
import { buildFlatGuest } from '../../guests/build.ts';

const MIB = 2 ** 20;
let dir = '';
let images: BootImage[] = [];
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'ferry-boot-'));
  images = [];
});
afterEach(async () => {
  await Promise.all(images.map((image) => image.close()));
  rmSync(dir, { recursive: true });
});

function put(name: string, bytes: Uint8Array): string {
  const path = join(dir, name);
  writeFileSync(path, bytes);
  // As old as a real kernel: a file that was only just written is not taken from the cache by its times.
  utimesSync(path, 1e9, 1e9);
  return path;
}
async function boot(kernel: string, initrd: string | null = null, append = 'console=ttyS0'): Promise<BootImage> {
  const image = await openBoot({ kernel, initrd, append }, { cacheDir: join(dir, 'cache') });
  images.push(image);
  return image;
}
const bytesAt = (memory: GuestMemory, gpa: number, length: number): Buffer => {
  const into = Buffer.alloc(length);
  expect(memory.read(gpa, into)).toBe(true);
  return into;
};
const textAt = (memory: GuestMemory, gpa: number): string => {
  const bytes = bytesAt(memory, gpa, 256);
  return bytes.toString('latin1', 0, bytes.indexOf(0));
};

/** hvm_start_info, as the guest reads it. */
function startInfo(memory: GuestMemory, gpa: number) {
  const info = bytesAt(memory, gpa, 56);
  const entries = info.readUInt32LE(48);
  const map = bytesAt(memory, Number(info.readBigUInt64LE(40)), entries * 24);
  const modules = info.readUInt32LE(12);
  const module = modules === 0 ? null : bytesAt(memory, Number(info.readBigUInt64LE(16)), 16);
  return {
    magic: info.readUInt32LE(0),
    commandLine: textAt(memory, Number(info.readBigUInt64LE(24))),
    rsdp: Number(info.readBigUInt64LE(32)),
    initrd: module && { start: Number(module.readBigUInt64LE(0)), size: Number(module.readBigUInt64LE(8)) },
    map: Array.from({ length: entries }, (_, i) => ({
      start: Number(map.readBigUInt64LE(i * 24)),
      length: Number(map.readBigUInt64LE(i * 24 + 8)),
      type: map.readUInt32LE(i * 24 + 16),
    })),
  };
}

describe('PVH', () => {
  test('vmlinux with a PVH note starts in 32-bit protected mode, EBX at the start info', async () => {
    const initrd = put('initrd', Buffer.alloc(10_000, 7));
    const image = await boot(put('vmlinux', vmlinux({ pvh: true })), initrd, 'console=ttyS0 quiet');
    expect(image).toMatchObject({ kind: 'pvh', notes: [] });
    const memory = arrayMemory(64 * MIB);
    const { regs, sregs } = await image.load({ memory, cpus: 2, fresh: true });
    expect(regs).toMatchObject({ rip: BigInt(PVH_ENTRY), rflags: 2n });
    expect(sregs).toMatchObject({ cr0: 0x11n, cr4: 0n, efer: 0n, cs: { base: 0n, limit: 0xffff_ffff, db: 1, l: 0 } });
    expect(bytesAt(memory, KERNEL_BASE, KERNEL_TEXT.length).equals(KERNEL_TEXT)).toBe(true);
    const info = startInfo(memory, Number(regs.rbx));
    expect(info).toMatchObject({ magic: 0x336ec578, commandLine: 'console=ttyS0 quiet', initrd: { size: 10_000 } });
    expect(bytesAt(memory, info.rsdp, 8).toString('latin1')).toBe('RSD PTR ');
    const at = info.initrd?.start ?? 0;
    expect(at % 4096).toBe(0);
    expect(at).toBeGreaterThanOrEqual(KERNEL_BASE + KERNEL_MEMORY);
    expect(at + 10_000).toBeLessThanOrEqual(64 * MIB);
    expect(bytesAt(memory, at, 10_000).equals(Buffer.alloc(10_000, 7))).toBe(true);
    expect(info.map).toEqual(memoryMap(memory));
  });

  test('a load at reset zeroes what the file does not cover and gives the same RAM as the first', async () => {
    const image = await boot(put('vmlinux', vmlinux({ pvh: true })));
    const [first, second] = [arrayMemory(32 * MIB), arrayMemory(32 * MIB)];
    await image.load({ memory: first, cpus: 1, fresh: true });
    second.write(0, new Uint8Array(MIB)); // low memory as it was
    second.write(KERNEL_BASE, new Uint8Array(KERNEL_MEMORY).fill(0xaa));
    await image.load({ memory: second, cpus: 1, fresh: false });
    for (const [gpa, length] of [
      [0, MIB],
      [KERNEL_BASE, KERNEL_MEMORY],
    ] as const) {
      expect(bytesAt(second, gpa, length).equals(bytesAt(first, gpa, length))).toBe(true);
    }
  });
});

describe('bzImage', () => {
  test.each(['gzip', 'lz4', 'xz', 'zstd'] as const)('%s: its vmlinux is started, and cached', async (how) => {
    const kernel = vmlinux({ pvh: true });
    const path = put('vmlinuz', bzImage(kernel, how));
    for (const _ of ['cold', 'warm']) {
      const image = await boot(path);
      expect(image).toMatchObject({ kind: 'pvh', notes: [] });
      const memory = arrayMemory(32 * MIB);
      const { regs } = await image.load({ memory, cpus: 1, fresh: true });
      expect(regs.rip).toBe(BigInt(PVH_ENTRY));
      expect(bytesAt(memory, KERNEL_BASE, KERNEL_TEXT.length).equals(KERNEL_TEXT)).toBe(true);
    }
    const cached = readdirSync(join(dir, 'cache')).filter((f) => f.startsWith('vmlinux-'));
    expect(cached).toHaveLength(1);
    // Whatever is left in the cache is whole: nothing half-written stays.
    expect(readdirSync(join(dir, 'cache')).filter((f) => f.startsWith('.new'))).toEqual([]);
  });

  test('another kernel under the same name does not get the cached one', async () => {
    const first = vmlinux({ pvh: true });
    await boot(put('vmlinuz', bzImage(first, 'gzip')));
    const second = Buffer.from(first);
    second.fill(0x5a, 0x1000, 0x1100);
    const image = await boot(put('vmlinuz', bzImage(second, 'gzip')));
    const memory = arrayMemory(32 * MIB);
    await image.load({ memory, cpus: 1, fresh: true });
    expect(bytesAt(memory, KERNEL_BASE, 0x100).equals(Buffer.alloc(0x100, 0x5a))).toBe(true);
  });

  test('a cached kernel that others may write is not trusted', async () => {
    const path = put('vmlinuz', bzImage(vmlinux({ pvh: true }), 'gzip'));
    await boot(path);
    const name = readdirSync(join(dir, 'cache')).find((f) => f.startsWith('vmlinux-')) ?? '';
    const cached = join(dir, 'cache', name);
    writeFileSync(cached, vmlinux({ pvh: true }).fill(0x33, 0x1000));
    chmodSync(cached, 0o666);
    const memory = arrayMemory(32 * MIB);
    await (await boot(path)).load({ memory, cpus: 1, fresh: true });
    expect(bytesAt(memory, KERNEL_BASE, KERNEL_TEXT.length).equals(KERNEL_TEXT)).toBe(true);
  });

  test('without the tool the guest unpacks itself by the 64-bit protocol, and a note names the package', async () => {
    const path = put('vmlinuz', bzImage(vmlinux({ pvh: true }), 'lz4'));
    const before = process.env['PATH'];
    process.env['PATH'] = join(dir, 'nothing');
    const image = await boot(path).finally(() => {
      process.env['PATH'] = before;
    });
    expect(image.kind).toBe('linux64');
    expect(image.notes.join()).toMatch(/lz4 is missing \(apt-get install lz4\)/);
    const memory = arrayMemory(64 * MIB);
    const { regs, sregs } = await image.load({ memory, cpus: 1, fresh: true });
    expect(regs.rip).toBe(BigInt(KERNEL_BASE + 0x200));
    expect(sregs).toMatchObject({
      efer: 0x500n,
      cr4: 0x20n,
      cs: { selector: 0x10, l: 1, db: 0 },
      data: { selector: 0x18 },
    });
    const params = bytesAt(memory, Number(regs.rsi), 4096);
    expect(params.toString('latin1', 0x202, 0x206)).toBe('HdrS');
    expect(textAt(memory, params.readUInt32LE(0x228))).toBe('console=ttyS0');
    expect(bytesAt(memory, Number(params.readBigUInt64LE(0x70)), 8).toString('latin1')).toBe('RSD PTR ');
    expect(params.readUInt8(0x1e8)).toBe(memoryMap(memory).length);
    expect(params.readBigUInt64LE(0x2d0)).toBe(0n);
    // Identity map: entry 1 GiB + 2 MiB of the page directories.
    const pml4 = Number(sregs.cr3);
    const pdpt = Number(bytesAt(memory, pml4, 8).readBigUInt64LE(0) & ~0xfffn);
    const pd = Number(bytesAt(memory, pdpt + 8, 8).readBigUInt64LE(0) & ~0xfffn);
    expect(bytesAt(memory, pd + 8, 8).readBigUInt64LE(0)).toBe(0x4020_0083n);
  });
});

test('a 64-bit vmlinux without a PVH note starts by the 64-bit protocol at its ELF entry', async () => {
  const image = await boot(put('vmlinux', vmlinux({ pvh: false })));
  expect(image.kind).toBe('linux64');
  const { regs } = await image.load({ memory: arrayMemory(32 * MIB), cpus: 1, fresh: true });
  expect(regs.rip).toBe(BigInt(KERNEL_BASE));
});

test('multiboot-1: EAX the magic, EBX memory sizes, command line, module and map', async () => {
  const image = await boot(buildFlatGuest('hello'), put('module', Buffer.from('A=1\n')), 'code=3');
  expect(image.kind).toBe('multiboot');
  const memory = arrayMemory(16 * MIB);
  const { regs, sregs } = await image.load({ memory, cpus: 1, fresh: true });
  expect(regs.rax).toBe(0x2badb002n);
  expect(sregs).toMatchObject({ cr0: 0x11n, cs: { db: 1, l: 0 } });
  const info = bytesAt(memory, Number(regs.rbx), 72);
  expect(info.readUInt32LE(0) & 0x4d).toBe(0x4d);
  expect([info.readUInt32LE(4), info.readUInt32LE(8)]).toEqual([640, 15 * 1024]);
  expect(textAt(memory, info.readUInt32LE(16))).toMatch(/hello-\S+ code=3$/);
  const module = bytesAt(memory, info.readUInt32LE(24), 8);
  const [start, end] = [module.readUInt32LE(0), module.readUInt32LE(4)];
  expect(bytesAt(memory, start, end - start).toString()).toBe('A=1\n');
});

describe('memory map', () => {
  test.each([32 * MIB, LOW_RAM_END, 8 * 2 ** 30])(
    '%i bytes: all RAM but the legacy hole, in order, ECAM reserved',
    (size) => {
      const map = memoryMap(arrayMemory(size));
      const ram = map.filter((e) => e.type === E820_RAM).reduce((sum, e) => sum + e.length, 0);
      expect(ram).toBe(size - 0x60000);
      for (const [i, e] of map.entries())
        expect(e.start + e.length).toBeLessThanOrEqual(map[i + 1]?.start ?? Number.MAX_SAFE_INTEGER);
      expect(map).toContainEqual({ start: ECAM.base, length: ECAM.size, type: E820_RESERVED });
      if (size > LOW_RAM_END)
        expect(map).toContainEqual({ start: HIGH_RAM_BASE, length: size - LOW_RAM_END, type: E820_RAM });
    },
  );
});

describe('refused with exit code 2, one line and a remedy', () => {
  const refusal = async (kernel: string, initrd: string | null = null, memory = 32 * MIB): Promise<string> => {
    try {
      await (await boot(kernel, initrd)).load({ memory: arrayMemory(memory), cpus: 1, fresh: true });
    } catch (error) {
      if (!(error instanceof VmmError)) throw error;
      expect(error.exitCode).toBe(2);
      expect(error.message).not.toContain('\n');
      return error.message;
    }
    throw new Error('it was not refused');
  };
  const good = (): string => put('vmlinux', vmlinux({ pvh: true }));

  test('kernel: missing, a directory, empty, text, cut short', async () => {
    expect(await refusal(join(dir, 'none'))).toMatch(/none: there is no such file; check --kernel/);
    expect(await refusal(dir)).toMatch(/not a regular file/);
    expect(await refusal(put('empty', Buffer.alloc(0)))).toMatch(/neither a bzImage nor an ELF file/);
    expect(await refusal(put('text', Buffer.from('hello '.repeat(1000))))).toMatch(/neither a bzImage nor an ELF file/);
    expect(await refusal(put('cut', vmlinux({ pvh: true }).subarray(0, 20_000)))).toMatch(/cut short/);
    expect(await refusal(put('cutz', bzImage(vmlinux({ pvh: true }), 'gzip').subarray(0, 4000)))).toMatch(/cut short/);
  });

  test('kernel: an ELF program of this host, an ELF for another machine', async () => {
    const arm = vmlinux({ pvh: true });
    arm.writeUInt16LE(183, 18);
    expect(await refusal(put('arm', arm))).toMatch(/not for x86/);
    const odd = vmlinux({ pvh: true });
    odd.writeUInt16LE(999, 56);
    expect(await refusal(put('odd', odd))).toMatch(/without program headers/);
  });

  test('kernel or initrd too big for RAM, naming how much would do', async () => {
    expect(await refusal(good(), null, 8 * MIB)).toMatch(/give --memory 17M or more/);
    expect(await refusal(good(), put('initrd', Buffer.alloc(20 * MIB)))).toMatch(
      /initrd .* does not fit .* give --memory \d+M or more/,
    );
  });

  test('initrd: missing, empty', async () => {
    expect(await refusal(good(), join(dir, 'none'))).toMatch(
      /the initrd .*none: there is no such file; check --initrd/,
    );
    expect(await refusal(good(), put('empty', Buffer.alloc(0)))).toMatch(/is empty/);
  });

  test('a command line that Linux would cut', async () => {
    const image = await boot(good(), null, 'x'.repeat(3000));
    await expect(image.load({ memory: arrayMemory(32 * MIB), cpus: 1, fresh: true })).rejects.toThrow(
      /3000 bytes and Linux takes 2047/,
    );
  });

  test('a refused kernel leaves no file open', async () => {
    const before = readdirSync('/proc/self/fd').length;
    for (let i = 0; i < 20; i++) await refusal(put('text', Buffer.from('hello '.repeat(1000))));
    expect(readdirSync('/proc/self/fd').length).toBeLessThanOrEqual(before + 1);
    expect(existsSync(join(dir, 'cache'))).toBe(false);
  });
});
