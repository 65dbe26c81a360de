// Which generation of the migration interface is found, against scripted devices of each and against regions that look like one: the facts
// that are told, the override, and that a device is left as it was met.
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { type AbiChoice, openMigration } from '../../../devices/vfio/migration/probe-abi.ts';
import { VfioContainer } from '../../../devices/vfio/open-group.ts';
import { probeDevice } from '../../../devices/vfio/probe.ts';
import { SysError, VmmError } from '../../../native/errno.ts';
import { HostTree } from '../../fakes/host-tree.ts';
import { DEVICE_FD, EINVAL, type FakeRegionDevice, LegacyKernel } from '../../fakes/legacy-kernel.ts';
import { NAME } from '../../fakes/legacy-live.ts';
import { MigrationRegionDevice } from '../../fakes/migration-region-device.ts';
import { StateRegionsDevice } from '../../fakes/state-regions-device.ts';
import { FakeHost, sizedRam } from '../../fakes/vfio-host.ts';
import { migratable, type1Info } from '../../fakes/vfio-kernel.ts';

const PCI = 2;
/** A platform device or a CCW one: VFIO_DEVICE_FLAGS_CCW. */
const CCW = 16;

interface Asked {
  readonly flags?: number;
  readonly tracks?: boolean;
  readonly abi?: AbiChoice;
  readonly v2?: bigint;
}

async function asked(device: FakeRegionDevice, { flags = PCI, tracks = true, abi = 'auto', v2 }: Asked = {}) {
  const kernel = new LegacyKernel(device);
  kernel.deviceFlags = flags;
  if (v2 !== undefined) kernel.migration = { ...migratable(), flags: v2 };
  const host = { door: kernel, fd: DEVICE_FD, name: NAME, containerTracks: tracks };
  const found = await openMigration(host, { abi, split: false });
  return { kernel, found, abi: found.port?.abi ?? null, facts: found.facts.join('\n') };
}

/** Regions of which nothing is known but what they are said to be; every register reads as `says`. */
function plain(types: readonly (readonly [number, number, number])[], says: number | null): FakeRegionDevice {
  return {
    regions: types.map(([type, subtype, size]) => ({ type: [type, subtype] as const, size, areas: [] })),
    read: (_region, _offset, into) => {
      if (says === null) throw new SysError('pread', EINVAL);
      into.fill(0);
      into[0] = says;
      return into.length;
    },
    write: () => {
      throw new SysError('pwrite', EINVAL);
    },
    memory: () => new ArrayBuffer(0),
    reset: () => {},
  };
}

const A = () => new StateRegionsDevice({ memory: new Uint8Array(100) });
const B2 = () => new MigrationRegionDevice({ abi: 'v7', type: 2 });
const B3 = (dataOffset = 64) => new MigrationRegionDevice({ abi: 'v7', type: 3, dataOffset });
const C = (dataOffset = 32) => new MigrationRegionDevice({ dataOffset });

describe('what is found', () => {
  it.each<[string, () => FakeRegionDevice, Asked, string | null]>([
    ['the feature, whatever regions there are', C, { v2: 7n }, 'v2'],
    ['the feature without STOP_COPY, and v1 regions', C, { v2: 2n }, 'v1'],
    ['device state regions with all four', A, {}, 'regions'],
    ['device state regions as GVT-g has them', () => new StateRegionsDevice({ gvtG: true }), {}, 'regions'],
    ['device state regions that track nothing', () => new StateRegionsDevice({ tracks: false }), {}, 'regions'],
    ['v7 at type 2', B2, {}, 'v7'],
    ['v7 at type 2, on a kernel before 5.8', B2, { tracks: false }, 'v7'],
    ['v7 at type 3 on a kernel before 5.8', B3, { tracks: false }, 'v7'],
    ['v7 at type 3 on a later kernel is taken for v1, unless one says so', B3, {}, 'v1'],
    ['v7 at type 3 when one says so', B3, { abi: 'v7' }, 'v7'],
    ['v1 with its data right behind its registers', C, {}, 'v1'],
    ['v1 with its data there, although no container tracks', C, { tracks: false }, 'v1'],
    ['v1 with its data at a page', () => C(4096), {}, 'v1'],
    ['v1 on what is no PCI device', () => C(4096), { flags: 1, tracks: false }, 'v1'],
    ['v1 that was asked for', () => C(4096), { abi: 'v1', tracks: false }, 'v1'],
    [
      'CCW: type 2 with subtypes 1, 2 and 3',
      () =>
        plain(
          [
            [2, 1, 68],
            [2, 2, 4096],
            [2, 3, 4096],
          ],
          1,
        ),
      { flags: CCW },
      null,
    ],
    ['CCW: subtype 1 alone', () => plain([[2, 1, 4096]], 1), { flags: CCW }, null],
    [
      'the same on PCI, with another version',
      () =>
        plain(
          [
            [2, 1, 68],
            [2, 2, 4096],
            [2, 3, 4096],
          ],
          2,
        ),
      {},
      null,
    ],
    [
      'the same on PCI, where nothing can be read',
      () =>
        plain(
          [
            [2, 1, 68],
            [2, 2, 4096],
          ],
          null,
        ),
      {},
      null,
    ],
    ['type 2, subtype 1 alone, too small for v7', () => plain([[2, 1, 64]], 1), {}, null],
    ['type 2, subtype 1 alone, unreadable', () => plain([[2, 1, 4096]], null), {}, null],
    ['type 3, subtype 1, too small for v1', () => plain([[3, 1, 32]], 1), {}, null],
    ['no region of ours at all', () => plain([[1, 1, 4096]], 1), {}, null],
    ['anything, when migration is off', C, { abi: 'off' }, null],
  ])('%s', async (_, device, how, abi) => {
    expect((await asked(device(), how)).abi).toBe(abi);
  });

  it.each<[string, StateRegionsDevice, RegExp]>([
    ['a control region of 67 bytes', new StateRegionsDevice({ ctlSize: 67 }), /no control region of at least 68 bytes/],
    ['another version', new StateRegionsDevice({ version: 2 }), /have version 2.*\nthat is no version of it/],
    ['capabilities that it does not have', new StateRegionsDevice({ extraCaps: 4 }), /capabilities 6\nthose are more/],
    ['memory in the capabilities alone', new StateRegionsDevice({ extraCaps: 1 }), /do not go together/],
    [
      'a bitmap in the capabilities alone',
      new StateRegionsDevice({ tracks: false, extraCaps: 2 }),
      /bitmap is missing/,
    ],
    ['a bitmap of less than a word', new StateRegionsDevice({ bitmapRegion: 7 }), /bitmap is missing/],
  ])('device state regions with %s are none, and that is told', async (_, device, words) => {
    const { abi, facts } = await asked(device);
    expect(abi).toBeNull();
    expect(facts).toMatch(words);
  });
});

describe('the facts', () => {
  it('say each thing that was used, in order', async () => {
    expect((await asked(C())).found.facts).toEqual([
      'it has no VFIO_DEVICE_FEATURE_MIGRATION',
      'it is a PCI device',
      'region 9 has type 3, subtype 1 and 12288 bytes',
      'in pre-copy its pending_bytes is 2032 and its data_offset is 32',
      'type 3, subtype 1: v1',
      'its device_state is RUNNING',
    ]);
    expect((await asked(B3(), { tracks: false })).found.facts.slice(3)).toEqual([
      'in pre-copy its pending_bytes is 2032 and its data_offset is 64',
      'the container has no dirty tracking, so the kernel is older than v1: v7',
      'its device_state is RUNNING',
    ]);
    expect((await asked(A())).found.facts.slice(6)).toEqual([
      'its control region would have version 1 and capabilities 3',
      'all of that fits: device state regions',
    ]);
    expect((await asked(C(), { v2: 7n })).found.facts).toEqual(['it has VFIO_DEVICE_FEATURE_MIGRATION']);
    expect((await asked(C(), { abi: 'off' })).found.facts).toEqual(['migration is off by x-migration-abi=off']);
  });

  it('of the trial: the device is put into pre-copy and back, and nothing else is written', async () => {
    const device = C();
    await asked(device);
    expect([device.states, device.bits, device.violations]).toEqual([[3, 1], 1, []]);
    const named = C();
    await asked(named, { abi: 'v1' });
    expect(named.states).toEqual([]);
  });

  it('say that data_offset could not be learnt, which proves nothing', async () => {
    const refuses = B3();
    refuses.refuse.push({ from: 1, to: 3, lands: 1 });
    const one = await asked(refuses, { tracks: false });
    expect(one.facts).toMatch(/in pre-copy its data_offset was not to be learnt \(.*EINVAL/);
    expect([one.abi, refuses.bits]).toEqual(['v7', 1]);
    const zero = B3();
    zero.says.set('data_offset', 0n);
    expect((await asked(zero, { tracks: false })).abi).toBe('v7');
    const stopped = C(4096);
    stopped.bits = 0;
    const { facts, found } = await asked(stopped);
    expect(facts).toMatch(/it is in STOP, so its data_offset was not asked for/);
    expect(found.port?.state).toBe('stop');
  });

  it('do not hide a device that does not come back from the trial', async () => {
    const device = C();
    device.refuse.push({ from: 3, to: 1, lands: 3 });
    await expect(asked(device)).rejects.toThrow(/does not come back to RUNNING \(.*x-migration-abi=v1/);
  });
});

describe('an override that is wrong', () => {
  it.each<[AbiChoice, () => FakeRegionDevice, RegExp]>([
    ['v2', C, /x-migration-abi=v2 is not what this device speaks \(found: it has no VFIO_DEVICE_FEATURE_MIGRATION\)/],
    ['v1', B2, /region 9 has type 2, subtype 1 and 12288 bytes/],
    ['v7', C, /data_offset is 32; type 3, subtype 1: v1/],
    ['v7', A, /region 10 has type 2, subtype 2/],
    ['regions', B2, /type 2, subtype 1 and 12288 bytes/],
    ['regions', () => new StateRegionsDevice({ version: 3 }), /version 3/],
  ])('%s is one line that says what was found', async (abi, device, words) => {
    const error = await asked(device(), { abi }).catch((cause: unknown) => cause);
    expect(error).toBeInstanceOf(VmmError);
    expect((error as VmmError).message).toMatch(words);
    expect((error as VmmError).message).not.toContain('\n');
    expect(error).toMatchObject({ code: 'migration-abi', exitCode: 2 });
  });
});

describe('opening', () => {
  let tree: HostTree;
  beforeEach(() => {
    tree = new HostTree();
    tree.device(NAME, 4, 'vfio-pci');
  });
  afterEach(() => tree.close());

  const AREAS = { dataOffset: 4096, areas: [{ start: 4096, length: 4096 }] };
  const container = (kernel: LegacyKernel) =>
    new VfioContainer({
      door: kernel,
      paths: tree.paths,
      host: new FakeHost(sizedRam(64 * 2 ** 20)),
      emulated: false,
    });

  it('gives the port that was found, and the types of the regions beside their areas', async () => {
    const kernel = new LegacyKernel(new MigrationRegionDevice(AREAS));
    const device = await container(kernel).open(NAME);
    expect(device.migration?.abi).toBe('v1');
    expect(device.info.regions).toMatchObject([
      { index: 9, size: 0x3000, areas: AREAS.areas, type: { type: 3, subtype: 1 } },
    ]);
  });

  it('unmaps the windows of the data section when the device is closed', async () => {
    const kernel = new LegacyKernel(new MigrationRegionDevice(AREAS));
    const device = await container(kernel).open(NAME);
    await device.migration!.setState('pre-copy');
    const pieces: unknown[] = [];
    const no = () => Promise.reject(new Error('not here'));
    await device.migration!.save({ put: no, pump: no, pumpPieces: async (all) => void pieces.push(...all) }, 1);
    expect([pieces.length, kernel.mapped]).toEqual([1, 1]);
    await device.close();
    expect(kernel.mapped).toBe(0);
  });

  it('takes a container without CAP_MIGRATION for a kernel before v1', async () => {
    const kernel = new LegacyKernel(B3());
    kernel.iommuInfo = type1Info([{ start: 0n, end: 0x7fffffffffn }], false);
    expect((await container(kernel).open(NAME)).migration?.abi).toBe('v7');
  });

  it('leaves nothing behind when the override is wrong', async () => {
    const kernel = new LegacyKernel(C());
    await expect(container(kernel).open(NAME, { abi: 'regions', split: false })).rejects.toThrow(/x-migration-abi/);
    expect(kernel.closed).toHaveLength(1);
    expect(kernel.names.at(-1)).toBe('VFIO_GROUP_UNSET_CONTAINER');
    expect((await container(kernel).open(NAME)).migration?.abi).toBe('v1');
  });

  it('for `ferry vfio info` tells the interface and the facts', async () => {
    const offer = await probeDevice(new LegacyKernel(C()), tree.paths, NAME);
    expect(offer.migration).toEqual({ abi: 'v1', flags: ['STOP_COPY', 'PRE_COPY'], stopCopySize: null });
    expect(offer.migrationFacts).toContain('in pre-copy its pending_bytes is 2032 and its data_offset is 32');
    const none = await probeDevice(new LegacyKernel(plain([[1, 1, 4096]], 1)), tree.paths, NAME);
    expect([none.migration, none.migrationFacts]).toEqual([
      null,
      [
        'it has no VFIO_DEVICE_FEATURE_MIGRATION',
        'it is a PCI device',
        'region 9 has type 1, subtype 1 and 4096 bytes',
      ],
    ]);
  });
});
