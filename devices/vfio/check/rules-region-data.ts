// Rules about what a migration region gives and takes, for v1 and v7: iterations of saving, chunks as a whole, what comes back. Sentences are of
// linux/vfio.h of Linux 5.8 and of the patch of July 2019, of the part that both have.
import { bitsName, PRE_COPY, type RegionBench, RUNNING, STOP_AND_COPY, STOPPED } from './bench-region.ts';
import { type Rule, type Trial, Unreachable } from './rule.ts';
import { loadIntoSecond, loadOtherSize } from './second-device.ts';

type RegionRule = Rule<RegionBench>;

const PAGE = 4096n;
/** Chunks in whose midst registers are read again. */
const LOOKED_AT = 64;

const pending: RegionRule = {
  name: 'region.pending',
  title: 'pending_bytes may be read again and again: nothing is lost by it',
  cites: 'Repeated read on pending_bytes at this stage should have no side effects.',
  needs: [],
  async run({ bench, expect }) {
    const whole = await goodChunks(bench);
    await bench.enter(STOP_AND_COPY);
    const chunks: Uint8Array[] = [];
    for (;;) {
      const reads = [await bench.pending(), await bench.pending(), await bench.pending()];
      const same = reads.every((each) => each === reads[0]);
      expect(same, `pending_bytes read three times before chunk ${chunks.length}`, `${reads[0]}`, reads.join(', '));
      if (!same) return;
      if (reads[0] === 0n || chunks.length > 4 * whole.length) break;
      chunks.push((await bench.chunk()).bytes);
    }
    const refused = await bench.tryLoad(chunks);
    expect(refused === null, 'saved with pending_bytes read three times each, loaded', 'accepted', `${refused}`);
  },
};

const offset: RegionRule = {
  name: 'region.data-offset',
  title: 'data_offset lies in the data section, page-aligned where that is mapped, with room for the chunk',
  cites: 'is always followed by the data section in the region, so data_offset will always be nonzero.',
  needs: [],
  async run({ bench, expect }) {
    await bench.enter(STOP_AND_COPY);
    const { size, areas } = bench.region.place;
    for (let i = 0; i < LOOKED_AT && (await bench.pending()) > 0n; i++) {
      const at = await bench.dataOffset();
      const length = await bench.dataSize();
      const fits = at >= BigInt(bench.headerBytes) && length > 0n && at + length <= BigInt(size);
      const room = `${length > 0n ? '' : 'some data '}between ${bench.headerBytes} and ${size}`;
      expect(fits, `data_offset and data_size of chunk ${i}`, room, `${length} bytes at ${at}`);
      const mapped = areas.some(({ start, length: room }) => at >= BigInt(start) && at < BigInt(start + room));
      expect(!mapped || at % PAGE === 0n, `data_offset of chunk ${i}, which can be mapped`, 'page-aligned', `${at}`);
      if (!fits) return;
    }
    await bench.home();
  },
};

const repeated: RegionRule = {
  name: 'region.chunk-repeated',
  title: 'while a chunk is current, data_offset, data_size and the data stay the same',
  cites: 'read data_size to get the size in bytes of the data copied in the migration region during the _SAVING state',
  needs: [],
  async run({ bench, expect }) {
    await bench.enter(STOP_AND_COPY);
    for (let i = 0; i < LOOKED_AT && (await bench.pending()) > 0n; i++) {
      const one = await bench.chunk();
      const two = await bench.chunk();
      const said = ({ offset: at, bytes }: typeof one) => `${bytes.length} bytes at ${at}`;
      expect(said(one) === said(two), `data_offset and data_size of chunk ${i} read twice`, said(one), said(two));
      const equal = Buffer.compare(one.bytes, two.bytes) === 0;
      if (said(one) === said(two)) expect(equal, `chunk ${i} read twice`, 'the same data', 'others');
    }
    await bench.home();
  },
};

const ends: RegionRule = {
  name: 'region.end',
  title: 'in stop-and-copy pending_bytes gets to 0, and stays there',
  cites: 'The number of pending bytes still to be migrated from the vendor driver.',
  needs: [],
  async run({ bench, expect }) {
    await bench.enter(STOP_AND_COPY);
    await bench.chunks();
    for (let i = 0; i < 3; i++) {
      const left = await bench.pending();
      expect(left === 0n, 'pending_bytes after all data were read', '0', `${left}`);
    }
    await bench.home();
  },
};

const early: RegionRule = {
  name: 'region.pre-copy-left',
  title: 'pre-copy can be left at any time, also in the midst of a chunk, and the rest still comes',
  cites: 'The user must not be required to consume all migration data before the device transitions to a new state',
  needs: [],
  async run({ bench, expect }) {
    for (const [most, staged] of [
      [0, false],
      [0, true],
      [1, false],
    ] as const) {
      await bench.enter(PRE_COPY);
      const before = await bench.chunks(most);
      if (staged && (await bench.pending()) > 0n) await bench.dataOffset();
      const did = `pre-copy left after ${before.length} chunks${staged ? ', one not read' : ''}`;
      const { error, state } = await bench.put(STOP_AND_COPY);
      expect(state === STOP_AND_COPY, did, bitsName(STOP_AND_COPY), error ?? bitsName(state));
      if (state !== STOP_AND_COPY) return;
      if (staged) continue;
      const refused = await bench.tryLoad([...before, ...(await bench.chunks())]);
      expect(refused === null, `${did}; all of the data loaded`, 'accepted', `${refused}`);
    }
  },
};

const roundTrip: RegionRule = {
  name: 'region.round-trip',
  title: 'a device takes the chunks that it gave, in their order, and runs',
  cites: 'Data provided through the migration region should be used to resume the device.',
  needs: [],
  async run({ bench, expect, note }) {
    const chunks = await bench.save();
    const refused = await bench.load(chunks);
    expect(refused === null, `${chunks.length} chunks loaded`, 'accepted', `${refused}`);
    if (refused !== null) return;
    const run = await bench.put(RUNNING);
    const seen = run.error ?? bitsName(run.state);
    expect(run.state === RUNNING, 'RUNNING after all was loaded', bitsName(RUNNING), seen);
    // Not among the arcs that the text draws, and what validates before the source is let go.
    if ((await bench.load(chunks)) !== null) return;
    const { error, state } = await bench.put(STOPPED);
    if (error !== null) note(`RESUMING -> STOP is refused (${error}, then in ${bitsName(state)}): it judges later`);
  },
};

/** Loads into a device that has nothing left of what was saved, and lets it run. */
async function tryHash(bench: RegionBench, chunks: readonly Uint8Array[]): Promise<string> {
  const { inner } = bench.exerciser;
  if (inner === null) throw new Unreachable('the exerciser has no inner state');
  await bench.reopen();
  await bench.home();
  await inner.mutate(bench.port, 9);
  const refused = await bench.load(chunks);
  if (refused !== null) return `refused (${refused})`;
  const { error, state } = await bench.put(RUNNING);
  if (state !== RUNNING) return `refused (RESUMING -> RUNNING: ${error}, in ${bitsName(state)})`;
  return inner.hash(bench.port);
}

async function hashOfLoaded(bench: RegionBench, chunks: readonly Uint8Array[]): Promise<string> {
  const hash = await tryHash(bench, chunks);
  if (hash.startsWith('refused')) throw new Unreachable(`data of this device were ${hash}`);
  return hash;
}

const state: RegionRule = {
  name: 'region.state',
  title: 'what is loaded is what was saved: all of the internal state, also in a second save',
  cites: 'should use the device state data received through the migration region to resume the device',
  needs: ['inner'],
  async run({ bench, expect }) {
    const { inner } = bench.exerciser;
    if (inner === null) return;
    for (const seed of [5, 6]) {
      await inner.mutate(bench.port, seed);
      const before = await inner.hash(bench.port);
      const chunks = await bench.save();
      const after = await hashOfLoaded(bench, chunks);
      expect(after === before, 'saved, opened anew, changed, loaded; hash of the internal state', before, after);
    }
  },
};

const precopied: RegionRule = {
  name: 'region.pre-copied-state',
  title: 'what changes while pre-copy is read is in the data',
  cites: 'start gathering the device state while the application is still running and send the device state data',
  needs: ['inner'],
  async run({ bench, expect }) {
    const { inner } = bench.exerciser;
    if (inner === null) return;
    await inner.mutate(bench.port, 5);
    await bench.enter(PRE_COPY);
    const head = await bench.chunks(4096);
    await inner.mutate(bench.port, 7);
    const before = await inner.hash(bench.port);
    await bench.go(STOP_AND_COPY);
    const chunks = [...head, ...(await bench.chunks())];
    const after = await hashOfLoaded(bench, chunks);
    expect(after === before, 'changed in pre-copy, saved, loaded; hash of the internal state', before, after);
  },
};

/** No text says that a driver has to find out: a finding only where the exerciser claims that it does. */
function mustRefuse({ bench, finding, note }: Trial<RegionBench>, what: string, refused: string | null): void {
  if (refused !== null) return;
  if (bench.host.exerciser?.claims.checksummed === true) finding(what, 'refused', 'accepted');
  else note(`${what}: accepted`);
}

async function goodChunks(bench: RegionBench): Promise<Uint8Array[]> {
  const chunks = await bench.save();
  const refused = await bench.tryLoad(chunks);
  if (refused !== null) throw new Unreachable(`data of this device were refused (${refused})`);
  return chunks;
}

const truncated: RegionRule = {
  name: 'region.truncated',
  title: 'data that end early are refused, at the latest when RUNNING is entered',
  cites: 'If the device state transition fails, the vendor driver should return an appropriate -errno',
  needs: [],
  async run(trial) {
    const { bench } = trial;
    const chunks = await goodChunks(bench);
    if (chunks.length < 2) throw new Unreachable('all of its data are one chunk');
    for (const count of new Set([1, chunks.length - 1])) {
      const refused = await bench.tryLoad(chunks.slice(0, count));
      mustRefuse(trial, `the first ${count} of ${chunks.length} chunks loaded`, refused);
    }
  },
};

const atomic: RegionRule = {
  name: 'region.chunk-whole',
  title: 'a chunk of which a part is committed is refused, at the latest when RUNNING is entered',
  cites: 'write the size in bytes of the data copied in the migration region during the _RESUMING state',
  needs: [],
  async run(trial) {
    const { bench } = trial;
    const chunks = await goodChunks(bench);
    for (const which of new Set([0, chunks.length - 1])) {
      const length = chunks[which]?.length ?? 0;
      if (length < 2) continue;
      const half = Math.floor(length / 2);
      const refused = await bench.tryLoad(chunks, (i) => (i === which ? half : null));
      mustRefuse(trial, `chunk ${which} of ${chunks.length} committed with ${half} of its ${length} bytes`, refused);
    }
  },
};

const corrupted: RegionRule = {
  name: 'region.corrupted',
  title: 'damaged data, or chunks out of their order, do no harm; a driver with checksums refuses them',
  cites: 'Data provided through the migration region should be used to resume the device.',
  needs: [],
  async run(trial) {
    const { bench } = trial;
    const chunks = await goodChunks(bench);
    for (const which of new Set([0, chunks.length - 1])) {
      const damaged = chunks.map((bytes) => bytes.slice());
      const bytes = damaged[which] as Uint8Array;
      const at = bytes.length - 1;
      bytes[at] = (bytes[at] as number) ^ 0x5a;
      mustRefuse(trial, `chunk ${which} with byte ${at} changed, loaded`, await bench.tryLoad(damaged));
    }
    const [one, two, ...rest] = chunks;
    if (one === undefined || two === undefined) return;
    mustRefuse(trial, 'the first two chunks swapped, loaded', await bench.tryLoad([two, one, ...rest]));
  },
};

const intoSecond: RegionRule = {
  name: 'region.into-second',
  title: 'a second device takes the chunks and has all of the internal state; both run on, each for itself',
  cites: 'should use the device state data received through the migration region to resume the device',
  needs: ['inner', 'second', 'same-kind'],
  run: (trial) => loadIntoSecond(trial, (bench) => bench.save(), tryHash),
};

const otherSize: RegionRule = {
  name: 'region.other-size',
  title: 'a device of another size refuses the data (the text does not ask for it: a note where it does not)',
  cites: 'If the device state transition fails, the vendor driver should return an appropriate -errno',
  needs: ['other-size'],
  run: (trial) =>
    loadOtherSize(
      trial,
      goodChunks,
      (bench, data) => bench.tryLoad(data),
      (from, into) => trial.note(`data of ${from} loaded into ${into}: accepted`),
    ),
};

export const regionDataRules: readonly RegionRule[] = [
  pending,
  offset,
  repeated,
  ends,
  roundTrip,
  early,
  state,
  precopied,
  truncated,
  atomic,
  corrupted,
  intoSecond,
  otherSize,
];
