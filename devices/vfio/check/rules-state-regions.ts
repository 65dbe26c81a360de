// Rules about the control region of the device state regions: version and capabilities, states, that STOP stops, the dirty bitmap.
// rules-state-data.ts has those about config and memory. Sentences are of the patch of February 2019.
import { CTL, ctlName, LOGGING, RUNNING, STOP, type StatesBench } from './bench-states.ts';
import { type Rule, Unreachable } from './rule.ts';
import { dmaOf, landed, ramAt, startWrite } from './rules-quiet.ts';

type StatesRule = Rule<StatesBench>;

const PAGE = 4096;
const TARGET = 5 * PAGE;
const ALL_STATES = [RUNNING, STOP, LOGGING, STOP | LOGGING];
const CAP_MEMORY = 1;
const CAP_BITMAP = 2;

const version: StatesRule = {
  name: 'ctl.version',
  title: 'the version is 1, also in every state',
  cites: 'writes version number of device state interfaces to the "version" field of control region.',
  needs: [],
  async run({ bench, expect }) {
    for (const state of ALL_STATES) {
      await bench.go(state);
      const seen = await bench.ctl.u32(CTL.version, 'version');
      expect(seen === 1, `version read in ${ctlName(state)}`, '1', `${seen}`);
    }
    await bench.home();
  },
};

const caps: StatesRule = {
  name: 'ctl.caps',
  title: 'capabilities are known ones, do not change, and go with the regions that there are',
  cites: 'For devices that have devcie memory, it is required to expose DEVICE_MEMORY capability.',
  needs: [],
  async run({ bench, expect }) {
    const said = await bench.caps();
    expect((said & ~(CAP_MEMORY | CAP_BITMAP)) === 0, 'caps read', 'DEVICE_MEMORY 1, SYSTEM_MEMORY 2', `${said}`);
    const memory = bench.memory === null ? 'no region of device memory' : 'a region of device memory';
    expect(((said & CAP_MEMORY) !== 0) === (bench.memory !== null), memory, 'cap 1 goes with it', `caps ${said}`);
    const bits = bench.bitmap !== null && bench.bitmap.size >= 8;
    if ((said & CAP_BITMAP) !== 0) expect(bits, `caps ${said}`, 'a region of the dirty bitmap', 'none');
    for (const state of ALL_STATES) {
      await bench.go(state);
      const again = await bench.ctl.u32(CTL.caps, 'caps');
      expect(again === said, `caps read again, in ${ctlName(state)}`, `${said}`, `${again}`);
    }
    await bench.home();
  },
};

const arcs: StatesRule = {
  name: 'ctl.arcs',
  title: 'all twelve changes among the four states work',
  cites: 'device state transitions as:',
  needs: [],
  async run({ bench, expect }) {
    for (const from of ALL_STATES) {
      for (const to of ALL_STATES.filter((each) => each !== from)) {
        await bench.home();
        await bench.go(from);
        const error = await bench.put(to);
        expect(error === null, `${ctlName(from)} -> ${ctlName(to)}`, 'success', `${error}`);
      }
    }
    await bench.home();
  },
};

async function dmaLands(bench: StatesBench, seed: number): Promise<boolean> {
  const length = await startWrite(bench, TARGET, seed);
  return landed(bench, TARGET, length, seed);
}

async function dmaWorks(bench: StatesBench): Promise<void> {
  if (!(await dmaLands(bench, 77))) throw new Unreachable('DMA in RUNNING does not land');
}

/** Whether RAM stays as it is after the write of `state`. */
async function stands(bench: StatesBench, state: number, seed: number): Promise<boolean> {
  const length = await startWrite(bench, TARGET, seed);
  await bench.go(state);
  const before = ramAt(bench, TARGET, length);
  await bench.port.sleep(2 * dmaOf(bench).ms);
  await bench.settle();
  return ramAt(bench, TARGET, length).equals(before);
}

const DEACTIVATED = 'In this state, a VFIO device is deactivated to interact with device driver.';

const stop: StatesRule = {
  name: 'ctl.stop',
  title: 'no DMA after STOP was written: what was under way has landed, or waits',
  cites: DEACTIVATED,
  needs: ['dma'],
  async run({ bench, expect }) {
    await dmaWorks(bench);
    for (const [i, from] of [RUNNING, LOGGING].entries()) {
      await bench.home();
      await bench.go(from);
      const still = await stands(bench, STOP, 10 + i);
      expect(still, `DMA write started in ${ctlName(from)}, STOP, RAM compared later`, 'unchanged', 'written to');
    }
  },
};

const stopLogging: StatesRule = {
  name: 'ctl.stop-logging',
  title: 'no DMA after STOP & LOGGING was written either',
  cites: 'RUNNING & LOGGING -- deactivate --> STOP & LOGGING',
  needs: ['dma'],
  async run({ bench, expect }) {
    await dmaWorks(bench);
    await bench.go(LOGGING);
    const still = await stands(bench, STOP | LOGGING, 20);
    expect(still, 'DMA write started, STOP & LOGGING, RAM compared later', 'unchanged', 'written to');
  },
};

const activates: StatesRule = {
  name: 'ctl.activate',
  title: 'out of STOP the device works again, whichever way',
  cites: 'STOP & LOGGING -- activate & stop dirty data logging --> RUNNING',
  needs: ['dma'],
  async run({ bench, expect }) {
    for (const [i, from] of [STOP, STOP | LOGGING].entries()) {
      for (const to of [RUNNING, LOGGING]) {
        await bench.go(RUNNING, STOP, from, to);
        const there = await dmaLands(bench, 30 + 2 * i + to);
        expect(there, `${ctlName(from)} -> ${ctlName(to)}, DMA write`, 'it lands', 'it did not');
      }
    }
    await bench.home();
  },
};

const invalid: StatesRule = {
  name: 'ctl.invalid',
  title: 'a number that is no state is refused, or changes nothing',
  cites: 'Four states are defined for a VFIO device:',
  needs: ['dma'],
  async run({ bench, expect, note }) {
    await dmaWorks(bench);
    for (const [i, value] of [STOP | 4, STOP | LOGGING | 8, 0xffffffff].entries()) {
      await bench.home();
      const error = await bench.put(value);
      if (error === null) note(`device_state ${value} is no error`);
      const runs = await dmaLands(bench, 40 + i);
      expect(runs, `device_state written with ${value} in RUNNING; DMA write`, 'it lands', 'it did not');
      if (!runs) return;
    }
    const length = await startWrite(bench, TARGET, 49);
    await bench.go(STOP);
    // What a device that does not stop still writes is ctl.stop's finding.
    await bench.port.sleep(2 * dmaOf(bench).ms);
    await bench.settle();
    const before = ramAt(bench, TARGET, length);
    await bench.put(RUNNING | 4);
    await bench.port.sleep(2 * dmaOf(bench).ms);
    await bench.settle();
    const still = ramAt(bench, TARGET, length).equals(before);
    expect(
      still,
      'DMA write started, STOP, device_state written with 4, RAM compared later',
      'unchanged',
      'written to',
    );
    await bench.home();
  },
};

const resets: StatesRule = {
  name: 'ctl.reset',
  title: 'after a reset in any state the device runs',
  cites: 'It is the default state that a VFIO device enters initially.',
  needs: ['reset', 'dma'],
  async run({ bench, expect }) {
    for (const state of ALL_STATES) {
      await bench.home();
      await bench.go(state);
      const error = await bench.reset();
      expect(error === null, `VFIO_DEVICE_RESET in ${ctlName(state)}`, 'success', `${error}`);
      const there = error === null && (await dmaLands(bench, 50 + state));
      expect(there, `DMA write after VFIO_DEVICE_RESET in ${ctlName(state)}`, 'it lands', 'it did not');
      if (!there) return;
    }
  },
};

const closed: StatesRule = {
  name: 'ctl.close',
  title: 'a device that was closed in any state runs for the next user',
  cites: 'It is the default state that a VFIO device enters initially.',
  needs: ['dma'],
  async run({ bench, expect }) {
    for (const state of [STOP, STOP | LOGGING]) {
      await bench.go(state);
      await bench.reopen();
      const there = await dmaLands(bench, 60 + state);
      expect(there, `closed in ${ctlName(state)}, opened anew; DMA write`, 'it lands', 'it did not');
      if (!there) return;
    }
  },
};

const firstPage = (bench: StatesBench) => bench.host.place.iova;
const pagesOf = (bench: StatesBench) => Math.min(bench.ram.size / PAGE, (bench.bitmap?.size ?? 0) * 8);

const bitmap: StatesRule = {
  name: 'ctl.bitmap',
  title: 'under LOGGING a page that the device wrote is in the bitmap, counted from start_addr',
  cites: 'returns as bitmap to specify dirty pages that device produces since last query',
  needs: ['system-memory', 'dma'],
  async run({ bench, expect, note }) {
    await bench.go(LOGGING);
    await bench.dirtyPages(firstPage(bench), pagesOf(bench));
    if (!(await dmaLands(bench, 71))) throw new Unreachable('DMA under LOGGING does not land');
    const page = TARGET / PAGE;
    const pages = await bench.dirtyPages(firstPage(bench), pagesOf(bench));
    expect(pages.has(page), 'page written by DMA under LOGGING; bitmap', `page ${page}`, few(pages));
    if (pages.size > 1) note(`${pages.size} pages are in the bitmap of one that was written`);
    const again = await bench.dirtyPages(firstPage(bench), pagesOf(bench));
    if (again.size > 0) note(`${again.size} pages are in the next bitmap, of which none was written again`);
    if (!(await dmaLands(bench, 72))) throw new Unreachable('DMA under LOGGING does not land');
    const from = page - 2;
    const within = await bench.dirtyPages(firstPage(bench) + from * PAGE, 64);
    expect(within.has(2), `page ${page} written; bitmap from page ${from} on`, 'page 2', few(within));
    await bench.home();
  },
};

const lastWrite: StatesRule = {
  name: 'ctl.bitmap-stopped',
  title: 'what was written before the device stopped is in the bitmap of STOP & LOGGING',
  cites: 'if device state is not in RUNNING or STOP & LOGGING, vendor driver returns empty bitmap',
  needs: ['system-memory', 'dma'],
  async run({ bench, expect, note }) {
    await bench.go(LOGGING);
    if (!(await dmaLands(bench, 73))) throw new Unreachable('DMA under LOGGING does not land');
    await bench.go(STOP | LOGGING);
    const page = TARGET / PAGE;
    const pages = await bench.dirtyPages(firstPage(bench), pagesOf(bench));
    expect(pages.has(page), 'page written by DMA, STOP & LOGGING; bitmap', `page ${page}`, few(pages));
    await bench.go(STOP);
    const outside = await bench.dirtyPages(firstPage(bench), pagesOf(bench));
    if (outside.size > 0) note(`outside of LOGGING ${outside.size} pages are in the bitmap`);
    await bench.home();
  },
};

/** A driver that does not look at the count would write beyond its own memory: hence destructive. */
const pageNr: StatesRule = {
  name: 'ctl.page-nr',
  title: 'a page count that the bitmap region has no room for is refused',
  cites: "if it's larger than the size that region DIRTY_BITMAP can support, error returns",
  needs: ['system-memory', 'destructive'],
  async run({ bench, expect }) {
    await bench.go(LOGGING);
    const most = (bench.bitmap?.size ?? 0) * 8;
    const error = await bench.query(firstPage(bench), most + 1);
    expect(error !== null, `${most + 1} pages asked for, with room for ${most}`, 'an error', 'success');
    await bench.home();
  },
};

function few(pages: ReadonlySet<number>): string {
  if (pages.size === 0) return 'none';
  return `${[...pages].slice(0, 4).join(', ')}${pages.size > 4 ? ` and ${pages.size - 4} more` : ''}`;
}

export const ctlRules: readonly StatesRule[] = [
  version,
  caps,
  arcs,
  resets,
  closed,
  stop,
  stopLogging,
  activates,
  invalid,
  bitmap,
  lastWrite,
  pageNr,
];
