// Rules about a device beside the one under check: a second one that is loaded into, one of another size that must refuse, and a second one as a
// peer, whose BAR the device under check reaches by DMA. Version 2; the older generations' are in rules-region-data.ts and rules-state-data.ts.
// linux/vfio.h, enum vfio_device_mig_state, "RESUMING -> STOP" and "The optional peer to peer (P2P) quiescent state"
import type { HostMapping } from '../../../native/addon.ts';
import type { Bench } from './bench.ts';
import type { DmaExercise, PeerTarget } from './exerciser.ts';
import { codeOf } from './opened.ts';
import { PRE_COPY_P2P, RUNNING_P2P, STOP_COPY, stateName } from './oracle.ts';
import type { PeerBar } from './place.ts';
import { type Rule, type Trial, Unreachable } from './rule.ts';
import { dmaOf } from './rules-quiet.ts';
import { goodStream, hashOfLoaded, MUST_FAIL, tryLoad } from './rules-stream.ts';
import { loadIntoSecond, loadOtherSize } from './second-device.ts';

const PAGE = 4096;

async function saved(bench: Bench): Promise<Uint8Array> {
  const stream = await (await bench.session(STOP_COPY)).readToEnd();
  await bench.home();
  return stream;
}

async function hashThere(bench: Bench, stream: Uint8Array): Promise<string> {
  const { inner } = bench.exerciser;
  if (inner === null) throw new Unreachable('the exerciser has no inner state');
  return hashOfLoaded(bench, inner, stream);
}

const intoSecond: Rule = {
  name: 'stream.into-second',
  title: 'a second device takes the stream and has all of the internal state; both run on, each for itself',
  cites: 'should be taken from the data transfer output of a single FD during saving from a compatible device',
  needs: ['inner', 'second', 'same-kind'],
  run: (trial) => loadIntoSecond(trial, saved, hashThere),
};

const otherSize: Rule = {
  name: 'stream.other-size',
  title: 'a device of another size refuses the stream, at the latest when RESUMING is left; and the other way round',
  cites: MUST_FAIL,
  needs: ['other-size'],
  run: (trial) =>
    loadOtherSize(trial, goodStream, tryLoad, (from, into) =>
      trial.finding(`stream of ${from} loaded into ${into}, of another size`, 'refused', 'accepted'),
    ),
};

/** The second device's target, where the first one can reach it by DMA. */
class Peer {
  readonly #bench: Bench;
  readonly #second: Bench;
  readonly #dma: DmaExercise;
  readonly #target: PeerTarget;
  readonly #iova: number;
  readonly length: number;

  constructor(bench: Bench, second: Bench, target: PeerTarget, bar: PeerBar) {
    this.#bench = bench;
    this.#second = second;
    this.#target = target;
    const dma = bench.exerciser.peer ?? dmaOf(bench);
    this.#dma = dma;
    this.#iova = bar.iova + (target.offset % PAGE);
    this.length = Math.min(dma.maxBytes, target.length);
  }

  clear(): void {
    this.#second.device.writeRegion(this.#target.region, this.#target.offset, new Uint8Array(this.length));
  }

  read(): Buffer {
    const bytes = Buffer.alloc(this.length);
    this.#second.device.readRegion(this.#target.region, this.#target.offset, bytes);
    return bytes;
  }

  start(seed: number): Promise<void> {
    return this.#dma.startWrite(this.#bench.port, this.#iova, this.length, seed);
  }

  /** false: the device does not take one now. */
  async tryStart(seed: number): Promise<boolean> {
    try {
      await this.start(seed);
      return true;
    } catch (error) {
      if (error instanceof Unreachable) return false;
      throw error;
    }
  }

  /** As long as whatever is under way might take. */
  async rest(): Promise<void> {
    await this.#bench.port.sleep(2 * this.#dma.ms);
    await this.#bench.settle();
  }

  /** Until all of it is there; false: it never came. */
  async arrives(seed: number): Promise<boolean> {
    const wanted = Buffer.from(this.#dma.pattern(seed, this.length));
    for (let waited = 0; waited <= 20 * this.#dma.ms; waited += 10) {
      if (this.read().equals(wanted)) return true;
      await this.#bench.port.sleep(10);
    }
    return false;
  }
}

async function mapped(bench: Bench, bar: HostMapping, region: number): Promise<PeerBar> {
  try {
    return await bench.host.place.mapPeer(bar);
  } catch (error) {
    throw new Unreachable(`region ${region} of the second device cannot be mapped for DMA (${codeOf(error)})`);
  }
}

async function withPeer({ bench, beside }: Trial, work: (peer: Peer) => Promise<void>): Promise<void> {
  const second = beside('second');
  const { target } = second.exerciser;
  if (target === null) return;
  const start = target.offset - (target.offset % PAGE);
  const bar = second.device.mapArea(target.region, { start, length: PAGE });
  if (bar === null) throw new Unreachable(`region ${target.region} of the second device cannot be mapped`);
  try {
    const peer = await mapped(bench, bar, target.region);
    try {
      await work(new Peer(bench, second, target, peer));
    } finally {
      await bench.reset();
      await peer.unmap();
    }
  } finally {
    bar.unmap();
  }
}

const p2pPeer: Rule = {
  name: 'quiet.peer',
  title: "no DMA into a peer's BAR in the P2P states, begun before or in them; what was held back comes in RUNNING",
  cites: 'must prevent the device from initiating any new P2P DMA transactions',
  needs: ['p2p', 'dma', 'second', 'target'],
  run: (trial) =>
    withPeer(trial, async (peer) => {
      const { bench, expect } = trial;
      await bench.home();
      peer.clear();
      await peer.start(80);
      if (!(await peer.arrives(80)))
        throw new Unreachable("DMA into the second device's BAR does not arrive in RUNNING");
      let seed = 80;
      for (const state of [RUNNING_P2P, PRE_COPY_P2P].filter((each) => bench.states.includes(each))) {
        for (const begun of ['before', 'in'] as const) {
          seed++;
          await bench.home();
          peer.clear();
          if (begun === 'before') await peer.start(seed);
          await bench.go(state);
          const there = peer.read();
          // A device may well refuse to begin anything now.
          if (begun === 'in' && !(await peer.tryStart(seed))) continue;
          await peer.rest();
          const did = `DMA into a peer's BAR begun ${begun} ${stateName(state)}, BAR compared later`;
          expect(peer.read().equals(there), did, 'unchanged', 'written to');
          await bench.home();
          const came = await peer.arrives(seed);
          expect(came, `DMA into a peer's BAR begun ${begun} ${stateName(state)}, SET RUNNING`, 'it arrives', 'never');
        }
      }
    }),
};

export const besideRules: readonly Rule[] = [intoSecond, otherSize, p2pPeer];
