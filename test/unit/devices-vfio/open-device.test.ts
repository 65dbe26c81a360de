// Which way a device is opened, as docs/iommufd.md states it, and the openers that the devices of one machine share.
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { chooseWay, DeviceOpener } from '../../../devices/vfio/open-device.ts';
import { createVfioPciType } from '../../../devices/vfio/pci-type.ts';
import { probeDevice } from '../../../devices/vfio/probe.ts';
import { HostTree } from '../../fakes/host-tree.ts';
import { FakeIommufdKernel } from '../../fakes/iommufd-kernel.ts';
import { FakeHost, sizedRam } from '../../fakes/vfio-host.ts';
import { migratable } from '../../fakes/vfio-kernel.ts';

const BDF = '0000:65:00.0';
const SECOND = '0000:66:00.0';
let tree: HostTree;
let kernel: FakeIommufdKernel;
let host: FakeHost;

beforeEach(() => {
  tree = new HostTree();
  kernel = new FakeIommufdKernel();
  host = new FakeHost(sizedRam(2 ** 26));
  tree.device(BDF, 4, 'vfio-pci');
  tree.device(SECOND, 5, 'vfio-pci');
});
afterEach(() => tree.close());

const way = (iommufd: string | null, fd: number | null = null) => chooseWay(tree.paths, { bdf: BDF, fd, iommufd });
const GROUP = { by: 'group' };
const OWN = { by: 'cdev', object: null };
const without = (file: string) => rmSync(join(tree.paths.dev, file));

describe('the way to a device', () => {
  it('is its group where both are there, unless an iommufd is asked for', () => {
    tree.cdev(BDF, 'vfio0');
    expect([null, 'auto', 'off'].map((word) => way(word))).toEqual([GROUP, GROUP, GROUP]);
    expect(way('on')).toEqual(OWN);
    expect(way('iommufd0')).toEqual({ by: 'cdev', object: 'iommufd0' });
  });

  it.each(['vfio/vfio', 'vfio/4'])('is the character device by itself where %s is missing', (file) => {
    tree.cdev(BDF, 'vfio0');
    without(file);
    expect([null, 'auto'].map((word) => way(word))).toEqual([OWN, OWN]);
    expect(way('off')).toEqual(GROUP);
  });

  it('is the group, whose errors name the remedy, where neither is there', () => {
    without('vfio/vfio');
    expect(way(null)).toEqual(GROUP);
    tree.cdev(BDF, 'vfio0');
    without('iommu');
    expect(way(null)).toEqual(GROUP);
  });

  it('is the character device when an open one is given; off contradicts that', () => {
    expect(way(null, 7)).toEqual(OWN);
    expect(chooseWay(tree.paths, { bdf: null, fd: 7, iommufd: null })).toEqual(OWN);
    expect(() => way('off', 7)).toThrow(/leave iommufd=off away/);
  });
});

describe('the openers of a machine', () => {
  it('share an iommufd per object, and have the group beside it', async () => {
    tree.cdev(BDF, 'vfio0');
    tree.cdev(SECOND, 'vfio1');
    const opener = new DeviceOpener(kernel, tree.paths, host, [{ id: 'iommufd0', fd: null }]);
    const wish = { fd: null, iommufd: 'iommufd0' };
    const first = await opener.open({ ...wish, bdf: BDF });
    const second = await opener.open({ ...wish, bdf: SECOND });
    expect([first.transport.kind, second.transport.kind]).toEqual(['cdev', 'cdev']);
    expect(kernel.of('ioas')).toHaveLength(1);
    await second.transport.close();
    const byGroup = await opener.open({ bdf: SECOND, fd: null, iommufd: null });
    expect(byGroup.transport.kind).toBe('group');
    expect(byGroup.dma.dirty?.kind).toBe('container');
    await first.transport.close();
    await byGroup.transport.close();
  });

  it('refuse an object that is not there, in one line', async () => {
    const opener = new DeviceOpener(kernel, tree.paths, host, []);
    await expect(opener.open({ bdf: BDF, fd: null, iommufd: 'io1' })).rejects.toThrow(
      'iommufd=io1: there is no such object: add `--object iommufd,id=io1`, or write iommufd=on',
    );
  });

  it.each([
    [{ host: BDF, fd: 2 }, /fd=2 of --device: 3 or more is wanted/],
    [{ iommufd: 'on' }, /needs host=ADDRESS/],
    [{ host: BDF, iommufd: 'iommufd7' }, /--object iommufd,id=iommufd7/],
    [{ fd: 999 }, /fd=999 of --device is not open in this process/],
  ])('are asked by the properties of --device: %j', async (properties, words) => {
    const type = createVfioPciType({ vcpuAccess: true, door: kernel, paths: tree.paths, objects: [], open: null });
    await expect(async () => type.create(host, 'dev0', properties)).rejects.toThrow(words);
  });
});

describe('ferry vfio info', () => {
  const files = { cdev: () => join(tree.paths.dev, 'vfio/devices/vfio0') };

  it('says whether there are a character device, /dev/iommu and dirty tracking by the IOMMU', async () => {
    const offer = async () => (await probeDevice(kernel, tree.paths, BDF)).iommufd;
    expect(await offer()).toEqual({ cdev: null, iommufd: false, dirtyTracking: null, note: null });
    tree.cdev(BDF, 'vfio0');
    expect(await offer()).toEqual({ cdev: files.cdev(), iommufd: true, dirtyTracking: false, note: null });
    kernel.tracking = true;
    expect(await offer()).toMatchObject({ dirtyTracking: true });
    kernel.emulated = true;
    expect(await offer()).toMatchObject({ dirtyTracking: false });
    kernel.answers.set('VFIO_DEVICE_BIND_IOMMUFD', 16);
    expect(await offer()).toMatchObject({ dirtyTracking: null, note: expect.stringContaining('EBUSY') });
    expect(kernel.objects.size).toBe(0);
  });

  it('asks through the character device where the kernel has no groups', async () => {
    tree.cdev(BDF, 'vfio0');
    without('vfio/vfio');
    kernel.migration = migratable();
    kernel.ranges = [{ start: 0n, last: 0xffffn }];
    const offer = await probeDevice(kernel, tree.paths, BDF);
    expect(offer.iommu).toEqual({ pageSizes: 4096n, iovaRanges: [{ start: 0, length: 0x10000 }], dirtyPages: false });
    expect(offer.migration).toMatchObject({ abi: 'v2' });
    expect(kernel.names.filter((name) => /GROUP|MAP/.test(name))).toEqual([]);
    expect(kernel.objects.size).toBe(0);
  });
});

describe('a mediated device', () => {
  const UUID = '83b8f4f2-509f-382f-3c1e-e6bfe0fa1001';

  it('has a container apart from those of real devices, tells its pages one by one, and needs no pinned memory', async () => {
    tree.mediated(UUID, 7);
    const opener = new DeviceOpener(kernel, tree.paths, host, []);
    const backed = await opener.open({ bdf: BDF, fd: null, iommufd: null });
    tree.memory(0);
    const mediated = await opener.open({ bdf: UUID, fd: null, iommufd: null });
    expect([backed.dma.dirty?.coarse, mediated.dma.dirty?.coarse]).toEqual([true, false]);
    expect(kernel.names.filter((name) => name === 'VFIO_SET_IOMMU')).toHaveLength(2);
    await expect(opener.open({ bdf: SECOND, fd: null, iommufd: null })).resolves.toBeDefined();
    await backed.transport.close();
    await mediated.transport.close();
  });
});
