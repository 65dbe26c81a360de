// Rules about a device that stands still: in STOP, STOP_COPY and RESUMING no DMA, no interrupt, no change inside; and that it works again in
// RUNNING. They need an exerciser that makes it work first. linux/vfio.h, enum vfio_device_mig_state, "RUNNING_P2P -> STOP"
import type { Bench } from './bench.ts';
import type { DmaExercise, InterruptExercise } from './exerciser.ts';
import { codeOf, type OpenedDevice } from './opened.ts';
import { PRE_COPY_P2P, RESUMING, RUNNING, RUNNING_P2P, STOP, STOP_COPY, stateName } from './oracle.ts';
import { type Rule, Unreachable } from './rule.ts';

const STILL = 'The device must not generate interrupts, DMA, or any other change to external state';
const STOPPED = [STOP, STOP_COPY, RESUMING];
const PAGE = 4096;
/** Where the rules let the device write: the first pages of the buffer. */
const TARGET = 2 * PAGE;

export function dmaOf(bench: OpenedDevice): DmaExercise {
  const { dma } = bench.exerciser;
  if (dma === null) throw new Unreachable('the exerciser has no DMA');
  return dma;
}

export function ramAt(bench: OpenedDevice, offset: number, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  bench.ram.copyOut(offset, bytes);
  return bytes;
}

/** Starts a write into zeroed memory; gives its length. */
export async function startWrite(
  bench: OpenedDevice,
  offset: number,
  seed: number,
  dma = dmaOf(bench),
): Promise<number> {
  const length = Math.min(dma.maxBytes, PAGE);
  bench.ram.copyIn(offset, new Uint8Array(PAGE));
  await dma.startWrite(bench.port, bench.host.place.iova + offset, length, seed);
  return length;
}

/** Until all of it is there; false: it never came. */
export async function landed(bench: OpenedDevice, offset: number, length: number, seed: number): Promise<boolean> {
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

const p2p: Rule = {
  name: 'quiet.p2p',
  title: 'no DMA to a peer in the P2P states; none at all, if the device cannot tell P2P from other DMA',
  cites: 'If the device can identify P2P transactions then it can stop only P2P DMA, otherwise it must stop all DMA',
  needs: ['p2p', 'dma'],
  async run({ bench, expect }) {
    const { peer, claims } = bench.exerciser;
    if (peer === null && claims.p2pAware) throw new Unreachable('the device tells P2P apart, its exerciser has none');
    await dmaWorks(bench);
    for (const [seed, state] of [RUNNING_P2P, PRE_COPY_P2P].filter((each) => bench.states.includes(each)).entries()) {
      await bench.home();
      const length = await startWrite(bench, TARGET, seed + 70, peer ?? dmaOf(bench));
      await bench.go(state);
      const before = ramAt(bench, TARGET, length);
      await bench.port.sleep(2 * dmaOf(bench).ms);
      await bench.settle();
      const still = ramAt(bench, TARGET, length).equals(before);
      expect(still, `DMA write started, SET ${stateName(state)}, RAM compared later`, 'unchanged', 'written to');
    }
  },
};

function attempt(call: () => void): void {
  try {
    call();
  } catch (error) {
    codeOf(error);
  }
}

/** The device's vector on an eventfd that can be taken away. */
class Vector {
  readonly #bench: Bench;
  readonly #fd: number;

  constructor(bench: Bench) {
    this.#bench = bench;
    this.#fd = bench.door.eventFd();
  }

  get #interrupt(): InterruptExercise {
    const { interrupt } = this.#bench.exerciser;
    if (interrupt === null) throw new Unreachable('the exerciser has no interrupt');
    return interrupt;
  }

  arm(): void {
    const vectors = [...new Array<null>(this.#interrupt.vector).fill(null), this.#fd];
    this.#bench.device.irqs.trigger(this.#interrupt.index, 0, vectors);
  }
  disarm(): void {
    this.#bench.device.irqs.disable(this.#interrupt.index);
  }
  /** A line that VFIO masks when it fires stays masked until its owner says that it was dealt with. VFIO_IRQ_INFO_AUTOMASKED */
  raise(): Promise<void> {
    const interrupt = this.#interrupt;
    const { index, vector } = interrupt;
    const { info, irqs } = this.#bench.device;
    if (info.irqs.find((each) => each.index === index)?.automasked) attempt(() => irqs.unmask(index, vector));
    return interrupt.raise(this.#bench.port);
  }
  take(): number {
    return Number(this.#bench.door.eventTake(this.#fd));
  }
  async comes(): Promise<boolean> {
    for (let waited = 0; waited <= 5 * this.#bench.host.settleMs; waited += 10) {
      if (this.take() > 0) return true;
      await this.#bench.port.sleep(10);
    }
    return false;
  }
  /** A device that refuses it now is irqs.states' finding. */
  close(): void {
    attempt(() => this.disarm());
    this.#bench.door.closeFd(this.#fd);
  }
}

async function withVector(bench: Bench, work: (vector: Vector) => Promise<void>): Promise<void> {
  const vector = new Vector(bench);
  try {
    vector.arm();
    await vector.raise();
    if (!(await vector.comes())) throw new Unreachable('an interrupt in RUNNING does not come');
    await work(vector);
  } finally {
    vector.close();
  }
}

const interrupts: Rule = {
  name: 'quiet.interrupts',
  title: 'no interrupt after the device was stopped',
  cites: STILL,
  needs: ['interrupt'],
  run: ({ bench, expect }) =>
    withVector(bench, async (vector) => {
      for (const state of STOPPED) {
        await bench.home();
        vector.arm();
        await vector.raise();
        await bench.go(state);
        vector.take();
        await bench.settle();
        const late = vector.take();
        expect(late === 0, `interrupt raised, SET ${stateName(state)}, eventfd read later`, '0', `${late}`);
      }
      await bench.home();
    }),
};

const pending: Rule = {
  name: 'quiet.pending-interrupt',
  title: 'an interrupt raised before STOP is not lost: it comes before, or when the device runs again',
  cites: 'the device may generate interrupts, DMA, respond to MMIO, all vfio device regions are functional',
  needs: ['interrupt'],
  run: ({ bench, expect }) =>
    withVector(bench, async (vector) => {
      const stopAndRun = async () => {
        await bench.go(STOP);
        await bench.go(RUNNING);
      };
      for (let round = 0; round < 5; round++) {
        await vector.raise();
        await stopAndRun();
        const came = await vector.comes();
        expect(came, 'interrupt raised, SET STOP, SET RUNNING; eventfd', '1', '0');
        if (!came) return;
      }
      // Some devices keep what is raised while nobody listens: those have to keep it through STOP, too.
      vector.disarm();
      await vector.raise();
      await bench.settle();
      vector.arm();
      if (!(await vector.comes())) return;
      vector.disarm();
      await vector.raise();
      await bench.settle();
      await stopAndRun();
      vector.arm();
      const kept = await vector.comes();
      expect(kept, 'interrupt raised without an eventfd, SET STOP, SET RUNNING, eventfd given', '1', '0');
    }),
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
    // Padding that changes is legal, and hides what we look for.
    if (streams[0]?.length !== streams[1]?.length) throw new Unreachable('its streams differ in length each time');
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

export const quietRules: readonly Rule[] = [works, dma, p2p, interrupts, pending, inside, unmapped];
