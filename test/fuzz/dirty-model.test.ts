// Rule: no page is lost, whatever mix of trackers a machine has and whatever fails among them. Guest RAM is a version a page here; CPUs, the
// VMM and devices write at random, what devices reach is mapped and unmapped meanwhile, the real sources and the real merge run over
// trackers that are scripted from the texts of their interfaces, pages are sent as a migration does it, and at the end the destination must have every version. The oracle is the versions.
// 10,000 sequences; FERRY_MODEL_SEQUENCES makes it more, FERRY_FUZZ_SEED repeats a run.
import { describe, expect, it } from 'vitest';
import type { DirtySource, GpaRange, PageBitmap, RamRange } from '../../devices/contract.ts';
import { AllOfRam, ContainerDirty } from '../../devices/vfio/migration/container-dirty.ts';
import { DmaLog } from '../../devices/vfio/migration/dma-log.ts';
import { RegionDirty } from '../../devices/vfio/migration/region-dirty.ts';
import type { ContainerDirtyPort, DmaLogPort, RegionDirtyPort } from '../../devices/vfio/transport.ts';
import { kvmNode } from '../../native/addon.ts';
import type { Log } from '../../vmm/api.ts';
import { MergingTracker } from '../../vmm/dirty.ts';
import { HostWrites } from '../../vmm/memory.ts';
import { sizedRam } from '../fakes/vfio-host.ts';
import { patienceFor } from './counts.ts';
import { type Generator, generator } from './generator.ts';

const SEQUENCES = Number(process.env['FERRY_MODEL_SEQUENCES'] ?? 10_000);
const SEED = Number(process.env['FERRY_FUZZ_SEED'] ?? Date.now() % 0x7fffffff);
const PAGE = 4096;
/** Two runs around a hole; the second is no multiple of 64 pages. */
const LOW = 128;
const HIGH = 70;
const PAGES = LOW + HIGH;
const HIGH_GPA = 2 ** 32;
const addon = kvmNode();
const ram = sizedRam(PAGES * PAGE);
const RANGES: readonly RamRange[] = [
  { gpa: 0, size: LOW * PAGE, slice: { ram, offset: 0, size: LOW * PAGE } },
  { gpa: HIGH_GPA, size: HIGH * PAGE, slice: { ram, offset: LOW * PAGE, size: HIGH * PAGE } },
];
const quiet: Log = { trace() {}, debug() {}, info() {}, warn() {}, error() {}, child: () => quiet };
const newBitmap = () => addon.createBitmap(PAGES);

const iovaOf = (page: number) => (page < LOW ? page * PAGE : HIGH_GPA + (page - LOW) * PAGE);

/** What a tracker's interface does besides its work. */
interface Mood {
  /** In a hundred, for each call. */
  readonly failStart: number;
  readonly failReport: number;
}

function stumble(dice: Generator, percent: number, what: string): void {
  if (dice(100) < percent) throw new Error(`${what} fails`);
}

/** VFIO_DEVICE_FEATURE_DMA_LOGGING_*: logs while it is started, by pages of its own; REPORT clears; an error leaves it empty. */
class ScriptedLog implements DmaLogPort {
  readonly #dice: Generator;
  readonly #mood: Mood;
  #granule = 0;
  #spans: readonly GpaRange[] = [];
  readonly #log = new Set<number>();
  /** Called while the log is off for other ranges. */
  inTheHole: () => void = () => undefined;

  constructor(dice: Generator, mood: Mood) {
    this.#dice = dice;
    this.#mood = mood;
  }

  wrote(page: number): void {
    const iova = iovaOf(page);
    if (!this.#spans.some(({ start, length }) => iova >= start && iova < start + length)) return;
    this.#log.add(Math.floor(iova / this.#granule));
  }

  async start(ranges: readonly GpaRange[]): Promise<number> {
    expect(this.#spans, 'one START at a time').toEqual([]);
    stumble(this.#dice, this.#mood.failStart, 'START');
    this.#spans = ranges;
    this.#granule = PAGE << this.#dice(5);
    return this.#granule;
  }

  async report(range: RamRange, into: PageBitmap): Promise<void> {
    if (this.#dice(100) < this.#mood.failReport) {
      this.#log.clear();
      throw new Error('REPORT fails');
    }
    const end = range.gpa + range.size;
    for (const granule of [...this.#log]) {
      const first = granule * this.#granule;
      if (first + this.#granule <= range.gpa || first >= end) continue;
      for (let iova = Math.max(first, range.gpa); iova < Math.min(first + this.#granule, end); iova += PAGE) {
        into.set((range.slice.offset + iova - range.gpa) / PAGE, 1);
      }
      this.#log.delete(granule);
    }
  }

  async stop(): Promise<void> {
    this.#spans = [];
    this.#log.clear();
    this.inTheHole();
  }
}

/** type1's or a hwpt's pages: coarse ones report all that is mapped, always. */
class ScriptedContainer implements ContainerDirtyPort {
  readonly kind: 'container' | 'iommufd';
  readonly coarse: boolean;
  readonly #dice: Generator;
  readonly #mood: Mood;
  #on = false;
  readonly #pages = new Set<number>();

  constructor(dice: Generator, mood: Mood, kind: 'container' | 'iommufd', coarse: boolean) {
    this.#dice = dice;
    this.#mood = mood;
    this.kind = kind;
    this.coarse = coarse;
  }

  wrote(page: number): void {
    if (this.#on) this.#pages.add(page);
  }

  async start(): Promise<void> {
    stumble(this.#dice, this.#mood.failStart, 'START');
    this.#on = true;
    this.#pages.clear();
  }

  async report(range: RamRange, into: PageBitmap): Promise<void> {
    stumble(this.#dice, this.#mood.failReport, 'GET_BITMAP');
    const first = range.slice.offset / PAGE;
    const count = range.size / PAGE;
    if (this.coarse) into.set(first, count);
    for (const page of [...this.#pages]) {
      if (page < first || page >= first + count) continue;
      into.set(page, 1);
      this.#pages.delete(page);
    }
  }

  /** A plain UNMAP: what it knew of the range is gone. */
  forget(range: RamRange): void {
    const first = range.slice.offset / PAGE;
    for (const page of [...this.#pages])
      if (page >= first && page < first + range.size / PAGE) this.#pages.delete(page);
  }

  /** As the kernel does: what is refused stays mapped, and known. A hwpt has no such call. */
  get unmap(): ContainerDirtyPort['unmap'] {
    return this.kind === 'iommufd' ? null : (range, into) => this.report(range, into);
  }

  async stop(): Promise<void> {
    this.#on = false;
  }
}

/** The bitmap of a migration region. */
class ScriptedRegion implements RegionDirtyPort {
  readonly #dice: Generator;
  readonly #mood: Mood;
  readonly #pages = new Set<number>();

  constructor(dice: Generator, mood: Mood) {
    this.#dice = dice;
    this.#mood = mood;
  }

  wrote(page: number): void {
    this.#pages.add(page);
  }

  start(): void {}

  async collect(into: PageBitmap): Promise<void> {
    const pages = [...this.#pages];
    this.#pages.clear();
    stumble(this.#dice, this.#mood.failReport, 'copied_pfns');
    for (const page of pages) into.set(page, 1);
    // Over-reporting is allowed.
    if (this.#dice(4) === 0) into.set(this.#dice(PAGES), 1);
  }

  stop(): void {}
}

/** KVM's log, as it is documented: what was written since the last collect. */
class ScriptedKvm implements DirtySource {
  readonly name = 'kvm';
  readonly coarse = false;
  readonly fallback = null;
  readonly #pages = new Set<number>();
  readonly #dice: Generator;
  readonly #mood: Mood;

  constructor(dice: Generator, mood: Mood) {
    this.#dice = dice;
    this.#mood = mood;
  }

  wrote(page: number): void {
    this.#pages.add(page);
  }
  async start(): Promise<void> {
    this.#pages.clear();
  }
  async collect(into: PageBitmap): Promise<number> {
    const pages = [...this.#pages];
    this.#pages.clear();
    // A ring that was run over.
    stumble(this.#dice, this.#mood.failReport, 'the ring');
    for (const page of pages) into.set(page, 1);
    return pages.length;
  }
  async stop(): Promise<void> {}
}

interface Writer {
  wrote(page: number): void;
}

/** A device: its source, and everything that sees it write. */
interface ModelDevice {
  readonly source: DirtySource;
  readonly seenBy: readonly Writer[];
  /** null: what it writes is seen wherever it is. */
  readonly log: { readonly source: DmaLog; readonly port: ScriptedLog } | null;
}

/** What is mapped for DMA: a run of each piece of RAM, maybe none of the one above. */
interface Reach {
  readonly low: readonly [first: number, count: number];
  readonly high: readonly [first: number, count: number];
}
const EVERYTHING: Reach = { low: [0, LOW], high: [LOW, HIGH] };

function reachOf(dice: Generator): Reach {
  const [low, high] = [dice(LOW), dice(HIGH)];
  return { low: [low, 1 + dice(LOW - low)], high: [LOW + high, dice(HIGH - high + 1)] };
}

const gpasOf = ({ low, high }: Reach): GpaRange[] =>
  [low, high]
    .filter(([, count]) => count > 0)
    .map(([first, count]) => ({ start: iovaOf(first), length: count * PAGE }));

/** A page that a device can write. */
function pageIn(dice: Generator, { low, high }: Reach): number {
  const n = dice(low[1] + high[1]);
  return n < low[1] ? low[0] + n : high[0] + n - low[1];
}

/** What the devices of one machine may share. */
interface Shared {
  readonly port: ScriptedContainer;
  readonly source: ContainerDirty;
}

function sharedOf(dice: Generator, mood: Mood): Shared {
  const kind = dice(2) === 0 ? 'container' : 'iommufd';
  const port = new ScriptedContainer(dice, mood, kind, kind === 'container' && dice(2) === 0);
  return { port, source: new ContainerDirty(port, RANGES, newBitmap) };
}

function deviceOf(dice: Generator, mood: Mood, shared: Shared): ModelDevice {
  const all = new AllOfRam(RANGES);
  const fallback = dice(2) === 0 ? shared.source : all;
  switch (dice(4)) {
    case 0: {
      const port = new ScriptedLog(dice, mood);
      const source = new DmaLog({ port, ram: RANGES, newBitmap, fallback, bars: () => [] });
      return { source, seenBy: [port, shared.port], log: { source, port } };
    }
    case 1: {
      const port = new ScriptedRegion(dice, mood);
      return { source: new RegionDirty(port, RANGES, newBitmap, fallback), seenBy: [port, shared.port], log: null };
    }
    case 2:
      return { source: shared.source, seenBy: [shared.port], log: null };
    default:
      return { source: all, seenBy: [], log: null };
  }
}

/** One migration. Gives the pages that the destination lacks. */
async function sequence(dice: Generator): Promise<number[]> {
  const calm = dice(3) > 0;
  const mood: Mood = { failStart: calm ? 0 : 20, failReport: calm ? 0 : 8 };
  const versions = new Uint32Array(PAGES);
  const sent = new Uint32Array(PAGES).fill(0xffffffff);
  const kvm = new ScriptedKvm(dice, mood);
  const vmm = new HostWrites(addon, PAGES);
  const shared = sharedOf(dice, mood);
  const devices = Array.from({ length: dice(5) }, () => deviceOf(dice, mood, shared));
  const tracker = new MergingTracker({
    pages: PAGES,
    ranges: RANGES.map(({ gpa, size }) => ({ start: gpa, length: size })),
    own: [kvm, vmm],
    devices: () => devices.map(({ source }) => source),
    createBitmap: (pages) => addon.createBitmap(pages),
    log: quiet,
  });
  let reach = EVERYTHING;
  const dma = (device: ModelDevice, to: Reach) => {
    const page = pageIn(dice, to);
    versions[page]! += 1;
    for (const seen of device.seenBy) seen.wrote(page);
  };
  const write = (guestToo: boolean) => {
    const page = dice(PAGES);
    const who = guestToo ? dice(devices.length + 2) : 2 + dice(Math.max(devices.length, 1));
    if (who >= 2) {
      const device = devices[who - 2];
      if (device !== undefined) dma(device, reach);
      return;
    }
    versions[page]! += 1;
    if (who === 0) kvm.wrote(page);
    else {
      const [from, length] = [dice(PAGE), 1 + dice(PAGE / 2)];
      const over = from + length > PAGE;
      if (over && page + 1 < PAGES) versions[page + 1]! += 1;
      vmm.mark(page * PAGE + from, over && page + 1 === PAGES ? PAGE - from : length);
    }
  };
  /** Maps and unmaps; a device that runs writes into both, also while its log is off. */
  const remap = async () => {
    const [before, after] = [reach, reachOf(dice)];
    const stood = dice(4) === 0;
    for (const device of devices) {
      if (device.log === null) continue;
      const writes = () => {
        for (let n = stood ? 0 : dice(4); n > 0; n--) dma(device, dice(2) === 0 ? before : after);
      };
      const { source, port } = device.log;
      port.inTheHole = writes;
      // After a failure it refuses its reports, and the tracker takes all RAM.
      await source.follow(gpasOf(after), stood).catch(() => undefined);
      port.inTheHole = () => undefined;
    }
    reach = after;
    if (dice(2) === 0) await replace(RANGES[dice(RANGES.length)]!);
  };
  /** A range of RAM goes from the container, and comes back. */
  const replace = async (range: RamRange) => {
    const space = { unmap: async () => shared.port.forget(range), map: async () => undefined };
    const gone = await shared.source.unmap(range, space).then(
      () => true,
      () => false,
    );
    if (gone) await shared.source.map(range, space);
  };
  const send = (bitmap: PageBitmap, most: number) => {
    for (let page = dice(PAGES), n = 0; n < PAGES && most > 0; n++, page = (page + 1) % PAGES) {
      if (!bitmap.test(page)) continue;
      // The bit goes before the page is read: a write in between is in the next round.
      bitmap.clear(page, 1);
      if (dice(8) === 0) write(true);
      sent[page] = versions[page]!;
      most -= 1;
    }
  };
  try {
    for (let n = dice(10); n > 0; n--) write(true);
    await tracker.start({ deviceLog: dice(4) > 0, drop: null });
    for (let round = 1 + dice(4); round > 0; round--) {
      for (let n = dice(20); n > 0; n--) write(true);
      if (dice(3) === 0) await remap();
      for (let n = dice(4); n > 0; n--) write(true);
      const { bitmap } = await tracker.collect(false);
      for (let n = dice(5); n > 0; n--) write(true);
      send(bitmap, dice(PAGES));
    }
    // vCPUs stand; devices write on until they are stopped.
    for (let n = dice(8); n > 0; n--) write(false);
    if (dice(6) === 0) await remap();
    const { bitmap } = await tracker.collect(true);
    for (let page = 0; page < PAGES; page++) if (bitmap.test(page)) sent[page] = versions[page]!;
    await tracker.stop();
  } finally {
    vmm.close();
  }
  return [...versions.keys()].filter((page) => versions[page] !== sent[page]);
}

describe('any mix of dirty trackers', () => {
  it(
    `loses no page in ${SEQUENCES} random migrations (FERRY_FUZZ_SEED=${SEED})`,
    async () => {
      for (let n = 0; n < SEQUENCES; n++) {
        expect(await sequence(generator(SEED + n)), `sequence ${n}: FERRY_FUZZ_SEED=${SEED + n}`).toEqual([]);
      }
    },
    patienceFor(SEQUENCES),
  );

  it('would be noticed to lose one: a tracker that forgets a page now and then', async () => {
    const found: number[] = [];
    const forget = ScriptedKvm.prototype.wrote;
    ScriptedKvm.prototype.wrote = function (page: number) {
      if (page % 17 !== 3) forget.call(this, page);
    };
    try {
      for (let n = 0; n < 200; n++) found.push(...(await sequence(generator(SEED + n))));
    } finally {
      ScriptedKvm.prototype.wrote = forget;
    }
    expect(found.length).toBeGreaterThan(0);
    expect(new Set(found.map((page) => page % 17))).toEqual(new Set([3]));
  });
});
