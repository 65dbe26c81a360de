// The device type vfio-pci: which dirty source a device gets, and the properties that concern the older migration interfaces.
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { PciFunction, PropertyValue } from '../../../devices/contract.ts';
import { createVfioPciType } from '../../../devices/vfio/pci-type.ts';
import type { RegionDirtyPort } from '../../../devices/vfio/transport.ts';
import { HostTree } from '../../fakes/host-tree.ts';
import { LegacyKernel } from '../../fakes/legacy-kernel.ts';
import { NAME } from '../../fakes/legacy-live.ts';
import { MigrationRegionDevice } from '../../fakes/migration-region-device.ts';
import { FakeHost, sizedRam } from '../../fakes/vfio-host.ts';
import { type FakeOptions, FakeVfio } from '../../fakes/vfio-transport.ts';

const MIB = 2 ** 20;
let tree: HostTree;
beforeEach(() => {
  tree = new HostTree();
  tree.device(NAME, 4, 'vfio-pci');
});
afterEach(() => tree.close());

const PORT: RegionDirtyPort = { start: () => {}, collect: async () => {}, stop: () => {} };

async function sourceOf(options: FakeOptions, region: RegionDirtyPort | null, properties = {}) {
  const fake = new FakeVfio(options);
  if (region !== null) Object.defineProperty(fake.migration, 'dirtyPages', { value: region });
  const open = async () => ({ transport: fake, dma: null });
  const type = createVfioPciType({
    vcpuAccess: true,
    objects: [],
    door: new LegacyKernel(new MigrationRegionDevice()),
    paths: tree.paths,
    open,
  });
  const device = await type.create(new FakeHost(sizedRam(MIB)), 'dev0', { host: NAME, ...properties });
  return { name: device.dirty!.name, fallback: device.dirty!.fallback?.name ?? null };
}

describe('the dirty source', () => {
  it('is the log of the device, else its migration region, else what there is without them', async () => {
    expect(await sourceOf({ dmaLog: true }, PORT)).toEqual({ name: 'deviceLog', fallback: 'allOfRam' });
    expect(await sourceOf({ dmaLog: false }, PORT)).toEqual({ name: 'region', fallback: 'allOfRam' });
    expect(await sourceOf({ dmaLog: false }, null)).toEqual({ name: 'allOfRam', fallback: null });
  });

  it('is none of the device’s own with x-device-log=off', async () => {
    for (const dmaLog of [true, false]) {
      expect((await sourceOf({ dmaLog }, PORT, { 'x-device-log': false })).name).toBe('allOfRam');
    }
  });
});

describe('devices of one machine', () => {
  it('with one IOMMU space reach each other’s BARs, and their logs take that in', async () => {
    const fakes = [0, 1].map(() => new FakeVfio({ dmaLog: true }));
    const mapped: number[] = [];
    const peers = { map: async (gpa: number) => void mapped.push(gpa), unmap: async () => undefined };
    const dma = { pageSizes: 4096n, iovaRanges: [], map: async () => {}, unmap: async () => {}, dirty: null, peers };
    const next = fakes.values();
    const type = createVfioPciType({
      vcpuAccess: true,
      objects: [],
      door: new LegacyKernel(new MigrationRegionDevice()),
      paths: tree.paths,
      open: async () => ({ transport: next.next().value!, dma }),
    });
    const host = new FakeHost(sizedRam(MIB));
    const made = [await type.create(host, 'dev0', { host: NAME }), await type.create(host, 'dev1', { host: NAME })];
    const first = made[0] as PciFunction;
    first.writeConfig(0x10, 4, 0xc0000000);
    first.writeConfig(4, 2, 0x0006);
    await made[1]!.live!.run();
    expect(mapped).toEqual([0xc0000000]);
    await made[1]!.dirty!.start([{ start: 0, length: MIB }]);
    const { ranges } = fakes[1]!.dmaLog!;
    expect(ranges).toEqual([{ start: 0, length: 0xc0000000 + fakes[0]!.info.regions[0]!.size }]);
  });
});

describe('a mediated device', () => {
  const UUID = '83b8f4f2-509f-382f-3c1e-e6bfe0fa1001';
  const open = (properties: Record<string, PropertyValue>, door = new LegacyKernel(new MigrationRegionDevice())) =>
    createVfioPciType({ vcpuAccess: true, objects: [], door, paths: tree.paths, open: null }).create(
      new FakeHost(sizedRam(MIB)),
      'dev0',
      properties,
    );

  it('that is not there is refused with the way to make it', async () => {
    await expect(open({ sysfsdev: `/sys/bus/mdev/devices/${UUID}` })).rejects.toThrow(
      /no mediated device 83b8f4f2.*mdev_supported_types/,
    );
  });
});

describe('properties', () => {
  const create = (kernel: LegacyKernel, properties: Record<string, PropertyValue>) =>
    createVfioPciType({ vcpuAccess: true, objects: [], door: kernel, paths: tree.paths, open: null }).create(
      new FakeHost(sizedRam(MIB)),
      'dev0',
      {
        host: NAME,
        ...properties,
      },
    );

  it('x-migration-abi takes six words; another is refused before the device is touched', async () => {
    const kernel = new LegacyKernel(new MigrationRegionDevice());
    await expect(create(kernel, { 'x-migration-abi': 'v3' })).rejects.toThrow(
      'x-migration-abi=v3: one of auto, v2, v1, v7, regions, off is wanted',
    );
    expect(kernel.calls).toEqual([]);
  });

  it('x-migration-abi reaches the probing', async () => {
    const kernel = new LegacyKernel(new MigrationRegionDevice());
    await expect(create(kernel, { 'x-migration-abi': 'regions' })).rejects.toThrow(
      /x-migration-abi=regions is not what/,
    );
    expect(kernel.closed).toHaveLength(1);
  });

  it('require-validated keeps a device from being loaded that judges late; without it the load begins', async () => {
    const fake = new FakeVfio({ dmaLog: false });
    const door = new LegacyKernel(new MigrationRegionDevice());
    const type = createVfioPciType({
      vcpuAccess: true,
      objects: [],
      door,
      paths: tree.paths,
      open: async () => ({ transport: fake, dma: null }),
    });
    Object.defineProperties(fake.migration!, { abi: { value: 'v1' }, finishLoad: { value: async () => 'late' } });
    const host = new FakeHost(sizedRam(MIB));
    const strict = await type.create(host, 'dev0', { host: NAME, 'require-validated': true });
    await expect(strict.live!.loadSetup()).rejects.toThrow(/require-validated=on/);
    const lenient = await type.create(host, 'dev1', { host: NAME });
    await lenient.live!.loadSetup();
    expect(fake.migration!.state).toBe('resuming');
  });
});
