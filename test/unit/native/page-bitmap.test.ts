// The page bitmap against an oracle in plain JS: a Set of page numbers.
import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { kvmNode, type PageBitmap } from '../../../native/addon.ts';
import { SysError } from '../../../native/errno.ts';
import { ArrayBitmap } from '../../fakes/memory-channel.ts';

const kvm = kvmNode();

function pagesOf(bitmap: PageBitmap): number[] {
  const pages: number[] = [];
  const runs = bitmap.runs(0, 1e6);
  for (let i = 0; i < runs.length; i += 2) for (let n = 0; n < runs[i + 1]!; n++) pages.push(runs[i]! + n);
  return pages;
}
const sorted = (set: Set<number>) => [...set].sort((a, b) => a - b);

/** A small generator with a fixed seed, so that a failure comes again. */
function random(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

describe('PageBitmap', () => {
  it('agrees with a Set over random set, clear, test, or, count and runs', () => {
    const next = random(7);
    for (const pages of [1, 63, 64, 65, 200, 1000]) {
      const [bitmap, other] = [kvm.createBitmap(pages), kvm.createBitmap(pages)];
      const [oracle, otherOracle] = [new Set<number>(), new Set<number>()];
      for (let step = 0; step < 60; step++) {
        const first = next(pages);
        const length = next(pages - first + 1);
        const [into, set] = next(3) === 0 ? [other, otherOracle] : [bitmap, oracle];
        const adds = next(2) === 0;
        if (adds) into.set(first, length);
        else into.clear(first, length);
        for (let page = first; page < first + length; page++) adds ? set.add(page) : set.delete(page);
        expect(bitmap.test(first)).toBe(oracle.has(first));
      }
      expect(pagesOf(bitmap)).toEqual(sorted(oracle));
      bitmap.or(other);
      for (const page of otherOracle) oracle.add(page);
      expect(pagesOf(bitmap)).toEqual(sorted(oracle));
      expect(bitmap.count).toBe(oracle.size);
      other.copyFrom(bitmap);
      expect(pagesOf(other)).toEqual(sorted(oracle));
      bitmap.fill();
      expect(bitmap.count).toBe(pages);
      bitmap.zero();
      expect(bitmap.count).toBe(0);
      bitmap.close();
      other.close();
    }
  });

  it('orBytes sets every page that a reported granule touches, for any granule and start', () => {
    const next = random(11);
    const pages = 4096;
    for (let round = 0; round < 60; round++) {
      const granule = 512 * 2 ** next(9);
      const start = (next(64) * granule) % (pages * 4096 - 64 * granule);
      const bits = Uint8Array.from({ length: 8 }, () => next(256));
      const bitmap = kvm.createBitmap(pages);
      const oracle = new Set<number>();
      bitmap.set(3, 2);
      oracle.add(3).add(4);
      bitmap.orBytes(start, bits, granule);
      for (let bit = 0; bit < 64; bit++) {
        if (((bits[bit >> 3]! >> (bit & 7)) & 1) === 0) continue;
        const at = start + bit * granule;
        for (let page = Math.floor(at / 4096); page * 4096 < at + granule; page++) oracle.add(page);
      }
      expect(pagesOf(bitmap)).toEqual(sorted(oracle));
      bitmap.close();
    }
  });

  it('orBytes takes the padding of a report, clips a granule that begins inside, refuses one that begins beyond', () => {
    const bitmap = kvm.createBitmap(10);
    bitmap.orBytes(0, Uint8Array.of(1, 2, 0, 0, 0, 0, 0, 0), 4096);
    expect(pagesOf(bitmap)).toEqual([0, 9]);
    bitmap.zero();
    bitmap.orBytes(0, Uint8Array.of(2), 8 * 4096);
    expect(pagesOf(bitmap)).toEqual([8, 9]);
    expect(() => bitmap.orBytes(0, Uint8Array.of(0, 4), 4096)).toThrow(RangeError);
    expect(() => bitmap.orBytes(0, Uint8Array.of(1), 256)).toThrow(RangeError);
    expect(() => bitmap.orBytes(0, Uint8Array.of(1), 5000)).toThrow(RangeError);
    bitmap.close();
  });

  it('limits runs and goes on from a page', () => {
    const bitmap = kvm.createBitmap(1000);
    for (const page of [1, 2, 64, 128, 999]) bitmap.set(page, 1);
    expect([...bitmap.runs(0, 2)]).toEqual([1, 2, 64, 1]);
    expect([...bitmap.runs(65, 9)]).toEqual([128, 1, 999, 1]);
    expect([...bitmap.runs(1000, 9)]).toEqual([]);
    bitmap.close();
  });

  it('refuses other sizes, pages outside, foreign objects and a closed bitmap', () => {
    const bitmap = kvm.createBitmap(10);
    const longer = kvm.createBitmap(11);
    expect(() => bitmap.or(longer)).toThrow(RangeError);
    expect(() => bitmap.set(9, 2)).toThrow(RangeError);
    expect(() => bitmap.test(10)).toThrow(RangeError);
    expect(() => kvm.createBitmap(0)).toThrow(RangeError);
    expect(() => bitmap.or({} as PageBitmap)).toThrow(TypeError);
    const ram = kvm.createRam(4096, { hugePages: false, populate: false });
    expect(() => bitmap.or(ram as unknown as PageBitmap)).toThrow(TypeError);
    ram.close();
    longer.close();
    bitmap.close();
    expect(() => bitmap.count).toThrow('closed');
    expect(() => bitmap.or(longer)).toThrow('closed');
  });
});

describe('orFrom', () => {
  const dir = mkdtempSync(join(tmpdir(), 'ferry-bitmap-'));
  afterAll(() => rmSync(dir, { recursive: true }));
  /** A file that stands for the region: `bits` behind `offset` other bytes. */
  function region(bits: Uint8Array, offset = 0): number {
    const path = join(dir, 'region');
    writeFileSync(path, Buffer.concat([Buffer.alloc(offset, 0xff), bits]));
    return openSync(path, 'r');
  }

  it('agrees with an oracle for any granule, start and number of bits; what is outside and the padding are ignored', async () => {
    const next = random(17);
    for (let round = 0; round < 120; round++) {
      const pages = 1 + next(3000);
      const granule = 512 * 2 ** next(9);
      const start = next(4) === 0 ? next(pages) * 64 * 4096 : next(64) * granule;
      const bits = 1 + next(1500);
      const offset = next(100);
      const bytes = Uint8Array.from({ length: Math.ceil(bits / 8) }, () => (next(3) === 0 ? 0xff : next(256)));
      const fd = region(bytes, offset);
      const [bitmap, fake] = [kvm.createBitmap(pages), new ArrayBitmap(pages)];
      const oracle = new Set<number>([pages - 1]);
      bitmap.set(pages - 1, 1);
      fake.set(pages - 1, 1);
      for (let bit = 0; bit < bits; bit++) {
        if (((bytes[bit >> 3]! >> (bit & 7)) & 1) === 0) continue;
        const at = start + bit * granule;
        for (let page = Math.floor(at / 4096); page * 4096 < at + granule; page++) if (page < pages) oracle.add(page);
      }
      await bitmap.orFrom({ fd, offset, bits }, start, granule);
      await fake.orFrom({ fd, offset, bits }, start, granule);
      expect(pagesOf(bitmap)).toEqual(sorted(oracle));
      expect(fake.bits.flatMap((set, page) => (set ? [page] : []))).toEqual(sorted(oracle));
      closeSync(fd);
      bitmap.close();
    }
  });

  it('takes reports of no bit, of one, and of more than a MiB of them', async () => {
    const pages = 9 * 2 ** 20;
    const bitmap = kvm.createBitmap(pages);
    const bits = new Uint8Array(pages / 8);
    for (const page of [0, 8 * 2 ** 20 - 1, 8 * 2 ** 20, pages - 1]) bits[page >> 3]! |= 1 << (page & 7);
    const fd = region(bits);
    await bitmap.orFrom({ fd, offset: 0, bits: 0 }, 0, 4096);
    expect(bitmap.count).toBe(0);
    await bitmap.orFrom({ fd, offset: 0, bits: 1 }, 4096, 4096);
    expect(pagesOf(bitmap)).toEqual([1]);
    await bitmap.orFrom({ fd, offset: 0, bits: pages }, 0, 4096);
    expect(pagesOf(bitmap)).toEqual([0, 1, 8 * 2 ** 20 - 1, 8 * 2 ** 20, pages - 1]);
    closeSync(fd);
    bitmap.close();
  });

  it('ignores the padding of a report of whole words and a few bits more, of pages', async () => {
    const bitmap = kvm.createBitmap(300);
    const fd = region(new Uint8Array(16).fill(0xff));
    for (const bits of [1, 7, 8, 13, 63, 64, 65, 127]) {
      bitmap.zero();
      await bitmap.orFrom({ fd, offset: 0, bits }, 64 * 4096, 4096);
      expect([...bitmap.runs(0, 9)]).toEqual([64, bits]);
    }
    closeSync(fd);
    bitmap.close();
  });

  it('ignores a report that begins beyond the bitmap, however far', async () => {
    const bitmap = kvm.createBitmap(100);
    const fd = region(new Uint8Array(8).fill(0xff));
    for (const start of [100 * 4096, 2 ** 50, Number.MAX_SAFE_INTEGER])
      await bitmap.orFrom({ fd, offset: 0, bits: 64 }, start, 2 ** 40);
    expect(() => bitmap.orBytes(Number.MAX_SAFE_INTEGER, Uint8Array.of(1), 2 ** 40)).toThrow(RangeError);
    expect(bitmap.count).toBe(0);
    await bitmap.orFrom({ fd, offset: 0, bits: 64 }, 99 * 4096, 2 ** 40);
    expect(pagesOf(bitmap)).toEqual([99]);
    closeSync(fd);
    bitmap.close();
  });

  it('a short read is EIO, a refused one its errno, and nothing of either is in the bitmap', async () => {
    const bitmap = kvm.createBitmap(100);
    const fd = region(new Uint8Array(8).fill(0xff));
    const event = kvm.eventFd();
    const attempt = (source: { fd: number; offset: number; bits: number }) =>
      bitmap.orFrom(source, 0, 4096).catch((error: unknown) => error);
    for (const [source, errno] of [
      [{ fd, offset: 0, bits: 65 }, 'EIO'],
      [{ fd, offset: 7, bits: 9 }, 'EIO'],
      [{ fd, offset: 2 ** 52, bits: 1 }, 'EIO'],
      [{ fd: event, offset: 0, bits: 1 }, 'ESPIPE'],
      [{ fd: 99999, offset: 0, bits: 1 }, 'EBADF'],
    ] as const) {
      const error = await attempt(source);
      expect(error).toBeInstanceOf(SysError);
      expect(String(error)).toContain(`pread(dirty bits): ${errno}`);
    }
    expect(bitmap.count).toBe(0);
    closeSync(fd);
    kvm.closeFd(event);
    bitmap.close();
  });

  it('holds bitmap and fd while it is under way', async () => {
    for (let round = 0; round < 20; round++) {
      const bitmap = kvm.createBitmap(2 ** 20);
      const fd = region(new Uint8Array(2 ** 17).fill(0xff));
      const pending = bitmap.orFrom({ fd, offset: 0, bits: 2 ** 20 }, 0, 4096);
      closeSync(fd);
      bitmap.close();
      expect(await pending).toBeUndefined();
      expect(() => bitmap.count).toThrow('closed');
    }
  });

  it('refuses arguments of other types and sizes, a closed bitmap, and a getter that throws', () => {
    const bitmap = kvm.createBitmap(100);
    const source = { fd: bitmap as unknown as number, offset: 0, bits: 1 };
    const attempt = (...args: unknown[]) => (bitmap.orFrom as (...args: unknown[]) => unknown).call(bitmap, ...args);
    for (const wrong of [null, undefined, 'x', {}, [], new Uint8Array(8), source]) {
      expect(() => attempt(wrong, 0, 4096)).toThrow(TypeError);
    }
    const good = { fd: 0, offset: 0, bits: 1 };
    expect(() => attempt({ ...good, offset: '0' }, 0, 4096)).toThrow(TypeError);
    expect(() => attempt({ ...good, bits: null }, 0, 4096)).toThrow(TypeError);
    expect(() => attempt(good, '0', 4096)).toThrow(TypeError);
    expect(() => attempt(good, 0)).toThrow(TypeError);
    for (const wrong of [-1, 0.5, 2 ** 53]) {
      expect(() => attempt({ ...good, fd: wrong }, 0, 4096)).toThrow(RangeError);
      expect(() => attempt({ ...good, offset: wrong }, 0, 4096)).toThrow(RangeError);
      expect(() => attempt({ ...good, bits: wrong }, 0, 4096)).toThrow(RangeError);
      expect(() => attempt(good, wrong, 4096)).toThrow(RangeError);
    }
    expect(() => attempt({ ...good, offset: 2n ** 63n - 1n }, 0, 4096)).toThrow(RangeError);
    expect(() => attempt({ ...good, bits: 2 ** 33 + 1 }, 0, 4096)).toThrow(RangeError);
    for (const granule of [0, 256, 5000, 2 ** 41]) expect(() => attempt(good, 0, granule)).toThrow(RangeError);
    const thrower = {
      ...good,
      get bits(): number {
        throw new Error('mine');
      },
    };
    expect(() => attempt(thrower, 0, 4096)).toThrow('mine');
    bitmap.close();
    expect(() => attempt(good, 0, 4096)).toThrow('closed');
  });
});
