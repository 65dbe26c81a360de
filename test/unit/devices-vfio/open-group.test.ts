// Opening a device: every failure is one clear line with its remedy and leaves nothing behind; RAM is mapped once for all devices.
// Against a host tree and a kernel in this process.
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { checkIovaRanges, checkPinning } from '../../../devices/vfio/host-limits.ts';
import { lockableBytes } from '../../../devices/vfio/host-pci.ts';
import { VfioContainer } from '../../../devices/vfio/open-group.ts';
import { HostTree } from '../../fakes/host-tree.ts';
import { FakeHost, sizedRam } from '../../fakes/vfio-host.ts';
import { EINVAL, FakeVfioKernel, migratable, regionInfo, type1Info } from '../../fakes/vfio-kernel.ts';

const BDF = '0000:65:00.0';
const MIB = 2 ** 20;
let tree: HostTree;
let kernel: FakeVfioKernel;
let host: FakeHost;
let container: VfioContainer;

beforeEach(() => {
  tree = new HostTree();
  kernel = new FakeVfioKernel();
  host = new FakeHost(sizedRam(64 * MIB));
  container = new VfioContainer({ door: kernel, paths: tree.paths, host, emulated: false });
});
afterEach(() => tree.close());

const message = (bdf = BDF) =>
  container.open(bdf).then(
    () => 'opened',
    (error: Error) => error.message,
  );

describe('a device that its last user left elsewhere than in RUNNING', () => {
  beforeEach(() => {
    tree.device(BDF, 4, 'vfio-pci');
  });

  it.each([
    ['STOP', 1, 'VFIO_DEVICE_FEATURE(MIG_DEVICE_STATE=RUNNING)'],
    ['STOP_COPY', 3, 'VFIO_DEVICE_FEATURE(MIG_DEVICE_STATE=RUNNING)'],
    ['RESUMING', 4, 'VFIO_DEVICE_RESET'],
    ['ERROR', 0, 'VFIO_DEVICE_RESET'],
  ])('%s: runs again before it is used', async (_name, state, how) => {
    kernel.migration = { ...migratable(), state };
    const { migration } = await container.open(BDF);
    expect(migration?.state).toBe('running');
    const changes = kernel.names.filter((name) => /MIG_DEVICE_STATE=|RESET/.test(name));
    expect(changes).toEqual([how]);
  });

  it('and does not come back is not taken: one line', async () => {
    kernel.migration = { ...migratable(), state: 4 };
    kernel.answers.set('VFIO_DEVICE_RESET', EINVAL);
    expect(await message()).toMatch(/^0000:65:00.0 was left in RESUMING by its last user.*EINVAL.*bind it again/);
    expect(host.groupFds).toEqual([]);
  });
});

describe('a device that cannot be opened', () => {
  it('is not there, has no IOMMU, or is bound to another driver: the exact command is named', async () => {
    expect(await message()).toMatch(/no PCI device 0000:65:00.0 on this host/);
    tree.device('0000:01:00.0', null, 'vfio-pci');
    expect(await message('0000:01:00.0')).toMatch(/intel_iommu=on/);
    tree.device(BDF, 4, 'nvme');
    expect(await message()).toBe(
      '0000:65:00.0 is bound to driver nvme, not to a VFIO one: run `ferry vfio bind 0000:65:00.0` first',
    );
    tree.device('0000:02:00.0', 5, null);
    expect(await message('0000:02:00.0')).toMatch(/bound to no driver.*ferry vfio bind 0000:02:00.0/);
    expect(kernel.calls).toEqual([]);
  });

  it('shares its group with devices in use: they are named, with the commands', async () => {
    tree.device(BDF, 4, 'vfio-pci');
    tree.device('0000:65:00.1', 4, 'snd_hda_intel');
    tree.device('0000:64:00.0', 4, 'pcieport');
    kernel.viable = false;
    const text = await message();
    expect(text).toContain('0000:65:00.1 (snd_hda_intel)');
    expect(text).toContain('`ferry vfio bind 0000:65:00.1`');
    expect(text).not.toContain('64:00.0');
  });

  it('needs RAM that the IOMMU cannot reach, or reserves', async () => {
    tree.device(BDF, 4, 'vfio-pci');
    kernel.iommuInfo = type1Info([{ start: 0n, end: 0x1ffffffn }], true);
    expect(await message()).toMatch(/guest RAM reaches 0x4000000.*only up to 0x2000000 \(25 bits\)/);
    kernel.iommuInfo = type1Info(
      [
        { start: 0n, end: 0xffffffn },
        { start: 0x1800000n, end: 0x7fffffffffn },
      ],
      true,
    );
    expect(await message()).toMatch(/collides with 0x1000000-0x17fffff/);
    expect(host.groupFds).toEqual([]);
  });

  it('has too little memory to pin', async () => {
    tree.device(BDF, 4, 'vfio-pci');
    tree.memory(1024);
    expect(await message()).toMatch(/64 MiB.*only 1 MiB available/);
    tree.memory(1 << 20);
    tree.capabilities(0n);
    tree.lockLimit(8 * MIB);
    expect(await message()).toMatch(/64 MiB of locked memory, but the limit is 8 MiB.*ulimit -l 65536/);
  });

  it('gives everything back when it fails late', async () => {
    tree.device(BDF, 4, 'vfio-pci');
    kernel.answers.set('VFIO_GROUP_GET_DEVICE_FD', EINVAL);
    expect(await message()).toMatch(/0000:65:00.0 cannot be opened/);
    expect(host.groupFds).toEqual([]);
    expect(kernel.names.filter((name) => /MAP_DMA|SET_CONTAINER/.test(name))).toEqual([
      'VFIO_GROUP_SET_CONTAINER',
      'VFIO_IOMMU_MAP_DMA',
      'VFIO_IOMMU_UNMAP_DMA',
      'VFIO_GROUP_UNSET_CONTAINER',
    ]);
    kernel.answers.clear();
    expect(await message()).toBe('opened');
  });

  it('is given twice: the second is refused, and the first goes on', async () => {
    tree.device(BDF, 4, 'vfio-pci');
    const first = await container.open(BDF);
    expect(await message()).toBe('0000:65:00.0 is given twice; leave one of the two --device');
    expect(host.groupFds).toHaveLength(1);
    await first.close();
    expect(await message()).toBe('opened');
  });

  it('finds an IOMMU without interrupt remapping: EPERM of SET_IOMMU', async () => {
    tree.device(BDF, 4, 'vfio-pci');
    kernel.answers.set('VFIO_SET_IOMMU', 1);
    expect(await message()).toMatch(/interrupt remapping/);
    expect(kernel.names.at(-1)).toBe('VFIO_GROUP_UNSET_CONTAINER');
  });
});

describe('a container', () => {
  it('is opened once for several devices, whose RAM is mapped once', async () => {
    tree.device(BDF, 4, 'vfio-pci');
    tree.device('0000:65:00.1', 4, 'vfio-pci');
    tree.device('0000:66:00.0', 5, 'vfio-pci');
    const opened = await Promise.all([BDF, '0000:65:00.1', '0000:66:00.0'].map((bdf) => container.open(bdf)));
    const count = (name: string) => kernel.names.filter((each) => each === name).length;
    expect(count('VFIO_IOMMU_MAP_DMA')).toBe(1);
    expect(count('VFIO_SET_IOMMU')).toBe(1);
    expect(count('VFIO_GROUP_SET_CONTAINER')).toBe(2);
    expect(host.groupFds.length).toBe(2);
    for (const device of opened) await device.close();
    expect(count('VFIO_IOMMU_UNMAP_DMA')).toBe(1);
    expect(count('VFIO_GROUP_UNSET_CONTAINER')).toBe(2);
    expect(host.groupFds).toEqual([]);
  });

  it('maps RAM at its guest-physical address, readable and writable, by a patch', async () => {
    tree.device(BDF, 4, 'vfio-pci');
    await container.open(BDF);
    const map = kernel.calls.find((call) => call.name === 'VFIO_IOMMU_MAP_DMA')!;
    const view = new DataView((map.arg as Uint8Array).buffer);
    expect([view.getUint32(0, true), view.getUint32(4, true)]).toEqual([32, 3]);
    expect([view.getBigUint64(16, true), view.getBigUint64(24, true)]).toEqual([0n, BigInt(64 * MIB)]);
    expect(map.patches).toEqual([{ at: 8, ram: host.ram, offset: 0, length: 64 * MIB }]);
  });

  it('knows the abilities of the device fd', async () => {
    tree.device(BDF, 4, 'vfio-pci');
    kernel.migration = migratable();
    kernel.dmaLogging = 'works';
    kernel.regions = [regionInfo(0, 0x100000n, 7, [[0x1000n, 0xff000n]]), new Uint8Array(0), regionInfo(2, 0n, 0)];
    kernel.irqs = [
      { flags: 7, count: 1 },
      { flags: 9, count: 1 },
    ];
    const device = await container.open(BDF);
    expect(device.info.regions).toMatchObject([
      { index: 0, size: 0x100000, areas: [{ start: 0x1000, length: 0xff000 }] },
      { index: 2, size: 0, areas: [] },
    ]);
    expect(device.info.irqs).toEqual([
      { index: 0, count: 1, maskable: true, automasked: true, noResize: false },
      { index: 1, count: 1, maskable: false, automasked: false, noResize: true },
    ]);
    expect(device.migration).toMatchObject({ preCopy: true, p2p: true, state: 'running' });
    expect(device.dmaLog).not.toBeNull();
    expect(container.dma.dirty).not.toBeNull();
  });

  it('tells SET_IRQS eventfds, no eventfd, and the end of an index', async () => {
    tree.device(BDF, 4, 'vfio-pci');
    const { irqs } = await container.open(BDF);
    kernel.calls.length = 0;
    irqs.trigger(2, 1, [7, null]);
    irqs.disable(2);
    irqs.unmask(0, 0);
    const words = kernel.calls.map(({ arg }) => [...new Int32Array((arg as Uint8Array).slice().buffer)]);
    expect(words).toEqual([
      [28, 0x24, 2, 1, 2, 7, -1],
      [20, 0x21, 2, 0, 0],
      [20, 0x11, 0, 0, 1],
    ]);
  });
});

describe('limits', () => {
  it('of the aperture count touching ranges as one, and an unknown one as enough', () => {
    const ram = [{ gpa: 0, size: 4 * MIB, slice: { ram: sizedRam(4 * MIB), offset: 0, size: 4 * MIB } }];
    expect(() => checkIovaRanges(ram, [])).not.toThrow();
    expect(() =>
      checkIovaRanges(ram, [
        { start: 2 * MIB, length: 8 * MIB },
        { start: 0, length: 2 * MIB },
      ]),
    ).not.toThrow();
  });

  it('of pinning do not count what is resident already', () => {
    const room = { ramBytes: 100, residentBytes: 90, lockableBytes: null, availableBytes: 10 };
    expect(() => checkPinning(room)).not.toThrow();
    expect(() => checkPinning({ ...room, residentBytes: 0 })).toThrow(/MemAvailable/);
  });

  it('of locked memory do not hold for who may lock (CAP_IPC_LOCK)', () => {
    tree.lockLimit(4096);
    expect(lockableBytes(tree.paths)).toBeNull();
    tree.capabilities(1n << 13n);
    expect(lockableBytes(tree.paths)).toBe(4096);
    writeFileSync(join(tree.paths.proc, 'self/limits'), 'Max locked memory         unlimited    unlimited    bytes\n');
    expect(lockableBytes(tree.paths)).toBeNull();
  });
});
