// The back ends of migration v2 and of the device state regions under drivers that say anything, fail anywhere or answer short: each ends in
// an error of ours or in nothing worse, no data fd is used after its end, closed twice or left open, no record is taken in part.
// (migration-regions.test.ts: the other two.) The seed is printed, FUZZ_SEED repeats it; FERRY_FUZZ_INPUTS is the number of drivers (1000).
import { expect, it } from 'vitest';
import type { ChunkSink, ChunkSource, PumpResult } from '../../devices/contract.ts';
import { VfioLive } from '../../devices/vfio/migration/device-state.ts';
import { openFeatureV2 } from '../../devices/vfio/migration/feature-v2.ts';
import type { Patch } from '../../native/addon.ts';
import { SysError, VmmError } from '../../native/errno.ts';
import { RecordSource } from '../fakes/piece-wire.ts';
import type { CtlFault } from '../fakes/state-regions-device.ts';
import { MEMORY, movedState, stateRegionsLive } from '../fakes/state-regions-live.ts';
import { FakeVfioKernel, migratable } from '../fakes/vfio-kernel.ts';
import { fuzzInputs, patienceFor } from './counts.ts';
import { type Generator, generator } from './generator.ts';

const seed = Number(process.env['FUZZ_SEED'] ?? Date.now() % 2 ** 31);
const INPUTS = fuzzInputs(1000);
const random = generator(seed);
const one = <T>(...of: readonly T[]): T => of[random(of.length)]!;
const bytes = (length: number) => Uint8Array.from({ length }, () => random(256));
console.log(`FUZZ_SEED=${seed}`);

/** Our own kinds only: a TypeError or a RangeError would be a mistake of ours. */
async function ends(work: () => Promise<unknown>): Promise<void> {
  try {
    await work();
  } catch (error) {
    if (!(error instanceof VmmError || error instanceof SysError)) throw error;
  }
}

const ERRNOS = [1, 5, 11, 14, 16, 19, 22, 25, 42, 71, 95, 110];
const NUMBERS = [0n, 1n, 2n, 3n, 4n, 5n, 6n, 7n, 8n, 4096n, 2n ** 31n, 2n ** 32n - 1n, 2n ** 63n, 2n ** 64n - 1n];

/** A v2 driver with a mind of its own, and the fds that it gave out. */
class WildKernel extends FakeVfioKernel {
  readonly open = new Set<number>();
  readonly #random: Generator;
  readonly #percent: number;
  #fds = 1000;

  constructor(random: Generator, percent: number) {
    super();
    this.#random = random;
    this.#percent = percent;
  }

  wild(): boolean {
    return this.#random(100) < this.#percent;
  }

  override ioctl(
    name: string,
    fd: number,
    request: number,
    arg: number | Uint8Array,
    patches: readonly Patch[] = [],
  ): number {
    if (this.wild()) throw new SysError(name, ERRNOS[this.#random(ERRNOS.length)]!);
    if (typeof arg === 'number' || !name.includes('MIG_DEVICE_STATE=')) {
      super.ioctl(name, fd, request, arg, patches);
    } else this.#setState(arg);
    // Whatever is an answer may be any number, but for a data fd: that one is the kernel's.
    if (typeof arg !== 'number' && !name.includes('MIG_DEVICE_STATE=') && this.wild()) {
      const view = new DataView(arg.buffer, arg.byteOffset, arg.byteLength);
      const at = 8 + 8 * this.#random(Math.max(1, Math.floor((arg.length - 8) / 8)));
      if (at + 8 <= arg.length) view.setBigUint64(at, NUMBERS[this.#random(NUMBERS.length)]!, true);
    }
    return 0;
  }

  /** The state it is in afterwards, and whether an fd comes with it, is the driver's affair. */
  #setState(arg: Uint8Array): void {
    const view = new DataView(arg.buffer, arg.byteOffset, arg.byteLength);
    const to = view.getUint32(8, true);
    const from = this.migration!.state;
    this.migration!.state = this.wild() ? this.#random(9) : to;
    const saves = [3, 6, 7].includes(to) && ![3, 6, 7].includes(from);
    const due = saves || (to === 4 && from !== 4);
    const given = this.wild() ? !due : due;
    const fd = given ? this.#fds++ : -1;
    if (given) this.open.add(fd);
    view.setInt32(12, fd, true);
  }

  override closeFd(fd: number): void {
    expect(this.open.delete(fd), `closing fd ${fd}, seed ${seed}`).toBe(true);
  }

  use(fd: number): void {
    expect(this.open.has(fd), `using fd ${fd}, seed ${seed}`).toBe(true);
  }
}

function sinkOf(kernel: WildKernel): ChunkSink {
  let pumps = 0;
  return {
    put: () => Promise.reject(new Error('v2 has a data fd')),
    pumpPieces: () => Promise.reject(new Error('v2 has a data fd')),
    pump: async (fd): Promise<PumpResult> => {
      kernel.use(fd);
      if (kernel.wild()) throw new SysError('read(data fd)', one(...ERRNOS));
      return { bytes: random(5000), end: pumps++ > 20 ? 'end' : one('more', 'drained', 'end') };
    },
  };
}

function sourceOf(kernel: WildKernel): ChunkSource {
  return {
    take: async (length) => new Uint8Array(length),
    pumpPieces: () => Promise.reject(new Error('v2 has a data fd')),
    pump: async (fd) => {
      kernel.use(fd);
      if (kernel.wild()) throw new SysError('write(data fd)', one(...ERRNOS));
    },
  };
}

async function save(live: VfioLive, sink: ChunkSink): Promise<void> {
  await ends(() => live.saveSetup());
  for (let n = random(4); n > 0; n--) {
    await ends(() => live.pending());
    await ends(() => live.iterate(sink, 5000));
  }
  await ends(() => live.quiesce());
  await ends(() => live.stop());
  await ends(() => live.drain(sink));
  if (random(4) === 0) await ends(() => live.handedOver());
}

async function load(live: VfioLive, source: ChunkSource): Promise<void> {
  await ends(() => live.loadSetup());
  for (let n = random(4); n > 0; n--) await ends(() => live.loadChunk(source, 1 + random(5000)));
  await ends(() => live.loadEnd());
  if (random(2) === 0) await ends(() => live.quiesce());
  if (random(2) === 0) await ends(() => live.run());
}

it(
  `v2 drivers that say anything do no harm (${INPUTS}, seed ${seed})`,
  async () => {
    for (let n = 0; n < INPUTS; n++) {
      const kernel = new WildKernel(random, one(0, 5, 20, 50));
      kernel.migration = { ...migratable(), flags: BigInt(random(8)), precopyInfo2: random(2) === 0, reinit: true };
      let port: ReturnType<typeof openFeatureV2> = null;
      await ends(async () => {
        port = openFeatureV2(kernel, 3, 'wild');
      });
      const opened = port as ReturnType<typeof openFeatureV2>;
      if (opened === null) continue;
      const recoverable = {
        ...{ name: 'wild', port: opened, rearm: () => undefined },
        log: { debug: () => undefined, info: () => undefined, warn: () => undefined },
        reset: async () => {
          if (kernel.wild()) throw new SysError('VFIO_DEVICE_RESET', one(...ERRNOS));
          kernel.migration!.state = 2;
        },
      };
      const policy = { fixedDowntimeMs: 0, stopCopySize: null, disabled: false, requireValidated: random(2) === 0 };
      const live = new VfioLive(recoverable, { ...policy, deviceCount: () => 1, peersMapped: async () => {} });
      for (let session = 1 + random(3); session > 0; session--) {
        if (random(2) === 0) await save(live, sinkOf(kernel));
        else await load(live, sourceOf(kernel));
        await ends(() => live.cancel());
        expect(kernel.open.size, `data fds, seed ${seed}`).toBeLessThanOrEqual(1);
      }
      opened.endSession();
      expect([...kernel.open], `data fds left open, seed ${seed}`).toEqual([]);
    }
  },
  patienceFor(INPUTS),
);

const FIELDS: readonly CtlFault[] = [
  ...(['device_state', 'config.action', 'config.size', 'memory.action', 'memory.size', 'memory.pos'] as const),
  ...(['system_memory', 'config', 'memory', 'bitmap'] as const),
];

it(
  `device state regions that fail anywhere do no harm (${INPUTS}, seed ${seed})`,
  async () => {
    const { records } = await movedState({ memory: MEMORY, config: bytes(777) });
    for (let n = 0; n < INPUTS; n++) {
      const memory = one(null, bytes(1 + random(9000)));
      const side = await stateRegionsLive({ memory, config: bytes(1 + random(900)), gvtG: random(2) === 0 });
      const { device, kernel, live, sink } = side;
      for (let m = random(4); m > 0; m--) {
        // A driver that says 4 or 8 bytes and does nothing cannot be told from one that has done it.
        const short = one({}, { short: one(0, 1, 2, 3, 5, 6, 7) });
        device.fail.push({ op: one('read', 'write'), field: one(...FIELDS), nth: 1 + random(5), ...short });
        if (random(3) === 0) device.refuse.push({ from: random(4), to: random(4) });
      }
      device.resetFails = random(10) === 0;
      if (random(2) === 0) {
        await save(live, sink);
      } else {
        await ends(() => live.loadSetup());
        for (let m = random(5); m > 0; m--) {
          const given = one(one(...records).slice(), bytes(1 + random(6000)));
          if (random(3) === 0) given[random(given.length)]! ^= 1 << random(8);
          const record = new RecordSource(kernel, given);
          const resuming = side.port.state === 'resuming';
          await ends(() => live.loadChunk(record, given.length));
          if (resuming) expect(record.left.length, `a record taken in part, seed ${seed}`).toBe(0);
        }
        await ends(() => live.loadEnd());
      }
      if (random(20) === 0) device.gone = true;
      await ends(() => live.cancel());
      expect([device.violations, device.harm], `seed ${seed}`).toEqual([[], []]);
    }
  },
  patienceFor(INPUTS),
);
