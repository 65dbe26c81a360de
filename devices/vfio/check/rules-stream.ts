// Rules about what is loaded: whole streams in any segmentation are taken, others are refused at the latest when RESUMING is left.
// linux/vfio.h, enum vfio_device_mig_state, "RESUMING -> STOP"
import type { Bench } from './bench.ts';
import type { InnerExercise } from './exerciser.ts';
import { ERROR, PRE_COPY, RESUMING, RUNNING, STOP, STOP_COPY, stateName } from './oracle.ts';
import { type Rule, type Trial, Unreachable } from './rule.ts';

export const MUST_FAIL =
  'is found to be incomplete, inconsistent, or otherwise invalid, the migration driver must fail the SET_STATE ioctl';

/** Loads and leaves RESUMING: null, or how it was refused. */
export async function tryLoad(bench: Bench, stream: Uint8Array, sizes: readonly number[] = []): Promise<string | null> {
  const refused = await bench.load(stream, sizes);
  if (refused !== null) return `write(): ${refused}`;
  const { error } = await bench.set(STOP);
  return error === null ? null : `RESUMING -> STOP: ${error}`;
}

/** A stream that is known to load, so that a refusal below means what was changed about it. */
export async function goodStream(bench: Bench): Promise<Uint8Array> {
  const stream = await bench.stream();
  const refused = await tryLoad(bench, stream);
  if (refused !== null) throw new Unreachable(`a stream of this device was refused (${refused})`);
  return stream;
}

const roundTrip: Rule = {
  name: 'stream.round-trip',
  title: 'a device takes the stream that it gave, and runs',
  cites: 'should be taken from the data transfer output of a single FD during saving from a compatible device',
  needs: [],
  async run({ bench, expect }) {
    const stream = await bench.stream();
    const refused = await tryLoad(bench, stream);
    expect(refused === null, `stream of ${stream.length} bytes loaded`, 'accepted', `${refused}`);
    if (refused !== null) return;
    const { error, state } = await bench.set(RUNNING);
    expect(state === RUNNING, 'SET RUNNING after it was loaded', 'RUNNING', error ?? stateName(state));
  },
};

const segments: Rule = {
  name: 'stream.segments',
  title: 'a stream is taken in any segmentation',
  cites:
    'The user is not required to preserve buffer segmentation when writing the data stream during the RESUMING operation',
  needs: [],
  async run({ bench, expect }) {
    const stream = await goodStream(bench);
    const few = Math.min(stream.length, 1024);
    const ways: readonly (readonly [string, readonly number[]])[] = [
      ['single bytes', new Array<number>(few).fill(1)],
      ['odd sizes', [3, 1, 5, 4093, 7, 65537]],
      ['all but its last byte, and that', [stream.length - 1]],
    ];
    for (const [what, writes] of ways) {
      const refused = await tryLoad(bench, stream, writes);
      expect(refused === null, `stream loaded by ${what}`, 'accepted', `${refused}`);
    }
  },
};

const empty: Rule = {
  name: 'stream.empty',
  title: 'RESUMING cannot be left for STOP without any data',
  cites: MUST_FAIL,
  needs: [],
  async run({ bench, expect }) {
    await goodStream(bench);
    await bench.enter(RESUMING);
    const { error } = await bench.set(STOP);
    expect(error !== null, 'RESUMING -> STOP with no data written', 'an error', 'success');
  },
};

const truncated: Rule = {
  name: 'stream.truncated',
  title: 'a stream that ends early is refused, at the latest when RESUMING is left',
  cites: MUST_FAIL,
  needs: [],
  async run({ bench, expect }) {
    const stream = await goodStream(bench);
    const cuts = new Set([1, Math.floor(stream.length / 2), stream.length - 1].filter((cut) => cut < stream.length));
    for (const cut of cuts) {
      const refused = await tryLoad(bench, stream.subarray(0, cut));
      expect(refused !== null, `the first ${cut} of ${stream.length} bytes loaded`, 'refused', 'accepted');
    }
  },
};

const oversized: Rule = {
  name: 'stream.oversized',
  title: 'data after the end of a stream is refused by write(), or when RESUMING is left',
  cites: MUST_FAIL,
  needs: [],
  async run({ bench, expect }) {
    const stream = await goodStream(bench);
    const extras: readonly (readonly [string, Uint8Array])[] = [
      ['1 byte', new Uint8Array(1)],
      ['4096 bytes', new Uint8Array(4096)],
      ['itself again', stream],
    ];
    for (const [what, extra] of extras) {
      const refused = await tryLoad(bench, Buffer.concat([stream, extra]));
      expect(refused !== null, `a whole stream and ${what} after it loaded`, 'refused', 'accepted');
    }
  },
};

/** First, middle and last: a driver may know some of it as a header, and some not at all. */
function damagedCopies(stream: Uint8Array): { readonly what: string; readonly bytes: Uint8Array }[] {
  return [...new Set([0, Math.floor(stream.length / 3), stream.length - 1])].map((at) => {
    const bytes = Uint8Array.from(stream);
    bytes[at] = (bytes[at] as number) ^ 0x5a;
    return { what: `stream with byte ${at} of ${stream.length} changed`, bytes };
  });
}

/** Damage is a finding only where the exerciser says that the stream has checksums. */
async function damaged(trial: Trial, what: string, stream: Uint8Array): Promise<void> {
  const { bench } = trial;
  if ((await tryLoad(bench, stream)) !== null) return;
  if (bench.host.exerciser?.claims.checksummed === true) trial.finding(what, 'refused', 'accepted');
  else trial.note(`${what}: accepted`);
}

const corrupted: Rule = {
  name: 'stream.corrupted',
  title: 'a damaged stream does no harm; a driver with checksums refuses it',
  cites: MUST_FAIL,
  needs: [],
  async run(trial) {
    const stream = await goodStream(trial.bench);
    for (const { what, bytes } of damagedCopies(stream)) await damaged(trial, `${what}, loaded`, bytes);
    if (stream.length < 64) return;
    const half = Math.floor(stream.length / 2);
    const swapped = Buffer.concat([stream.subarray(half), stream.subarray(0, half)]);
    await damaged(trial, 'stream with its halves swapped, loaded', swapped);
  },
};

const retried: Rule = {
  name: 'stream.retried',
  title:
    'a refusal stands: what write() refused is not loaded by STOP, and asking for STOP again without new data fails too',
  cites: MUST_FAIL,
  needs: [],
  async run({ bench, expect }) {
    const stream = await goodStream(bench);
    for (const { what, bytes } of damagedCopies(stream)) {
      const refused = await bench.load(bytes);
      if (refused === null) continue;
      // Without it the stream is incomplete, whatever was wrong with it.
      const { error } = await bench.set(STOP);
      expect(error !== null, `${what}, refused by write() (${refused}); SET STOP`, 'an error', 'success');
    }
    await bench.load(stream.subarray(0, Math.floor(stream.length / 2)));
    const first = await bench.set(STOP);
    if (first.error === null) throw new Unreachable('half a stream was accepted');
    if (first.state !== RESUMING) return;
    const second = await bench.set(STOP);
    expect(second.error !== null, 'SET STOP again after it was refused for half a stream', 'an error', 'success');
  },
};

const refusedState: Rule = {
  name: 'stream.refused-state',
  title: 'after a refusal the device is in RESUMING or ERROR, and a reset leads out',
  cites: 'must fail the SET_STATE ioctl and optionally go to the ERROR state',
  needs: [],
  async run({ bench, expect }) {
    const stream = await goodStream(bench);
    await bench.load(stream.subarray(0, stream.length - 1));
    const { error, state } = await bench.set(STOP);
    if (error === null) throw new Unreachable('a stream without its last byte was accepted');
    expect([RESUMING, ERROR].includes(state), 'GET after a refused stream', 'RESUMING or ERROR', stateName(state));
    if (!bench.device.info.canReset) return;
    const reset = await bench.reset();
    const seen = reset ?? stateName(bench.get());
    expect(seen === 'RUNNING', 'VFIO_DEVICE_RESET after a refused stream', 'RUNNING', seen);
  },
};

/** Loads into a device that has nothing left of what was saved. */
export async function hashOfLoaded(bench: Bench, inner: InnerExercise, stream: Uint8Array): Promise<string> {
  await bench.reopen();
  await bench.home();
  await inner.mutate(bench.port, 9);
  const refused = await tryLoad(bench, stream);
  if (refused !== null) return `refused (${refused})`;
  await bench.go(RUNNING);
  return inner.hash(bench.port);
}

/** A refusal is the finding of stream.round-trip. */
async function mustLoad(bench: Bench, inner: InnerExercise, stream: Uint8Array): Promise<string> {
  const hash = await hashOfLoaded(bench, inner, stream);
  if (hash.startsWith('refused')) throw new Unreachable(`a stream of this device was ${hash}`);
  return hash;
}

const innerState: Rule = {
  name: 'stream.state',
  title: 'what is loaded is what was saved: all of the internal state',
  cites: 'End of stream on the FD indicates the entire device state has been transferred',
  needs: ['inner'],
  async run({ bench, expect }) {
    const inner = bench.exerciser.inner;
    if (inner === null) return;
    await inner.mutate(bench.port, 5);
    const before = await inner.hash(bench.port);
    const data = await bench.session(STOP_COPY);
    const stream = await data.readToEnd();
    await bench.home();
    const kept = await inner.hash(bench.port);
    expect(kept === before, 'hash of the internal state after saving it', before, kept);
    const after = await mustLoad(bench, inner, stream);
    expect(after === before, 'saved, opened anew, changed, loaded; hash of the internal state', before, after);
  },
};

const precopied: Rule = {
  name: 'stream.precopied-state',
  title: 'what changes while PRE_COPY is read is in the stream',
  cites: 'The dirty_bytes field tracks device state changes relative to data previously retrieved',
  needs: ['pre-copy', 'inner'],
  async run({ bench, expect }) {
    const inner = bench.exerciser.inner;
    if (inner === null) return;
    await inner.mutate(bench.port, 5);
    const data = await bench.session(PRE_COPY);
    const head = (await data.readSome(64 * 2 ** 20)).data;
    await inner.mutate(bench.port, 7);
    const before = await inner.hash(bench.port);
    await bench.go(STOP_COPY);
    const stream = Buffer.concat([head, await data.readToEnd()]);
    const after = await mustLoad(bench, inner, stream);
    expect(after === before, 'changed in PRE_COPY, saved, loaded; hash of the internal state', before, after);
  },
};

const secondSession: Rule = {
  name: 'stream.second',
  title: 'a second session gives all of the state again, whatever the first one gave',
  cites: 'End of stream on the FD indicates the entire device state has been transferred',
  needs: ['inner'],
  async run({ bench, expect }) {
    const inner = bench.exerciser.inner;
    if (inner === null) return;
    await inner.mutate(bench.port, 5);
    const before = await inner.hash(bench.port);
    const streams: Uint8Array[] = [];
    for (let i = 0; i < 2; i++) streams.push(await (await bench.session(STOP_COPY)).readToEnd());
    await bench.home();
    if ((await hashOfLoaded(bench, inner, streams[0] as Uint8Array)) !== before) {
      throw new Unreachable('the first stream does not give the state back');
    }
    const after = await hashOfLoaded(bench, inner, streams[1] as Uint8Array);
    expect(after === before, 'saved twice, the second stream loaded; hash of the internal state', before, after);
  },
};

export const streamRules: readonly Rule[] = [
  roundTrip,
  segments,
  empty,
  truncated,
  oversized,
  corrupted,
  retried,
  refusedState,
  innerState,
  precopied,
  secondSession,
];
