// Rules of KVM's dirty ring (KVM api.rst, 8.29) as seen from the reader: entries are taken in order, once, and given back; what is not guest RAM
// is ignored; entries that KVM has gone past are noticed. The ring is a file here, filled by hand.
import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { type HostMapping, kvmNode } from '../../../native/addon.ts';

const dir = mkdtempSync(join(tmpdir(), 'ferry-ring-'));
afterAll(() => rmSync(dir, { recursive: true, force: true }));

const DIRTY = 1;
const RESET = 2;
/** Slot 0 holds pages 0-99, slot 1 pages 100-119. */
const BANKS = Float64Array.of(0, 0, 100, 1, 100, 20);
const addon = kvmNode();

/** Entries as [flags, slot, offset]; the rest is empty. */
function ring(entries: readonly (readonly [number, number, number])[], count = 256) {
  const path = join(dir, `ring-${Math.random()}`);
  const bytes = Buffer.alloc(count * 16);
  entries.forEach(([flags, slot, offset], i) => {
    bytes.writeUInt32LE(flags, i * 16);
    bytes.writeUInt32LE(slot, i * 16 + 4);
    bytes.writeBigUInt64LE(BigInt(offset), i * 16 + 8);
  });
  writeFileSync(path, bytes);
  const fd = openSync(path, 'r+');
  const mapping = addon.mapFd(fd, 0, bytes.length, true);
  closeSync(fd);
  const flags = new Uint32Array(mapping.view);
  return {
    mapping,
    flagOf: (entry: number) => flags[entry * 4],
    set: (entry: number, to: number) => (flags[entry * 4] = to),
  };
}

function take(mapping: HostMapping, next: number) {
  const bitmap = addon.createBitmap(120);
  const count = addon.harvestDirtyRing(mapping, next, bitmap, BANKS);
  return { count, runs: [...bitmap.runs(0, 10)] };
}

describe('a dirty ring', () => {
  it('is taken in order up to the first entry that is not dirty, and its entries are given back', () => {
    const { mapping, flagOf } = ring([
      [DIRTY, 0, 5],
      [DIRTY, 1, 3],
      [0, 0, 9],
      [DIRTY, 0, 7],
    ]);
    expect(take(mapping, 0)).toEqual({ count: 2, runs: [5, 1, 103, 1] });
    expect([flagOf(0), flagOf(1), flagOf(2), flagOf(3)]).toEqual([RESET, RESET, 0, DIRTY]);
    expect(take(mapping, 0).count).toBe(0);
  });

  it('goes round, and no further than once', () => {
    const all = Array.from({ length: 256 }, (_, i) => [DIRTY, 0, i % 100] as const);
    const { mapping } = ring(all);
    expect(take(mapping, 250)).toEqual({ count: 256, runs: [0, 100] });
  });

  it('ignores other slots, other address spaces and pages outside, but takes their entries', () => {
    const { mapping } = ring([
      [DIRTY, 2, 1],
      [DIRTY, 0x10000, 1],
      [DIRTY, 1, 20],
      [DIRTY, 0, 2 ** 40],
      [DIRTY, 1, 19],
    ]);
    expect(take(mapping, 0)).toEqual({ count: 5, runs: [119, 1] });
  });

  it('that was overrun is noticed: the gap is given back and skipped', () => {
    const { mapping, flagOf } = ring([
      [RESET, 0, 1],
      [0, 0, 2],
      [0, 0, 3],
      [DIRTY, 0, 4],
      [DIRTY, 0, 5],
    ]);
    expect(take(mapping, 1).count).toBe(0);
    expect(addon.rejoinDirtyRing(mapping, 1)).toBe(2);
    expect([flagOf(1), flagOf(2), flagOf(3)]).toEqual([RESET, RESET, DIRTY]);
    expect(take(mapping, 3)).toEqual({ count: 2, runs: [4, 2] });
  });

  it('is in step when it is empty, and when its next entry is dirty', () => {
    const { mapping, set } = ring([]);
    expect(addon.rejoinDirtyRing(mapping, 9)).toBe(0);
    set(9, DIRTY);
    expect(addon.rejoinDirtyRing(mapping, 9)).toBe(0);
  });

  it('is checked at the door', () => {
    const { mapping } = ring([], 256);
    const odd = ring([], 3 * 256).mapping;
    const bitmap = addon.createBitmap(120);
    expect(() => addon.harvestDirtyRing({} as HostMapping, 0, bitmap, BANKS)).toThrow(TypeError);
    expect(() => addon.harvestDirtyRing(odd, 0, bitmap, BANKS)).toThrow('a power of two of entries');
    expect(() => addon.harvestDirtyRing(mapping, -1, bitmap, BANKS)).toThrow(/next/);
    expect(() => addon.harvestDirtyRing(mapping, 0, {} as never, BANKS)).toThrow(TypeError);
    expect(() => addon.harvestDirtyRing(mapping, 0, bitmap, Float64Array.of(0, 0))).toThrow('triples');
    expect(() => addon.harvestDirtyRing(mapping, 0, bitmap, Float64Array.of(0, Number.NaN, 1))).toThrow('out of range');
    expect(() => addon.harvestDirtyRing(mapping, 0, bitmap, [0, 0, 1] as never)).toThrow('Float64Array');
    expect(() => addon.rejoinDirtyRing(odd, 0)).toThrow('a power of two of entries');
  });
});
