// The merge of three dirty bitmaps of 32 MiB (1 TiB of guest RAM each) against memcpy of one, in GB/s of bytes read and written, taking
// turns, medians of 21. main-job.md, "Bench definitions".
import { kvmNode } from '../native/addon.ts';
import { line, median } from './line.ts';

const BYTES = 32 * 2 ** 20;
const TURNS = 21;

const addon = kvmNode();
const bitmaps = [0, 1, 2].map(() => addon.createBitmap(BYTES * 8));
const [into, second, third] = bitmaps as [(typeof bitmaps)[0], (typeof bitmaps)[0], (typeof bitmaps)[0]];
bitmaps.forEach((bitmap, n) => {
  bitmap.fill();
  bitmap.clear(n * 4096, 4096 * 7);
});

function gigabytesPerSecond(bytes: number, work: () => void): number {
  const start = process.hrtime.bigint();
  work();
  return bytes / Number(process.hrtime.bigint() - start);
}

const merges: number[] = [];
const copies: number[] = [];
for (let turn = 0; turn < TURNS; turn++) {
  // Each or() reads two and writes one.
  merges.push(
    gigabytesPerSecond(BYTES * 6, () => {
      into.or(second);
      into.or(third);
    }),
  );
  copies.push(gigabytesPerSecond(BYTES * 2, () => into.copyFrom(second)));
}
line({
  bench: 'bitmap',
  case: 'merge-3x32MiB',
  ours: median(merges),
  peer: 'memcpy',
  theirs: median(copies),
  unit: 'GB/s',
  better: 'higher',
  target: 0.8,
});
for (const bitmap of bitmaps) bitmap.close();
