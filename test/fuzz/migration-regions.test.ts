// Migration regions by chance. Well-behaved devices of any shape move whole. Drivers that say anything, fail anywhere or answer short end in
// an error of ours or in nothing worse: no access leaves the region, no error is a programmer's. The seed is printed; FUZZ_SEED repeats it.
// FERRY_FUZZ_INPUTS: how many devices each of the three meets.
import { expect, it } from 'vitest';
import { openMigration } from '../../devices/vfio/migration/probe-abi.ts';
import { RegionDirty } from '../../devices/vfio/migration/region-dirty.ts';
import { openRegionV1 } from '../../devices/vfio/migration/region-v1.ts';
import { openRegionV7 } from '../../devices/vfio/migration/region-v7.ts';
import { SysError, VmmError } from '../../native/errno.ts';
import { DEVICE_FD, type FakeRegionDevice, LegacyKernel } from '../fakes/legacy-kernel.ts';
import { type LegacyLive, legacyLive, loadAll, NAME, regionDoor, saveAll } from '../fakes/legacy-live.ts';
import { MigrationRegionDevice, type RegionRegister } from '../fakes/migration-region-device.ts';
import { RecordSource } from '../fakes/piece-wire.ts';
import { movedState } from '../fakes/state-regions-live.ts';
import { sizedRam } from '../fakes/vfio-host.ts';
import { fuzzInputs, patienceFor } from './counts.ts';
import { generator } from './generator.ts';

const PAGE = 4096;
const seed = Number(process.env['FUZZ_SEED'] ?? Date.now() % 2 ** 31);
console.log(`FUZZ_SEED=${seed}`);
const MOVES = fuzzInputs(60);
const DRIVERS = fuzzInputs(300);
const random = generator(seed);
const bytes = (length: number) => Uint8Array.from({ length }, () => random(256));
const one = <T>(...of: readonly T[]): T => of[random(of.length)]!;

function shape(abi: 'v1' | 'v7') {
  const header = abi === 'v1' ? 32 : 64;
  const pages = 2 + random(6);
  const start = (1 + random(pages - 1)) * PAGE;
  const areas = one([], [{ start, length: PAGE }], [{ start, length: pages * PAGE - start }]);
  const dataOffset = Math.min(one(header, header + random(3000), start), (pages - 1) * PAGE);
  const room = pages * PAGE - dataOffset;
  return { abi, size: pages * PAGE, areas, dataOffset, chunk: 1 + random(Math.min(2000, room - 16)) };
}

const live = (device: MigrationRegionDevice, split = false): Promise<LegacyLive<MigrationRegionDevice>> =>
  legacyLive(device, (kernel) => (device.dirty === null ? openRegionV1 : openRegionV7)(regionDoor(kernel), split));

it(
  `devices of any shape move whole (seed ${seed})`,
  async () => {
    for (let n = 0; n < MOVES; n++) {
      const abi = one('v1' as const, 'v7' as const);
      const contents = bytes(random(9000));
      const from = await live(new MigrationRegionDevice({ ...shape(abi), contents, preCopyChunks: random(6) }));
      const split = random(2) === 1;
      const there = { ...shape(abi), contents: bytes(3), takesPieces: split, stopAfterLoad: random(2) === 1 };
      const to = await live(
        new MigrationRegionDevice(split ? there : { ...there, size: 0x8000, dataOffset: PAGE }),
        split,
      );
      await loadAll(to, await saveAll(from, 1 + random(4000)));
      await to.live.run();
      expect(Buffer.compare(to.device.contents, contents), `move ${n} of seed ${seed}`).toBe(0);
      expect([from.device.violations, to.device.violations]).toEqual([[], []]);
      const config = bytes(1 + random(PAGE)).fill(1, 0, 1);
      const memory = one(null, bytes(1 + random(20_000)));
      const region = (1 + random(5)) * one(512, 1000, PAGE);
      const state = await movedState({ config, memory, memoryRegion: region, mapped: random(2) === 1 });
      expect(Buffer.compare(state.to.device.config, config)).toBe(0);
      if (memory !== null) expect(Buffer.compare(state.to.device.deviceMemory!, memory)).toBe(0);
      expect([state.from.device.violations, state.to.device.violations, state.to.device.harm]).toEqual([[], [], []]);
    }
  },
  patienceFor(MOVES),
);

const REGISTERS: readonly RegionRegister[] = [
  'device_state',
  'pending_bytes',
  'data_offset',
  'data_size',
  'copied_pfns',
  'data',
];
const NUMBERS = [
  0n,
  1n,
  31n,
  32n,
  63n,
  64n,
  4096n,
  0x2fffn,
  0x3000n,
  2n ** 30n,
  2n ** 32n,
  2n ** 53n,
  2n ** 63n,
  2n ** 64n - 1n,
];

function spoil(device: MigrationRegionDevice): void {
  for (let n = random(4); n > 0; n--) {
    const register = one(...REGISTERS);
    const nth = 1 + random(6);
    if (random(2) === 1) device.says.set(register, one(...NUMBERS));
    else
      device.fail.push({ op: one('read' as const, 'write' as const), register, nth, ...one({}, { short: random(9) }) });
  }
}

/** Our own kinds only: a TypeError or a RangeError would be a mistake of ours. */
async function ends(work: () => Promise<unknown>): Promise<void> {
  const error = await work().then(
    () => null,
    (thrown: unknown) => thrown,
  );
  if (error === null || error instanceof VmmError || error instanceof SysError || error === ENOUGH) return;
  throw error;
}

const ENOUGH = new Error('it would go on for ever');

function within(kernel: LegacyKernel, device: FakeRegionDevice): void {
  for (const access of kernel.accesses) {
    const [, region, offset, length] = /(\d+)\+(\d+)\/(\d+)/.exec(access)!.map(Number) as [
      number,
      number,
      number,
      number,
    ];
    expect(offset + length, `${access}, seed ${seed}`).toBeLessThanOrEqual(device.regions[region]!.size);
  }
}

it(
  `drivers that say anything do no harm (seed ${seed})`,
  async () => {
    const ram = sizedRam(2 ** 22);
    const ranges = [{ gpa: 0, size: 2 ** 22, slice: { ram, offset: 0, size: 2 ** 22 } }];
    for (let n = 0; n < DRIVERS; n++) {
      const abi = one('v1' as const, 'v7' as const);
      const device = new MigrationRegionDevice({
        abi,
        type: one(2, 3),
        areas: one([], [{ start: PAGE, length: PAGE }]),
      });
      device.dirty?.write(random(1024), random(1024));
      let side: LegacyLive<MigrationRegionDevice> | null = null;
      await ends(async () => {
        side = await live(device, random(2) === 1);
      });
      if (side === null) continue;
      const { port, kernel, sink, live: vfio } = side as LegacyLive<MigrationRegionDevice>;
      spoil(device);
      let records = 0;
      sink.during = async () => {
        records += 1;
        if (records > 50) throw ENOUGH;
      };
      const into = kernel.createBitmap(1024);
      const dirty =
        port.dirtyPages === null
          ? null
          : new RegionDirty(port.dirtyPages, ranges, () => kernel.createBitmap(1024), null);
      await dirty?.start([]);
      if (random(2) === 1) {
        await ends(() => vfio.saveSetup());
        await ends(() => vfio.pending());
        await ends(() => vfio.iterate(sink, random(5000)));
        await ends(async () => dirty?.collect(into));
        await ends(() => vfio.stop());
        await ends(async () => dirty?.collect(into));
        await ends(() => vfio.drain(sink));
      } else {
        await ends(() => vfio.loadSetup());
        const record = new RecordSource(kernel, bytes(1 + random(20_000)));
        if (port.state === 'resuming') {
          await ends(() => vfio.loadChunk(record, record.left.length));
          expect(record.left.length, `seed ${seed}`).toBe(0);
        }
        await ends(() => vfio.loadEnd());
      }
      await ends(() => vfio.cancel());
      within(kernel, device);
      into.close();
    }
  },
  patienceFor(DRIVERS),
);

it(
  `regions that hold anything are told from ours, and probing does no harm (seed ${seed})`,
  async () => {
    for (let n = 0; n < DRIVERS; n++) {
      const regions = Array.from({ length: random(5) }, () => ({
        type: [1 + random(3), 1 + random(4)] as const,
        size: one(0, 7, 31, 33, 64, 65, 68, PAGE),
        areas: [],
      }));
      const device: FakeRegionDevice = {
        regions,
        read: (_region, _offset, into) => {
          if (random(8) === 0) throw new SysError('pread', 5);
          into.fill(0);
          into[0] = random(8);
          return random(20) === 0 ? random(9) : into.length;
        },
        write: (_region, _offset, from) => {
          if (random(4) === 0) throw new SysError('pwrite', 22);
          return from.length;
        },
        memory: () => new ArrayBuffer(0),
        reset: () => {},
      };
      const kernel = new LegacyKernel(device);
      const host = { door: kernel, fd: DEVICE_FD, name: NAME, containerTracks: random(2) === 1 };
      const abi = one('auto' as const, 'v1' as const, 'v7' as const, 'regions' as const);
      await ends(() => openMigration(host, { abi, split: false }));
      within(kernel, device);
    }
  },
  patienceFor(DRIVERS),
);
