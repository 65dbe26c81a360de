// Rules about the device's own log of its DMA writes: the calls, and with an exerciser that what was written is reported.
// linux/vfio.h, VFIO_DEVICE_FEATURE_DMA_LOGGING_START, _STOP, _REPORT
import type { Bench } from './bench.ts';
import { type IovaRange, mustReport, mustStart, reportLog, startLog, stopLog } from './dma-log.ts';
import { PRE_COPY, RUNNING, STOP, STOP_COPY, stateName } from './oracle.ts';
import { type Rule, type Trial, Unreachable } from './rule.ts';
import { dmaOf, landed, ramAt, startWrite } from './rules-quiet.ts';

const PAGE = 4096;
const LOGGED = 'Each DMA that the device initiates inside the range will be logged by the device for later retrieval';

/** All of the buffer but the exerciser's part. */
function whole(bench: Bench): IovaRange {
  return { iova: bench.host.place.iova, length: bench.ram.size - 2 ** 20 };
}

const start: Rule = {
  name: 'log.start',
  title: 'START takes any hint, answers with a power of two, and works again after STOP',
  cites: 'On output the device will return the page size it selected',
  needs: ['dma-log'],
  async run({ bench, expect }) {
    // VFIO's core wants the ranges aligned to the hint.
    for (const hint of [4096, 65536, 2 ** 20]) {
      const { error, pageSize } = await startLog(bench, [whole(bench)], hint);
      const right = error === null && pageSize > 0n && (pageSize & (pageSize - 1n)) === 0n;
      expect(right, `START with the hint ${hint}`, 'a power of two', error ?? `page size ${pageSize}`);
      const stopped = await stopLog(bench);
      expect(error !== null || stopped === null, 'STOP after START', 'success', `${stopped}`);
    }
  },
};

const twice: Rule = {
  name: 'log.twice',
  title: 'a second START is refused, and the first goes on',
  cites: 'Another start is not allowed in the meantime',
  needs: ['dma-log'],
  async run({ bench, expect }) {
    await mustStart(bench, whole(bench));
    const { error } = await startLog(bench, [whole(bench)], PAGE);
    expect(error !== null, 'START while logging', 'an error', 'success');
    await stopLog(bench);
  },
};

const without: Rule = {
  name: 'log.off',
  title: 'REPORT without START, or after STOP, is refused',
  cites: 'If DMA logging is not enabled, an error will be returned',
  needs: ['dma-log'],
  async run({ bench, expect }) {
    const before = await reportLog(bench, whole(bench), PAGE);
    expect(before.error !== null, 'REPORT without START', 'an error', 'success');
    await mustStart(bench, whole(bench));
    mustReport(await reportLog(bench, whole(bench), PAGE));
    await stopLog(bench);
    const after = await reportLog(bench, whole(bench), PAGE);
    expect(after.error !== null, 'REPORT after STOP', 'an error', 'success');
  },
};

const ranges: Rule = {
  name: 'log.ranges',
  title: 'a kernel page full of ranges is taken',
  cites: 'guarantees to support by minimum num_ranges that fit into a single kernel page',
  needs: ['dma-log'],
  async run({ bench, expect }) {
    const { iova } = whole(bench);
    const list = Array.from({ length: PAGE / 16 }, (_, i) => ({ iova: iova + 2 * i * PAGE, length: PAGE }));
    const { error } = await startLog(bench, list, PAGE);
    expect(error === null, `START with ${list.length} ranges`, 'success', `${error}`);
    await stopLog(bench);
  },
};

const states: Rule = {
  name: 'log.states',
  title: 'START, REPORT and STOP work in every state and leave it',
  cites: 'this API is not connected to VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE',
  needs: ['dma-log'],
  async run({ bench, expect }) {
    await mustStart(bench, whole(bench));
    mustReport(await reportLog(bench, whole(bench), PAGE));
    await stopLog(bench);
    for (const state of bench.states) {
      await bench.enter(state);
      const { error } = await startLog(bench, [whole(bench)], PAGE);
      const report = error === null ? (await reportLog(bench, whole(bench), PAGE)).error : null;
      const stopped = error === null ? await stopLog(bench) : null;
      const seen = error ?? report ?? stopped ?? stateName(bench.get());
      expect(seen === stateName(state), `START, REPORT, STOP in ${stateName(state)}`, 'success', seen);
    }
  },
};

const ors: Rule = {
  name: 'log.ors',
  title: 'REPORT sets bits and clears none',
  cites: 'only set bits in the bitmap and never clear or perform any initialization of the user provided bitmap',
  needs: ['dma-log'],
  async run({ bench, expect }) {
    await mustStart(bench, whole(bench));
    const report = mustReport(await reportLog(bench, whole(bench), PAGE, 0x55));
    const kept = report.bits.every((byte) => (byte & 0x55) === 0x55);
    expect(kept, 'REPORT into a bitmap of 0x55', 'those bits still set', 'bits cleared');
    await stopLog(bench);
  },
};

/** Writes the pages in turn, by DMA, and waits for each. */
async function writePages(bench: Bench, pages: readonly number[]): Promise<void> {
  for (const page of pages) {
    const length = await startWrite(bench, page * PAGE, page);
    if (!(await landed(bench, page * PAGE, length, page))) throw new Unreachable('DMA in RUNNING does not land');
  }
}

/** The union of reports until the bits are there, or for as long as a page may come later: its bytes are in RAM before the log has it. */
async function reported(bench: Bench, range: IovaRange, wanted: readonly number[], size = PAGE): Promise<number[]> {
  const seen = new Set<number>();
  const until = performance.now() + bench.host.settleMs;
  for (;;) {
    for (const page of mustReport(await reportLog(bench, range, size)).pages) seen.add(page);
    if (wanted.every((page) => seen.has(page)) || performance.now() > until) return [...seen].sort((a, b) => a - b);
    await bench.port.sleep(5);
  }
}

const accurate: Rule = {
  name: 'log.writes',
  title: 'every page that was written is reported, at its place; others are not, if the log is precise',
  cites: LOGGED,
  needs: ['dma-log', 'dma'],
  async run({ bench, expect, note }) {
    await mustStart(bench, whole(bench));
    mustReport(await reportLog(bench, whole(bench), PAGE));
    const written = [3, 64, 70, 200];
    await writePages(bench, written);
    const pages = await reported(bench, whole(bench), written);
    const missing = written.filter((page) => !pages.includes(page));
    expect(missing.length === 0, `pages ${written} written by DMA, REPORT`, 'all of them', `without ${missing}`);
    const extra = pages.length - (written.length - missing.length);
    if (extra > 0) note(`REPORT has ${extra} pages more than the ${written.length} that were written`);
    const again = mustReport(await reportLog(bench, whole(bench), PAGE)).pages.filter((page) => written.includes(page));
    if (again.length > 0) note(`a second REPORT has ${again.length} of them again: the log is coarse, or not cleared`);
    await stopLog(bench);
  },
};

const coarse: Rule = {
  name: 'log.page-size',
  title: 'REPORT with a larger page size has the pages that were written',
  cites: 'The input page_size can be any power of two value',
  needs: ['dma-log', 'dma'],
  async run({ bench, expect }) {
    await mustStart(bench, whole(bench));
    mustReport(await reportLog(bench, whole(bench), PAGE));
    for (const [page, size] of [
      [37, 65536],
      [9, 8192],
    ] as const) {
      await writePages(bench, [page]);
      const bit = Math.floor((page * PAGE) / size);
      const bits = await reported(bench, whole(bench), [bit], size);
      expect(bits.includes(bit), `page ${page} written, REPORT by ${size} bytes`, `bit ${bit}`, `bits ${bits}`);
    }
    await stopLog(bench);
  },
};

const noneLost: Rule = {
  name: 'log.race',
  title: 'a write that lands after a report is in the next one, though it had begun before',
  cites: 'During querying the log is cleared for the IOVA range',
  needs: ['dma-log', 'dma'],
  async run({ bench, expect }) {
    await mustStart(bench, whole(bench));
    mustReport(await reportLog(bench, whole(bench), PAGE));
    const report = async () => mustReport(await reportLog(bench, whole(bench), PAGE)).pages;
    for (const page of [10, 11, 12]) {
      const length = await startWrite(bench, page * PAGE, page);
      const wanted = Buffer.from(dmaOf(bench).pattern(page, length));
      // Reports all the while; what counts is one that began after the last byte was not there yet.
      let due = true;
      let there = false;
      for (let waited = 0; !there && waited <= 20 * dmaOf(bench).ms; waited++) {
        due = !(await report()).includes(page) || !ramAt(bench, page * PAGE, length).equals(wanted);
        there = ramAt(bench, page * PAGE, length).equals(wanted);
        await bench.port.sleep(1);
      }
      if (!there) throw new Unreachable('DMA in RUNNING does not land');
      await bench.settle();
      const late = await report();
      const did = `DMA write of page ${page}, REPORT again and again until it had landed, then once more`;
      expect(!due || late.includes(page), did, 'the page in a report after it landed', `pages ${late}`);
    }
    await stopLog(bench);
  },
};

const everyRange: Rule = {
  name: 'log.every-range',
  title: 'writes in each of many ranges are reported',
  cites: LOGGED,
  needs: ['dma-log', 'dma'],
  async run({ bench, expect }) {
    const { iova } = whole(bench);
    const list = [2, 40, 90, 300].map((page) => ({ iova: iova + page * PAGE, length: 2 * PAGE }));
    const { error } = await startLog(bench, list, PAGE);
    if (error !== null) throw new Unreachable(`DMA_LOGGING_START with four ranges does not work (${error})`);
    for (const range of list) mustReport(await reportLog(bench, range, PAGE));
    const pages = [3, 41, 90, 301];
    for (const [i, range] of list.entries()) {
      await writePages(bench, [pages[i] as number]);
      const bit = (pages[i] as number) - (range.iova - iova) / PAGE;
      const bits = await reported(bench, range, [bit]);
      const did = `START with four ranges, page ${pages[i]} of the ${i + 1}. written, REPORT of that range`;
      expect(bits.includes(bit), did, `bit ${bit}`, `bits ${bits}`);
    }
    await stopLog(bench);
  },
};

const reportRange: Rule = {
  name: 'log.report-range',
  title: 'REPORT clears the log of the range that it was asked for, and no more',
  cites: 'During querying the log is cleared for the IOVA range',
  needs: ['dma-log', 'dma'],
  async run({ bench, expect }) {
    const { iova, length } = whole(bench);
    const half = length / 2;
    const second = 259 + half / PAGE;
    await mustStart(bench, whole(bench));
    mustReport(await reportLog(bench, whole(bench), PAGE));
    await writePages(bench, [30, second]);
    // So that the log has them by now, too.
    await bench.settle();
    mustReport(await reportLog(bench, { iova, length: half }, PAGE));
    const pages = await reported(bench, { iova: iova + half, length: half }, [259]);
    const did = `pages 30 and ${second} written, REPORT of the first half, REPORT of the second`;
    expect(pages.includes(259), did, 'bit 259', `bits ${pages}`);
    await stopLog(bench);
  },
};

/** Logging from before the migration to after its stop; what the RAM says is the witness. */
async function acrossStop({ bench, expect }: Trial, saving: boolean): Promise<void> {
  await mustStart(bench, whole(bench));
  mustReport(await reportLog(bench, whole(bench), PAGE));
  if (saving) await bench.go(PRE_COPY);
  await writePages(bench, [21]);
  await startWrite(bench, 20 * PAGE, 20);
  await bench.go(saving ? STOP_COPY : STOP);
  const written = ramAt(bench, 20 * PAGE, PAGE).some((byte) => byte !== 0);
  const { pages } = mustReport(await reportLog(bench, whole(bench), PAGE));
  const way = saving ? 'PRE_COPY, DMA writes, STOP_COPY' : 'DMA writes, STOP';
  const wanted = written ? [20, 21] : [21];
  const right = wanted.every((page) => pages.includes(page));
  expect(right, `START, ${way}, REPORT`, `pages ${wanted}`, `pages ${pages}`);
  await stopLog(bench);
  await bench.go(RUNNING);
}

const lastWrite: Rule = {
  name: 'log.last-write',
  title: 'the last write before the device stopped is reported after it',
  cites: 'this API is not connected to VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE',
  needs: ['dma-log', 'dma'],
  async run(trial) {
    await acrossStop(trial, false);
    if (trial.bench.able.preCopy) await acrossStop(trial, true);
  },
};

export const logRules: readonly Rule[] = [
  start,
  twice,
  without,
  ranges,
  states,
  ors,
  accurate,
  coarse,
  everyRange,
  reportRange,
  noneLost,
  lastWrite,
];
