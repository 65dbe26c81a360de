// The page bitmap against an oracle in plain JS: a Set of page numbers.
import { describe, expect, it } from 'vitest';
import { kvmNode, type PageBitmap } from '../../../native/addon.ts';

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
