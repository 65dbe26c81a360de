// The destination against bad streams: a whole recorded migration cut at every byte, and with every byte outside page contents flipped, must
// be refused and the guest never run; page contents carry no check sum (main-job.md), so those are left out. Then random damage: no crash,
// no hang, no guest. The seed is printed; FUZZ_SEED repeats it, FERRY_FUZZ_INPUTS is how many times (6000, half of them
// behind the last page, where the devices are).
import { describe, expect, it } from 'vitest';
import { receiveFrom } from '../../migration/destination.ts';
import { channelOver } from '../fakes/memory-channel.ts';
import { Diary, DiaryMachine } from '../fakes/migration-machine.ts';
import { migratePair, receiveHost } from '../fakes/migration-pair.ts';
import { fuzzInputs, patienceFor } from './counts.ts';
import { generator } from './generator.ts';

const IDS = ['dev0'];
const DEVICE_BYTES = 1500;
const PAGES = 6;
const INPUTS = fuzzInputs(6000);

interface Recorded {
  readonly bytes: Uint8Array;
  /** The EOF record. */
  readonly eofAt: number;
  readonly contents: readonly (readonly [number, number])[];
}

async function record(): Promise<Recorded> {
  const pair = await migratePair({ deviceIds: IDS, pages: PAGES, deviceBytes: DEVICE_BYTES });
  expect(pair.outcome.status).toBe('completed');
  const bytes = pair.channels.written();
  // EOF is followed by the description: 06, length, JSON.
  const json = Buffer.from(bytes).lastIndexOf('{"page_size"');
  return { bytes, eofAt: json - 6, contents: pair.channels.source.contents };
}

/** Replays the bytes to a destination; what it sends back goes nowhere. */
async function replay(bytes: Uint8Array): Promise<{ ran: boolean; error: Error | null; machine: DiaryMachine | null }> {
  let machine: DiaryMachine | null = null;
  const incoming = receiveFrom(channelOver(bytes), receiveHost(IDS), {
    checkCpuContract: () => [],
    buildForIncoming: async (config) => {
      const options = {
        filled: false,
        deviceIds: IDS,
        pages: Math.min(64, config.memory / 4096),
        deviceBytes: DEVICE_BYTES,
      };
      machine = new DiaryMachine(config, new Diary(), options);
      return machine;
    },
  });
  const error = await incoming.machine.then(
    () => null,
    (thrown: Error) => thrown,
  );
  const built = machine as DiaryMachine | null;
  if (error !== null && built !== null) expect(built.closed).toBe(true);
  return { ran: built?.ran ?? false, error, machine: built };
}

describe('a recorded stream', () => {
  it('is taken as it was, and runs', async () => {
    const { bytes } = await record();
    const { ran, error } = await replay(bytes);
    expect(error).toBeNull();
    expect(ran).toBe(true);
  });

  it('cut at every byte up to EOF never runs the guest', async () => {
    const { bytes, eofAt } = await record();
    for (let at = 0; at <= eofAt; at += 1) {
      const { ran, error } = await replay(bytes.subarray(0, at));
      if (ran || error === null) throw new Error(`cut at ${at} of ${bytes.length}: the guest ran`);
    }
    expect((await replay(bytes.subarray(0, eofAt + 1))).ran).toBe(true);
  });

  it('with any byte outside page contents flipped is refused', async () => {
    const { bytes, eofAt, contents } = await record();
    for (let at = 0; at <= eofAt; at += 1) {
      if (contents.some(([from, to]) => at >= from && at < to)) continue;
      for (const bit of [1 << (at % 8), 0xff]) {
        const damaged = Uint8Array.from(bytes); // Not slice(): a Buffer's shares its memory.
        damaged[at]! ^= bit;
        const { ran, error } = await replay(damaged);
        if (ran || error === null) throw new Error(`flipped by ${bit} at ${at} of ${bytes.length}: the guest ran`);
      }
    }
  });

  it(
    'with random damage is refused or left whole, and never hangs',
    async () => {
      const seed = Number(process.env['FUZZ_SEED'] ?? Date.now() % 2 ** 31);
      console.log(`FUZZ_SEED=${seed}`);
      const random = generator(seed);
      const { bytes, eofAt, contents } = await record();
      const pagesEnd = Math.max(...contents.map(([, to]) => to));
      for (let n = 0; n < INPUTS; n += 1) {
        const damaged = damage(bytes.subarray(0, eofAt + 1), n % 2 === 0 ? 0 : pagesEnd, random);
        const { ran, error, machine } = await replay(damaged);
        expect(ran).toBe(error === null);
        // Only page contents may have changed.
        if (ran)
          expect([machine!.rax, machine!.devices[0]!.register, machine!.devices[0]!.contents.length]).toEqual([
            42,
            0xbeef,
            DEVICE_BYTES,
          ]);
      }
    },
    patienceFor(INPUTS),
  );
});

/** Removes, doubles or overwrites a run of bytes. */
function damage(bytes: Uint8Array, from: number, random: (below: number) => number): Uint8Array {
  const at = from + random(bytes.length - from);
  const length = 1 + random(40);
  const run = bytes.subarray(at, at + length);
  switch (random(3)) {
    case 0:
      return Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + length)]);
    case 1:
      return Buffer.concat([bytes.subarray(0, at), run, bytes.subarray(at)]);
    default: {
      const noise = run.map(() => random(256));
      return Buffer.concat([bytes.subarray(0, at), noise, bytes.subarray(at + noise.length)]);
    }
  }
}
