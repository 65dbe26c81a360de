// Rules about the dirty pfns of a v7 migration region: NONE, ALL and partial answers, and that every page that the device wrote is told.
// Telling more than that is legal, and a note. Sentences are of the patch of July 2019 and its header text.
import { bitsName, PRE_COPY, REG, type RegionBench, RUNNING, STOP_AND_COPY } from './bench-region.ts';
import { bitsOf } from './bench-states.ts';
import { type Rule, Unreachable } from './rule.ts';
import { landed, ramAt, startWrite } from './rules-quiet.ts';

type RegionRule = Rule<RegionBench>;

const PAGE = 4096;
const TARGET = 7 * PAGE;
const NONE = 0n;
const ALL = 2n ** 64n - 1n;
const MOST_ANSWERS = 65_536;

/** What reading copied_pfns gave; an error is the errno's name. */
async function ask(bench: RegionBench, start: bigint, pageSize: bigint, total: bigint): Promise<bigint | string> {
  const { region } = bench;
  const refused =
    (await region.setU64(REG.start_pfn, start)) ??
    (await region.setU64(REG.page_size, pageSize)) ??
    (await region.setU64(REG.total_pfns, total));
  if (refused !== null) return refused;
  const bytes = new Uint8Array(8);
  const error = await region.tryRead(REG.copied_pfns, bytes);
  return error ?? new DataView(bytes.buffer).getBigUint64(0, true);
}

interface Told {
  readonly pages: Set<number>;
  readonly answers: number;
  readonly all: boolean;
}

/** The whole loop of the text over [start, start + total), in pages of `pageSize`; pages by number from `start`. */
async function collect(bench: RegionBench, start: number, total: number, pageSize = PAGE): Promise<Told> {
  const pages = new Set<number>();
  let done = 0;
  let answers = 0;
  for (; done < total; answers++) {
    if (answers === MOST_ANSWERS) throw new Unreachable('the answers about dirty pages never end');
    const copied = await ask(bench, BigInt(start + done), BigInt(pageSize), BigInt(total - done));
    if (typeof copied === 'string')
      throw new Unreachable(`asking for dirty pages of ${pageSize} bytes failed (${copied})`);
    if (copied === NONE) break;
    if (copied === ALL) {
      for (let page = done; page < total; page++) pages.add(page);
      return { pages, answers: answers + 1, all: true };
    }
    if (copied > BigInt(total - done)) throw new Unreachable('copied_pfns is above total_pfns');
    const at = await bench.dataOffset();
    if (at < BigInt(bench.headerBytes)) throw new Unreachable('the dirty bitmap lies among the registers');
    const bytes = await bench.region.read(Number(at), Math.ceil(Number(copied) / 8), 'the dirty bitmap');
    for (const bit of bitsOf(bytes, Number(copied))) pages.add(done + bit);
    done += Number(copied);
  }
  return { pages, answers, all: false };
}

const ramPfn = (bench: RegionBench) => bench.host.place.iova / PAGE;
const ramPages = (bench: RegionBench) => bench.ram.size / PAGE;

/** Pre-copy, with one page written and nothing else to tell. Gives its number from the start of the buffer. */
async function onePageWritten(bench: RegionBench, seed: number): Promise<number> {
  await bench.enter(PRE_COPY);
  await collect(bench, ramPfn(bench), ramPages(bench));
  const length = await startWrite(bench, TARGET, seed);
  if (!(await landed(bench, TARGET, length, seed))) throw new Unreachable('DMA in pre-copy does not land');
  return TARGET / PAGE;
}

const saving: RegionRule = {
  name: 'pfns.saving',
  title: 'dirty pages are told in the saving states, and nowhere else',
  cites: 'Start address pfn to get bitmap of dirty pages from vendor driver duing _SAVING state.',
  needs: [],
  async run({ bench, expect }) {
    for (const bits of [PRE_COPY, STOP_AND_COPY]) {
      await bench.enter(bits);
      const answer = await ask(bench, BigInt(ramPfn(bench)), BigInt(PAGE), BigInt(ramPages(bench)));
      expect(typeof answer !== 'string', `copied_pfns read in ${bitsName(bits)}`, 'an answer', `${answer}`);
    }
    await bench.home();
    const answer = await ask(bench, BigInt(ramPfn(bench)), BigInt(PAGE), 1n);
    const quiet = typeof answer === 'string' || answer === NONE;
    expect(quiet, `copied_pfns read in ${bitsName(RUNNING)}`, 'an error, or NONE', `${answer}`);
  },
};

const total: RegionRule = {
  name: 'pfns.total',
  title: 'copied_pfns is NONE, ALL or at most total_pfns, for any range',
  cites: 'Total pfn count from start_pfn for which dirty bitmap is requested.',
  needs: ['dma'],
  async run({ bench, expect }) {
    const from = ramPfn(bench);
    await bench.enter(PRE_COPY);
    const page = TARGET / PAGE;
    const ranges: readonly (readonly [number, bigint])[] = [
      [from + page, 1n],
      [from + page, 63n],
      [from, 65n],
      [from, BigInt(ramPages(bench))],
      [0, 2n ** 40n],
    ];
    for (const [i, [start, count]] of ranges.entries()) {
      const length = await startWrite(bench, TARGET, 22 + i);
      if (!(await landed(bench, TARGET, length, 22 + i))) throw new Unreachable('DMA in pre-copy does not land');
      const copied = await ask(bench, BigInt(start), BigInt(PAGE), count);
      if (typeof copied === 'string') continue;
      const within = copied === ALL || copied <= count;
      expect(within, `dirty pfns of ${count} pages from ${start}`, `at most ${count}, or ALL`, `${copied}`);
    }
  },
};

const bitmap: RegionRule = {
  name: 'pfns.data-offset',
  title: 'the bitmap of an answer lies in the data section',
  cites: 'read data_offset, where vendor driver has written bitmap.',
  needs: ['dma'],
  async run({ bench, expect }) {
    await onePageWritten(bench, 31);
    const copied = await ask(bench, BigInt(ramPfn(bench)), BigInt(PAGE), BigInt(ramPages(bench)));
    if (typeof copied === 'string') throw new Unreachable(`asking for dirty pages failed (${copied})`);
    if (copied === NONE || copied === ALL) return;
    const at = await bench.dataOffset();
    const end = at + (copied + 7n) / 8n;
    const fits = at >= BigInt(bench.headerBytes) && end <= BigInt(bench.region.size);
    const room = `between ${bench.headerBytes} and ${bench.region.size}`;
    expect(fits, `data_offset after copied_pfns was ${copied}`, room, `${at} to ${end}`);
  },
};

const writes: RegionRule = {
  name: 'pfns.writes',
  title: 'a page that the device wrote is told, at its place in the bitmap',
  cites: 'should copy the bitmap with bits set only for pages to be marked dirty in migration region.',
  needs: ['dma'],
  async run({ bench, expect, note }) {
    const page = await onePageWritten(bench, 41);
    const from = ramPfn(bench);
    const { pages } = await collect(bench, from, ramPages(bench));
    expect(pages.has(page), 'page written by DMA in pre-copy; dirty pfns', `page ${page}`, named(pages));
    if (pages.size > 1) note(`${pages.size} pages are told of one that was written`);
    const again = (await collect(bench, from, ramPages(bench))).pages;
    if (again.size > 0) note(`${again.size} pages are told again, of which none was written again`);
  },
};

const partial: RegionRule = {
  name: 'pfns.partial',
  title: 'answers for a part of the range go on until all of it is told: NONE means none in the rest',
  cites: 'return VFIO_DEVICE_DIRTY_PFNS_NONE if none of the pages are dirty in requested range or rest of the range.',
  needs: ['dma'],
  async run({ bench, expect, note }) {
    const page = await onePageWritten(bench, 51);
    const from = ramPfn(bench);
    // From 0 on, so that the first answers may well be about pages that nobody has.
    const { pages, answers, all } = await collect(bench, 0, from + ramPages(bench));
    expect(
      pages.has(from + page),
      `dirty pfns of ${from + ramPages(bench)} pages from 0`,
      `${from + page}`,
      named(pages),
    );
    if (all) note(`all of the range is told as dirty (${answers} answers)`);
  },
};

const pageSize: RegionRule = {
  name: 'pfns.page-size',
  title: 'pfns are of the page_size that was written, where the driver takes it',
  cites: 'User application should write the page_size of pfn.',
  needs: ['dma'],
  async run({ bench, expect, note }) {
    for (const size of [16 * PAGE, 512 * PAGE]) {
      const page = await onePageWritten(bench, 61);
      const start = Math.floor(bench.host.place.iova / size);
      const count = Math.ceil(bench.ram.size / size);
      const refused = await ask(bench, BigInt(start + count), BigInt(size), 1n);
      if (typeof refused === 'string') {
        note(`page_size ${size} is refused (${refused})`);
        continue;
      }
      const wanted = Math.floor((bench.host.place.iova + page * PAGE) / size) - start;
      const { pages } = await collect(bench, start, count, size);
      expect(pages.has(wanted), `page written by DMA; dirty pfns of ${size} bytes`, `page ${wanted}`, named(pages));
    }
  },
};

const last: RegionRule = {
  name: 'pfns.last-write',
  title: 'what was written before the device stopped is told in stop-and-copy',
  cites: 'provides the bitmap of pages which are dirtied by vendor driver through migration region',
  needs: ['dma'],
  async run({ bench, expect }) {
    const page = await onePageWritten(bench, 71);
    const from = ramPfn(bench);
    await collect(bench, from, ramPages(bench));
    const length = await startWrite(bench, TARGET, 72);
    await bench.go(STOP_AND_COPY);
    const written = ramAt(bench, TARGET, length).some((byte) => byte !== 0);
    if (!written) {
      // It waits for the device to run: then the one before it has to do.
      await bench.home();
      await onePageWritten(bench, 73);
      await bench.go(STOP_AND_COPY);
    }
    const { pages } = await collect(bench, from, ramPages(bench));
    expect(pages.has(page), 'page written by DMA, stop-and-copy; dirty pfns', `page ${page}`, named(pages));
  },
};

function named(pages: ReadonlySet<number>): string {
  if (pages.size === 0) return 'none';
  const few = [...pages].slice(0, 4).join(', ');
  return pages.size > 4 ? `${few} and ${pages.size - 4} more` : few;
}

export const pfnRules: readonly RegionRule[] = [saving, total, bitmap, writes, partial, pageSize, last];
