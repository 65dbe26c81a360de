// Dirty pages by the IOMMU's page table: precise, mapping by mapping, with real native bitmaps; what happens where the hardware does not
// track; and which source each device of a machine gets. Against a kernel in this process.
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { ContainerDirty } from '../../../devices/vfio/migration/container-dirty.ts';
import { Iommufd } from '../../../devices/vfio/open-cdev.ts';
import { createVfioPciType } from '../../../devices/vfio/pci-type.ts';
import type { ContainerDirtyPort, DmaSpace } from '../../../devices/vfio/transport.ts';
import { kvmNode } from '../../../native/addon.ts';
import { HostTree } from '../../fakes/host-tree.ts';
import { FakeIommufdKernel } from '../../fakes/iommufd-kernel.ts';
import { FakeHost, sizedRam } from '../../fakes/vfio-host.ts';
import { migratable } from '../../fakes/vfio-kernel.ts';
import { FakeVfio } from '../../fakes/vfio-transport.ts';

const BDF = '0000:65:00.0';
const SECOND = '0000:66:00.0';
const MIB = 2 ** 20;
const PAGES = 1024;
/** The first page above 4 GiB. */
const HIGH = 2 ** 20;

const ram = sizedRam(4 * MIB);
/** Two runs of RAM around a hole, one after the other in the memfd. */
const RANGES = [
  { gpa: 0, size: 3 * MIB, slice: { ram, offset: 0, size: 3 * MIB } },
  { gpa: 2 ** 32, size: MIB, slice: { ram, offset: 3 * MIB, size: MIB } },
];
const GPAS = RANGES.map(({ gpa, size }) => ({ start: gpa, length: size }));
const newBitmap = () => kvmNode().createBitmap(PAGES);

let tree: HostTree;
let kernel: FakeIommufdKernel;
let host: FakeHost;
let iommufd: Iommufd;

beforeEach(() => {
  tree = new HostTree();
  for (const [bdf, group, name] of [
    [BDF, 4, 'vfio0'],
    [SECOND, 5, 'vfio1'],
  ] as const) {
    tree.device(bdf, group, 'vfio-pci');
    tree.cdev(bdf, name);
  }
  kernel = new FakeIommufdKernel();
  kernel.tracking = true;
  host = new FakeHost(ram, RANGES);
  iommufd = new Iommufd({ door: kernel, paths: tree.paths, host, given: null });
});
afterEach(() => tree.close());

const open = (bdf = BDF) => iommufd.open({ bdf, fd: null });
const sourceOf = (dma: DmaSpace) => new ContainerDirty(dma.dirty!, RANGES, newBitmap);

describe("the IOMMU's dirty pages", () => {
  it('are those that were written since the last query, and no others, from the first round on', async () => {
    const source = sourceOf((await open()).dma);
    expect(source).toMatchObject({ name: 'iommufd', coarse: false, fallback: null });
    await source.start(GPAS);
    const into = newBitmap();
    kernel.dirty = [1, 700, HIGH + 255];
    expect(await source.collect(into)).toBe(3);
    expect([...into.runs(0, 10)]).toEqual([1, 1, 700, 1, 768 + 255, 1]);
    into.zero();
    expect(await source.collect(into)).toBe(0);
    kernel.dirty = [2];
    expect(await source.collect(into)).toBe(1);
    expect([...into.runs(0, 10)]).toEqual([2, 1]);
    await source.stop();
    into.close();
  });

  it('of before the start do not count', async () => {
    const source = sourceOf((await open()).dma);
    kernel.dirty = [5];
    await source.start(GPAS);
    const into = newBitmap();
    expect(await source.collect(into)).toBe(0);
    await source.stop();
    into.close();
  });

  it('are asked for whole mappings at 4 KiB, clearing them, between one start and one stop', async () => {
    const { dma, transport } = await open();
    const source = sourceOf(dma);
    // Two devices share one page table, and the tracker may name it twice.
    await source.start(GPAS);
    await source.start(GPAS);
    const into = newBitmap();
    await source.collect(into);
    await source.stop();
    await source.stop();
    into.close();
    const [hwpt] = [...kernel.objects].find(([, { kind }]) => kind === 'hwpt') ?? [];
    const calls = kernel.calls.filter(({ name }) => /DIRTY_(TRACKING\(o|BITMAP)/.test(name));
    expect(calls.map(({ name }) => name)).toEqual([
      'IOMMU_HWPT_SET_DIRTY_TRACKING(on)',
      'IOMMU_HWPT_GET_DIRTY_BITMAP',
      'IOMMU_HWPT_GET_DIRTY_BITMAP',
      'IOMMU_HWPT_SET_DIRTY_TRACKING(off)',
    ]);
    const gets = calls.slice(1, 3).map(({ arg }) => {
      const view = new DataView((arg as Uint8Array).buffer);
      return [
        view.getUint32(4, true),
        view.getUint32(8, true),
        ...[16, 24, 32].map((at) => view.getBigUint64(at, true)),
      ];
    });
    expect(gets).toEqual([
      [hwpt, 0, 0n, BigInt(3 * MIB), 4096n],
      [hwpt, 0, 2n ** 32n, BigInt(MIB), 4096n],
    ]);
    expect(calls[2]?.patches).toMatchObject([{ at: 40, firstPage: 768, pages: 256 }]);
    await transport.close();
  });

  it('that cannot be read are an error, which makes all RAM dirty', async () => {
    const source = sourceOf((await open()).dma);
    await source.start(GPAS);
    kernel.answers.set('IOMMU_HWPT_GET_DIRTY_BITMAP', 22);
    const into = newBitmap();
    await expect(source.collect(into)).rejects.toThrow(/IOMMU_HWPT_GET_DIRTY_BITMAP: EINVAL/);
    into.close();
  });
});

describe('an IOMMU that does not track', () => {
  beforeEach(() => {
    kernel.tracking = false;
  });
  const allocations = () => kernel.names.filter((name) => name.startsWith('IOMMU_HWPT_ALLOC'));

  it('is told by GET_HW_INFO: a table without tracking is made at once, and the log says so once', async () => {
    const { dma } = await open();
    expect(dma.dirty).toBeNull();
    expect(allocations()).toEqual(['IOMMU_HWPT_ALLOC']);
    expect(host.infos).toEqual([
      expect.stringMatching(/^0000:65:00.0: this host's IOMMU tracks no dirty pages.*all guest RAM counts as dirty/),
    ]);
  });

  it('is told by EOPNOTSUPP where the kernel does not say: falls back to a table without', async () => {
    kernel.hwInfo = 'silent';
    const { dma, transport } = await open();
    expect(dma.dirty).toBeNull();
    expect(allocations()).toEqual(['IOMMU_HWPT_ALLOC(DIRTY_TRACKING)', 'IOMMU_HWPT_ALLOC']);
    expect(host.infos).toHaveLength(1);
    await transport.close();
    expect(kernel.objects.size).toBe(0);
  });

  it('is worth a warning only for a device that can move and has no log of its own', async () => {
    kernel.migration = migratable();
    await open();
    expect(host.warnings).toEqual([expect.stringContaining('tracks no dirty pages')]);
    kernel.dmaLogging = 'works';
    await open(SECOND);
    expect(host.warnings).toHaveLength(1);
    expect(host.infos).toHaveLength(1);
  });

  it('does not take the tracking from a device behind one that does', async () => {
    const first = await open();
    kernel.tracking = true;
    const second = await open(SECOND);
    expect([first.dma.dirty, second.dma.dirty?.kind]).toEqual([null, 'iommufd']);
    expect(kernel.of('hwpt').map(({ tracks }) => tracks)).toEqual([false, true]);
  });
});

describe('a device with an emulated IOMMU', () => {
  it('is attached to the IOAS itself, takes no page table, and has no tracker', async () => {
    kernel.emulated = true;
    const { dma, transport } = await open();
    expect(dma.dirty).toBeNull();
    expect(kernel.names.filter((name) => name.startsWith('IOMMU_HWPT'))).toEqual([]);
    const [access] = kernel.of('access');
    expect(kernel.objects.get(access?.table ?? 0)?.kind).toBe('ioas');
    expect(host.infos).toEqual([expect.stringContaining('its IOMMU is emulated by its driver')]);
    await transport.close();
    expect(kernel.objects.size).toBe(0);
  });
});

describe('the dirty source of a device', () => {
  const port = (kind: ContainerDirtyPort['kind']): ContainerDirtyPort => ({
    kind,
    coarse: kind === 'container',
    start: async () => {},
    report: async () => {},
    unmap: null,
    stop: async () => {},
  });
  const dmaWith = (dirty: ContainerDirtyPort | null): DmaSpace => ({
    pageSizes: 4096n,
    iovaRanges: [],
    map: async () => {},
    unmap: async () => {},
    dirty,
    peers: null,
  });

  it('is shared by those with one container or one page table, and is all of RAM where nothing tracks', async () => {
    const table = dmaWith(port('iommufd'));
    const spaces = [table, table, dmaWith(port('iommufd')), dmaWith(port('container')), dmaWith(null)];
    const type = createVfioPciType({
      vcpuAccess: true,
      door: kvmNode(),
      paths: tree.paths,
      objects: [],
      open: async () => ({ transport: new FakeVfio({}), dma: spaces.shift() ?? null }),
    });
    const sources = [];
    for (let i = 0; i < 5; i++)
      sources.push((await type.create(host, `dev${i}`, { host: BDF, 'x-device-log': false })).dirty);
    expect(sources.map((source) => [source?.name, source?.coarse])).toEqual([
      ['iommufd', false],
      ['iommufd', false],
      ['iommufd', false],
      ['container', true],
      ['allOfRam', true],
    ]);
    expect(sources[1]).toBe(sources[0]);
    expect(new Set(sources).size).toBe(4);
  });

  it("is the device's own log where it has one, with the page table behind it", async () => {
    const type = createVfioPciType({
      vcpuAccess: true,
      door: kvmNode(),
      paths: tree.paths,
      objects: [],
      open: async () => ({ transport: new FakeVfio({}), dma: dmaWith(port('iommufd')) }),
    });
    const { dirty } = await type.create(host, 'dev0', { host: BDF });
    expect([dirty?.name, dirty?.fallback?.name]).toEqual(['deviceLog', 'iommufd']);
  });
});
