// Rules about a device that stands still: in STOP, STOP_COPY and RESUMING no DMA, no interrupt, no change inside; and that it works again in
// RUNNING. They need an exerciser that makes it work first. linux/vfio.h, enum vfio_device_mig_state, "RUNNING_P2P -> STOP"
import type { Bench } from './bench.ts';
import type { DmaExercise } from './exerciser.ts';
import { RESUMING, RUNNING, STOP, STOP_COPY, stateName } from './oracle.ts';
import { type Rule, Unreachable } from './rule.ts';

const STILL = 'The device must not generate interrupts, DMA, or any other change to external state';
const STOPPED = [STOP, STOP_COPY, RESUMING];
const PAGE = 4096;
/** Where the rules let the device write: the first pages of the buffer. */
const TARGET = 2 * PAGE;

export function dmaOf(bench: Bench): DmaExercise {
  const { dma } = bench.exerciser;
  if (dma === null) throw new Unreachable('the exerciser has no DMA');
  return dma;
}

export function ramAt(bench: Bench, offset: number, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  bench.ram.copyOut(offset, bytes);
  return bytes;
}

/** Starts a write into zeroed memory; gives its length. */
export async function startWrite(bench: Bench, offset: number, seed: number): Promise<number> {
  const dma = dmaOf(bench);
  const length = Math.min(dma.maxBytes, PAGE);
  bench.ram.copyIn(offset, new Uint8Array(PAGE));
  await dma.startWrite(bench.port, bench.host.place.iova + offset, length, seed);
  return length;
}

/** Until all of it is there; false: it never came. */
export async function landed(bench: Bench, offset: number, length: number, seed: number): Promise<boolean> {
  const dma = dmaOf(bench);
  const wanted = Buffer.from(dma.pattern(seed, length));
  // An emulated host may be much slower than the device was measured with.
  for (let waited = 0; waited <= 20 * dma.ms; waited += 10) {
    if (ramAt(bench, offset, length).equals(wanted)) return true;
    await bench.port.sleep(10);
  }
  return false;
}

const works: Rule = {
  name: 'quiet.works',
  title: 'in RUNNING the device does DMA, also after it was stopped',
  cites: 'While in RUNNING the device is fully operational',
  needs: ['dma'],
  async run({ bench, expect }) {
    for (const [seed, after] of [RUNNING, STOP, STOP_COPY].entries()) {
      await bench.enter(after);
      await bench.home();
      const length = await startWrite(bench, TARGET, seed + 1);
      const there = await landed(bench, TARGET, length, seed + 1);
      expect(there, `DMA write of ${length} bytes in RUNNING, after ${stateName(after)}`, 'it lands', 'it did not');
    }
  },
};

async function dmaWorks(bench: Bench): Promise<void> {
  const length = await startWrite(bench, TARGET, 77);
  if (!(await landed(bench, TARGET, length, 77))) throw new Unreachable('DMA in RUNNING does not land');
}

const dma: Rule = {
  name: 'quiet.dma',
  title: 'no DMA after the device was stopped: what was under way has landed, or waits',
  cites: STILL,
  needs: ['dma'],
  async run({ bench, expect }) {
    await dmaWorks(bench);
    for (const [seed, state] of STOPPED.entries()) {
      await bench.home();
      const length = await startWrite(bench, TARGET, seed + 10);
      await bench.go(state);
      const before = ramAt(bench, TARGET, length);
      await bench.port.sleep(2 * dmaOf(bench).ms);
      await bench.settle();
      const still = ramAt(bench, TARGET, length).equals(before);
      expect(still, `DMA write started, SET ${stateName(state)}, RAM compared later`, 'unchanged', 'written to');
    }
  },
};

/** With the device's vector on an eventfd. */
async function withVector(bench: Bench, work: (take: () => number) => Promise<void>): Promise<void> {
  const { interrupt } = bench.exerciser;
  if (interrupt === null) throw new Unreachable('the exerciser has no interrupt');
  const { door, device } = bench;
  const fd = door.eventFd();
  try {
    const vectors = [...new Array<null>(interrupt.vector).fill(null), fd];
    device.irqs.trigger(interrupt.index, 0, vectors);
    await work(() => Number(door.eventTake(fd)));
  } finally {
    device.irqs.disable(interrupt.index);
    door.closeFd(fd);
  }
}

async function raiseUntil(bench: Bench, take: () => number): Promise<boolean> {
  await bench.exerciser.interrupt?.raise(bench.port);
  for (let waited = 0; waited < 2000; waited += 10) {
    if (take() > 0) return true;
    await bench.port.sleep(10);
  }
  return false;
}

const interrupts: Rule = {
  name: 'quiet.interrupts',
  title: 'no interrupt after the device was stopped',
  cites: STILL,
  needs: ['interrupt'],
  async run({ bench, expect }) {
    await withVector(bench, async (take) => {
      if (!(await raiseUntil(bench, take))) throw new Unreachable('an interrupt in RUNNING does not come');
      for (const state of STOPPED) {
        await bench.home();
        await bench.exerciser.interrupt?.raise(bench.port);
        await bench.go(state);
        take();
        await bench.settle();
        const late = take();
        expect(late === 0, `interrupt raised, SET ${stateName(state)}, eventfd read later`, '0', `${late}`);
      }
      await bench.home();
    });
  },
};

const pending: Rule = {
  name: 'quiet.pending-interrupt',
  title: 'an interrupt raised just before STOP is not lost: it comes before, or when the device runs again',
  cites: 'the device may generate interrupts, DMA, respond to MMIO, all vfio device regions are functional',
  needs: ['interrupt'],
  async run({ bench, expect }) {
    await withVector(bench, async (take) => {
      if (!(await raiseUntil(bench, take))) throw new Unreachable('an interrupt in RUNNING does not come');
      for (let round = 0; round < 5; round++) {
        await bench.exerciser.interrupt?.raise(bench.port);
        await bench.go(STOP);
        await bench.go(RUNNING);
        await bench.settle();
        const came = take();
        expect(came > 0, 'interrupt raised, SET STOP, SET RUNNING; eventfd', '1', `${came}`);
        if (came === 0) return;
      }
    });
  },
};

const inside: Rule = {
  name: 'quiet.inside',
  title: 'a stopped device does not change inside: two streams of the same stop are equal',
  cites: 'It must not change its internal state',
  needs: ['dma'],
  async run({ bench, expect }) {
    if (!bench.exerciser.claims.deterministic) throw new Unreachable('the exerciser does not claim equal streams');
    await dmaWorks(bench);
    await startWrite(bench, TARGET, 50);
    await bench.go(STOP);
    const streams: Uint8Array[] = [];
    for (let i = 0; i < 2; i++) {
      const data = await bench.resume(STOP_COPY);
      streams.push(await data.readToEnd());
      await bench.go(STOP);
      await bench.port.sleep(2 * dmaOf(bench).ms);
    }
    const equal = Buffer.compare(streams[0] as Uint8Array, streams[1] as Uint8Array) === 0;
    expect(equal, 'DMA started, SET STOP, saved twice with a pause between', 'equal streams', 'different ones');
  },
};

const unmapped: Rule = {
  name: 'quiet.unmapped',
  title: 'with all memory unmapped after STOP, the IOMMU sees nothing of the device',
  cites: STILL,
  needs: ['dma', 'destructive'],
  async run({ bench, expect }) {
    await dmaWorks(bench);
    await startWrite(bench, TARGET, 60);
    await bench.go(STOP);
    bench.kernel.take();
    await bench.host.place.unmap();
    await bench.port.sleep(2 * dmaOf(bench).ms);
    await bench.settle();
    const faults = bench.kernel.take().filter((line) => /fault/i.test(line));
    await bench.host.place.map();
    expect(faults.length === 0, 'DMA started, SET STOP, memory unmapped', 'no fault', faults[0] ?? '');
  },
};

export const quietRules: readonly Rule[] = [works, dma, interrupts, pending, inside, unmapped];
