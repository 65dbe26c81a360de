// Rule (linux/vfio.h, DMA logging: one START at a time): when what a device can reach changes while its writes are logged, no write is lost.
// The driver is scripted from that text: it logs in the ranges of its START alone, nothing between STOP and START, and refuses a REPORT
// outside of them. The oracle is written out page by page.
import { afterEach, describe, expect, it } from 'vitest';
import type { GpaRange, PageBitmap, RamRange } from '../../../devices/contract.ts';
import { DmaLog } from '../../../devices/vfio/migration/dma-log.ts';
import type { DmaLogPort } from '../../../devices/vfio/transport.ts';
import { kvmNode } from '../../../native/addon.ts';
import { sizedRam } from '../../fakes/vfio-host.ts';

const PAGE = 4096;
const addon = kvmNode();
/** Pages 0-9 lie at 0, pages 10-15 at 4 GiB. */
const ram = sizedRam(16 * PAGE);
const HIGH = 2 ** 32;
const RAM: readonly RamRange[] = [
  { gpa: 0, size: 10 * PAGE, slice: { ram, offset: 0, size: 10 * PAGE } },
  { gpa: HIGH, size: 6 * PAGE, slice: { ram, offset: 10 * PAGE, size: 6 * PAGE } },
];
const iovaOf = (page: number) => (page < 10 ? page * PAGE : HIGH + (page - 10) * PAGE);
const pages = (first: number, count: number): GpaRange => ({ start: iovaOf(first), length: count * PAGE });

class ScriptedDriver implements DmaLogPort {
  readonly calls: string[] = [];
  fails: string | null = null;
  /** DMA in the hole: after STOP, before START. */
  inTheHole: () => void = () => undefined;
  #spans: readonly GpaRange[] | null = null;
  readonly #log = new Set<number>();

  writes(page: number): void {
    if (this.#covers(iovaOf(page), PAGE)) this.#log.add(page);
  }

  async start(ranges: readonly GpaRange[], pageSize: number): Promise<number> {
    this.#call(`START ${ranges.map(({ start, length }) => `${start.toString(16)}+${length / PAGE}`).join(' ')}`);
    expect(this.#spans, 'one START at a time').toBeNull();
    this.#spans = ranges;
    return pageSize;
  }

  async report({ gpa, size, slice }: RamRange, into: PageBitmap): Promise<void> {
    this.#call(`REPORT ${gpa.toString(16)}+${size / PAGE}`);
    expect(this.#covers(gpa, size), 'a REPORT of what is not logged').toBe(true);
    for (let page = slice.offset / PAGE; page < (slice.offset + size) / PAGE; page++)
      if (this.#log.delete(page)) into.set(page, 1);
  }

  async stop(): Promise<void> {
    this.#call('STOP');
    this.#spans = null;
    this.#log.clear();
    this.inTheHole();
  }

  #covers(iova: number, length: number): boolean {
    return (this.#spans ?? []).some((span) => iova >= span.start && iova + length <= span.start + span.length);
  }

  #call(name: string): void {
    this.calls.push(name);
    if (this.fails !== null && name.startsWith(this.fails)) throw new Error(`${name} fails`);
  }
}

const bitmaps: PageBitmap[] = [];
const newBitmap = () => {
  const made = addon.createBitmap(16);
  bitmaps.push(made);
  return made;
};
afterEach(() => {
  for (const each of bitmaps.splice(0)) each.close();
});

async function started(...ranges: GpaRange[]) {
  return startedWith(ranges, []);
}

/** `bars`: what the device reaches beside RAM, at each moment. */
async function startedWith(ranges: readonly GpaRange[], bars: readonly GpaRange[]) {
  const driver = new ScriptedDriver();
  const log = new DmaLog({ port: driver, ram: RAM, newBitmap, fallback: null, bars: () => bars });
  await log.start(ranges);
  const began = driver.calls[0];
  driver.calls.length = 0;
  const dirty = async () => {
    const into = newBitmap();
    const told = await log.collect(into);
    const found = Array.from({ length: 16 }, (_, page) => page).filter((page) => into.test(page));
    expect(told).toBe(found.length);
    return found;
  };
  return { driver, log, dirty, began };
}
const all = (first: number, count: number) => Array.from({ length: count }, (_, n) => first + n);

describe('the ranges of a DMA log', () => {
  it('change by REPORT, STOP, START; a write in the hole between them is not lost: old and new ranges are dirty once', async () => {
    const { driver, log, dirty } = await started(pages(0, 4));
    driver.inTheHole = () => driver.writes(2);
    await log.follow([pages(2, 4), pages(12, 2)], false);
    expect(driver.calls).toEqual(['REPORT 0+4', 'STOP', `START 2000+4 ${iovaOf(12).toString(16)}+2`]);
    expect(await dirty()).toEqual([...all(0, 6), 12, 13]);
    driver.writes(5);
    driver.writes(13);
    driver.writes(0);
    expect(await dirty()).toEqual([5, 13]);
    expect(await dirty()).toEqual([]);
  });

  it('of a device that was in STOP throughout: what it had written is kept, nothing else is dirty', async () => {
    const { driver, log, dirty } = await started(pages(0, 10), pages(10, 6));
    driver.writes(3);
    driver.writes(11);
    await log.follow([pages(0, 10)], true);
    expect(await dirty()).toEqual([3, 11]);
    driver.writes(9);
    expect(await dirty()).toEqual([9]);
  });

  it('and the report fails, so that what was logged is unknown: dirty once, also of a device in STOP', async () => {
    const { driver, log, dirty } = await started(pages(0, 4));
    driver.fails = 'REPORT';
    await log.follow([pages(2, 4)], true);
    driver.fails = null;
    expect(await dirty()).toEqual(all(0, 6));
    expect(await dirty()).toEqual([]);
  });

  it.each([
    ['STOP', 3],
    ['START', 2],
  ])('and %s fails: told, and so is every report, until it works again', async (what, stops) => {
    const { driver, log, dirty } = await started(pages(0, 4));
    driver.fails = what;
    await expect(log.follow([pages(8, 2)], false)).rejects.toThrow(`${what}`);
    driver.fails = null;
    await expect(dirty()).rejects.toThrow(`${what}`);
    await expect(dirty()).rejects.toThrow(`${what}`);
    await log.follow([pages(5, 1)], true);
    // All that was in reach since the last report that is known.
    expect(await dirty()).toEqual([...all(0, 4), 5, 8, 9]);
    await log.stop();
    expect(driver.calls.filter((call) => call === 'STOP')).toHaveLength(stops);
  });

  it('take in the BARs of the device’s peers, in spans of their own above 4 GiB, and follow them; only RAM is reported', async () => {
    const bars: GpaRange[] = [{ start: 0xc0000000, length: PAGE }];
    const { driver, log, dirty, began } = await startedWith([pages(0, 10), pages(10, 6)], bars);
    expect(began).toBe(`START 0+${0xc0000 + 1} ${HIGH.toString(16)}+6`);
    driver.writes(3);
    bars[0] = { start: 2 ** 40, length: 2 * PAGE };
    driver.inTheHole = () => driver.writes(12);
    await log.reachChanged();
    const calls = [`REPORT 0+10`, `REPORT ${HIGH.toString(16)}+6`, 'STOP'];
    expect(driver.calls).toEqual([...calls, `START 0+10 ${HIGH.toString(16)}+6 ${(2 ** 40).toString(16)}+2`]);
    expect(await dirty()).toEqual(all(0, 16));
    driver.calls.length = 0;
    // Within the span that is there.
    bars.push({ start: 2 ** 40 + PAGE, length: PAGE });
    await log.reachChanged();
    expect(driver.calls).toEqual([]);
    driver.writes(5);
    expect(await dirty()).toEqual([5]);
  });

  it('do not change under a report that is under way, and not at all where nothing is logged', async () => {
    const { driver, log } = await started(pages(0, 10));
    const into = newBitmap();
    driver.writes(1);
    await Promise.all([log.collect(into), log.follow([pages(0, 2)], true), log.collect(into)]);
    expect(driver.calls).toEqual(['REPORT 0+10', 'REPORT 0+10', 'STOP', 'START 0+2', 'REPORT 0+2']);
    expect([into.count, into.test(1)]).toEqual([1, true]);
    await log.stop();
    driver.calls.length = 0;
    await log.follow([pages(0, 4)], false);
    expect(driver.calls).toEqual([]);
  });
});
