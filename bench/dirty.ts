// npm run bench -- dirty: what a round's merge costs: the bits of 1, 3 and 8 trackers are moved into one bitmap and counted, for guests of 1 GiB
// to 1 TiB, with logs that are sparse (a page in 4096), dense (a page in 2) and full. Against memcpy of as many bitmaps, taking turns, medians;
// milliseconds per TiB of guest RAM and tracker. The trackers' own answers are made beforehand: what a driver takes is its own.
import { kvmNode, type PageBitmap } from '../native/addon.ts';
import { line, median } from './line.ts';

const GIB = 2 ** 30;
const PAGE = 4096;
/** "Within 1.5x of memcpy of the bitmaps." */
const TARGET = 1.5;
const addon = kvmNode();

interface Case {
  readonly gib: number;
  readonly trackers: number;
  readonly fill: 'sparse' | 'dense' | 'full';
}

const EVERY = { sparse: 4096, dense: 2, full: 1 } as const;

/** One page in `every`. */
function pattern(pages: number, every: number): PageBitmap {
  const bitmap = addon.createBitmap(pages);
  if (every === 1) bitmap.fill();
  else {
    // orBytes is the quick way to a pattern: a MiB of bits at a time.
    const bits = new Uint8Array(Math.min(2 ** 20, pages / 8));
    for (let bit = 0; bit < bits.length * 8; bit += every) bits[bit >> 3]! |= 1 << (bit & 7);
    for (let at = 0; at < pages; at += bits.length * 8) bitmap.orBytes(at * PAGE, bits, PAGE);
  }
  return bitmap;
}

function measure({ gib, trackers, fill }: Case): void {
  const pages = (gib * GIB) / PAGE;
  const model = pattern(pages, EVERY[fill]);
  const logs = Array.from({ length: trackers }, () => addon.createBitmap(pages));
  const into = addon.createBitmap(pages);
  const turns = gib >= 256 ? 9 : 25;
  // Small bitmaps: several rounds a turn, each with fresh logs outside of the clock.
  const [ours, theirs]: [number[], number[]] = [[], []];
  const perTib = (ms: number) => (ms * 1024) / gib / trackers;
  for (let turn = 0; turn < turns; turn++) {
    for (const log of logs) log.copyFrom(model);
    into.zero();
    let began = performance.now();
    for (const log of logs) into.take(log);
    ours.push(perTib(performance.now() - began));
    for (const log of logs) log.copyFrom(model);
    began = performance.now();
    for (const log of logs) into.copyFrom(log);
    theirs.push(perTib(performance.now() - began));
  }
  line({
    bench: 'dirty',
    case: `${gib}GiB-${trackers}-${fill}`,
    ours: median(ours),
    peer: 'memcpy',
    theirs: median(theirs),
    unit: 'ms/TiB',
    better: 'lower',
    target: TARGET,
  });
  for (const bitmap of [model, into, ...logs]) bitmap.close();
}

for (const gib of [1, 64, 1024]) {
  for (const trackers of [1, 3, 8])
    for (const fill of ['sparse', 'dense', 'full'] as const) measure({ gib, trackers, fill });
}
