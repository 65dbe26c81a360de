// Migration v2 and the DMA log against the kernel's own words (a fake kernel that answers byte by byte): data fds, failed and overdue
// state changes, old kernels; and the dirty sources over them with real native bitmaps.
import { fstatSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { ContainerDirty } from '../../../devices/vfio/migration/container-dirty.ts';
import { DmaLog, loggingSpans, openDmaLog } from '../../../devices/vfio/migration/dma-log.ts';
import { FeatureV2, openFeatureV2 } from '../../../devices/vfio/migration/feature-v2.ts';
import { readType1Info, Type1Dma } from '../../../devices/vfio/type1-dma.ts';
import { kvmNode } from '../../../native/addon.ts';
import { sizedRam } from '../../fakes/vfio-host.ts';
import { ENOTTY, FakeVfioKernel, migratable, type1Info } from '../../fakes/vfio-kernel.ts';

const BDF = '0000:65:00.0';
const RUNNING = 2;
const STOP = 1;

function made() {
  const kernel = new FakeVfioKernel();
  const migration = migratable();
  kernel.migration = migration;
  return { kernel, migration, port: openFeatureV2(kernel, 3, BDF)! };
}

const isOpen = (fd: number) => {
  try {
    fstatSync(fd);
    return true;
  } catch {
    return false;
  }
};

describe('VFIO migration v2', () => {
  it('is not there on a device or kernel without it (ENOTTY), nor without STOP_COPY', () => {
    const kernel = new FakeVfioKernel();
    expect(openFeatureV2(kernel, 3, BDF)).toBeNull();
    kernel.migration = { ...migratable(), flags: 2n };
    expect(openFeatureV2(kernel, 3, BDF)).toBeNull();
  });

  it('keeps one data fd from PRE_COPY to STOP_COPY and closes it when the session ends', async () => {
    const { port } = made();
    await port.setState('pre-copy');
    const fd = port.dataFd!;
    await port.setState('pre-copy-p2p');
    await port.setState('stop-copy');
    expect(port.dataFd).toBe(fd);
    await port.setState('stop');
    expect(port.dataFd).toBeNull();
    expect(isOpen(fd)).toBe(false);
  });

  it('asks the kernel nothing when the state is that already', async () => {
    const { port, kernel } = made();
    const before = kernel.calls.length;
    await port.setState('running');
    expect(kernel.calls.length).toBe(before);
  });

  it('never asks for a walk that the kernel would refuse', async () => {
    const { port, kernel } = made();
    await port.setState('stop-copy');
    const before = kernel.calls.length;
    await expect(port.setState('pre-copy')).rejects.toThrow(/no way from STOP_COPY to PRE_COPY/);
    expect(kernel.calls.length).toBe(before);
    port.endSession();
  });

  it('asks where it is after a refusal: anywhere along the path, or a state that it does not know', async () => {
    const { port, migration } = made();
    migration.fail = { errno: 5, state: STOP };
    await expect(port.setState('resuming')).rejects.toThrow(
      /refused to go from RUNNING to RESUMING \(EIO\); it is in STOP/,
    );
    expect(port.state).toBe('stop');
    migration.fail = { errno: 5, state: 42 };
    await expect(port.setState('running')).rejects.toThrow(/it is in ERROR/);
    expect(port.state).toBe('error');
  });

  it('drops the session when the refusal left the saving states', async () => {
    const { port, migration } = made();
    await port.setState('pre-copy');
    const fd = port.dataFd!;
    migration.fail = { errno: 5, state: RUNNING };
    await expect(port.setState('stop-copy')).rejects.toThrow(/it is in RUNNING/);
    expect(isOpen(fd)).toBe(false);
  });

  it('treats a second data fd as a reset behind our back: both are closed', async () => {
    const { port, migration, kernel } = made();
    await port.setState('pre-copy');
    migration.secondFd = true;
    await expect(port.setState('stop-copy')).rejects.toThrow(/second data fd/);
    expect(kernel.closed.length).toBe(2);
    expect(port.sessionOpen).toBe(false);
  });

  it('treats a missing data fd as an error', async () => {
    const { port, migration } = made();
    migration.withholdFd = true;
    await expect(port.setState('resuming')).rejects.toThrow(/no data fd for RESUMING/);
  });

  it('gives up at its deadline, closes an fd that comes late, and waits for the overdue change before the next', async () => {
    const { kernel, migration } = made();
    const port = new FeatureV2({ door: kernel, fd: 3 }, BDF, { preCopy: true, p2p: true, reinit: false }, 50);
    let release = () => {};
    migration.hold = new Promise((done) => {
      release = done;
    });
    await expect(port.setState('pre-copy')).rejects.toThrow(/no answer from the driver within/);
    release();
    migration.hold = null;
    await port.setState('running');
    expect(port.state).toBe('running');
    expect(port.sessionOpen).toBe(false);
    expect(kernel.closed.length).toBe(1);
  });

  it('gives sizes where the driver has them, null where the kernel is too old', async () => {
    const { port, migration, kernel } = made();
    expect(await port.stopCopySize()).toBe(5000);
    expect(await port.precopyInfo()).toBeNull();
    await port.setState('pre-copy');
    expect(await port.precopyInfo()).toEqual({ initial: 4096, dirty: 12, reinit: false });
    kernel.answers.set('VFIO_MIG_GET_PRECOPY_INFO', ENOTTY);
    expect(await port.precopyInfo()).toBeNull();
    migration.dataSize = null;
    expect(await port.stopCopySize()).toBeNull();
    port.endSession();
  });

  it('opts in to VFIO_PRECOPY_INFO_REINIT where the driver has it, and believes the flags only then', async () => {
    const kernel = new FakeVfioKernel();
    kernel.migration = { ...migratable(), precopyInfo2: true, reinit: true };
    const port = openFeatureV2(kernel, 3, BDF)!;
    expect(kernel.migration.optedIn).toBe(true);
    await port.setState('pre-copy');
    expect(await port.precopyInfo()).toEqual({ initial: 4096, dirty: 12, reinit: true });
    kernel.migration.reinit = false;
    expect((await port.precopyInfo())?.reinit).toBe(false);
    port.endSession();
    // A device without pre-copy has no use for it.
    kernel.migration = { ...migratable(), flags: 1n, precopyInfo2: true };
    openFeatureV2(kernel, 3, BDF);
    expect(kernel.migration.optedIn).toBe(false);
  });

  it('pumps the data fd of its session, and none outside of one', async () => {
    const { port } = made();
    await port.setState('stop-copy');
    const asked: unknown[] = [];
    const wire = {
      put: () => Promise.reject(new Error('not here')),
      take: () => Promise.reject(new Error('not here')),
      pumpPieces: () => Promise.reject(new Error('not here')),
      pump: async (...args: unknown[]) => {
        asked.push(args);
        return { bytes: 7, end: 'end' as const };
      },
    };
    expect(await port.save(wire, 100)).toEqual({ bytes: 7, end: 'end' });
    await port.load({ ...wire, pump: async (...args: unknown[]) => void asked.push(args) }, 9);
    expect(asked).toEqual([
      [port.dataFd, 100],
      [port.dataFd, 9],
    ]);
    port.endSession();
    await expect(async () => port.save(wire, 1)).rejects.toThrow(/no migration session/);
  });
});

const MIB = 2 ** 20;
const ram = sizedRam(4 * MIB);
/** Two runs of RAM around a hole, one after the other in the memfd. */
const RANGES = [
  { gpa: 0, size: 3 * MIB, slice: { ram, offset: 0, size: 3 * MIB } },
  { gpa: 2 ** 32, size: MIB, slice: { ram, offset: 3 * MIB, size: MIB } },
];
const GPAS = RANGES.map(({ gpa, size }) => ({ start: gpa, length: size }));
const newBitmap = () => kvmNode().createBitmap(1024);
const pagesOf = (bitmap: ReturnType<typeof newBitmap>) => [...bitmap.runs(0, 100)];

const logOf = (kernel: FakeVfioKernel) =>
  new DmaLog({ port: openDmaLog(kernel, 3, BDF)!, ram: RANGES, newBitmap, fallback: null, bars: () => [] });

describe("the device's DMA log", () => {
  it('tracks one span below and one above 4 GiB', () => {
    expect(loggingSpans([{ start: 0, length: 10 }, ...GPAS, { start: 0xf0000000, length: 16 }], [])).toEqual([
      { start: 0, length: 0xf0000010 },
      { start: 2 ** 32, length: MIB },
    ]);
  });

  it('is ORed in at the place in RAM of each range, and counts what it alone said', async () => {
    const kernel = new FakeVfioKernel();
    expect(openDmaLog(kernel, 3, BDF)).toBeNull();
    kernel.dmaLogging = 'works';
    const log = logOf(kernel);
    await log.start(GPAS);
    kernel.dirty = [0, 5];
    const into = newBitmap();
    into.set(5, 1);
    into.set(900, 1);
    // The fake says pages 0 and 5 of each range: RAM pages 0, 5, 768, 773.
    expect(await log.collect(into)).toBe(4);
    expect(pagesOf(into)).toEqual([0, 1, 5, 1, 768, 1, 773, 1, 900, 1]);
    kernel.dirty = [];
    expect(await log.collect(into)).toBe(0);
    await log.stop();
    await log.stop();
    expect(kernel.names.filter((name) => name.includes('LOGGING_STOP')).length).toBe(1);
    into.close();
  });

  it('does not start where the kernel takes START and refuses every REPORT', async () => {
    const kernel = new FakeVfioKernel();
    kernel.dmaLogging = 'no report';
    const log = logOf(kernel);
    await expect(log.start(GPAS)).rejects.toThrow(/REPORT/);
    expect(kernel.names.at(-1)).toContain('DMA_LOGGING_STOP');
  });
});

describe("the container's dirty pages", () => {
  it('are asked mapping by mapping at 4 KiB and ORed in', async () => {
    const kernel = new FakeVfioKernel();
    const dma = new Type1Dma(kernel, 3, readType1Info(kernel, 3), { coarse: true });
    const source = new ContainerDirty(dma.dirty!, RANGES, newBitmap);
    await source.start(GPAS);
    kernel.dirty = [1];
    const into = newBitmap();
    expect(await source.collect(into)).toBe(2);
    expect(pagesOf(into)).toEqual([1, 1, 769, 1]);
    const get = kernel.calls
      .filter((call) => call.name === 'VFIO_IOMMU_DIRTY_PAGES(GET)')
      .map((call) => {
        const view = new DataView((call.arg as Uint8Array).buffer);
        return [
          view.getUint32(4, true),
          view.getBigUint64(8, true),
          view.getBigUint64(16, true),
          view.getBigUint64(24, true),
          view.getBigUint64(32, true),
        ];
      });
    expect(get).toEqual([
      [4, 0n, BigInt(3 * MIB), 4096n, 96n],
      [4, 2n ** 32n, BigInt(MIB), 4096n, 32n],
    ]);
    await source.stop();
    into.close();
  });

  it('of a mapping that is taken out come with it, and it is asked for no more until it is back', async () => {
    const kernel = new FakeVfioKernel();
    const dma = new Type1Dma(kernel, 3, readType1Info(kernel, 3), { coarse: false });
    const source = new ContainerDirty(dma.dirty!, RANGES, newBitmap);
    await source.start(GPAS);
    kernel.dirty = [1];
    await source.unmap(RANGES[1]!, dma);
    const unmap = kernel.calls.at(-1)!;
    const view = new DataView((unmap.arg as Uint8Array).buffer);
    // linux/vfio.h, struct vfio_iommu_type1_dma_unmap: argsz, flags, iova, size, and a vfio_bitmap.
    expect([unmap.name, view.getUint32(0, true), view.getUint32(4, true)]).toEqual([
      'VFIO_IOMMU_UNMAP_DMA(GET)',
      48,
      1,
    ]);
    expect([8, 16, 24, 32].map((at) => view.getBigUint64(at, true))).toEqual([2n ** 32n, BigInt(MIB), 4096n, 32n]);
    kernel.dirty = [];
    const into = newBitmap();
    const asked = kernel.names.length;
    expect(await source.collect(into)).toBe(1);
    expect(pagesOf(into)).toEqual([769, 1]);
    expect(kernel.names.slice(asked)).toEqual(['VFIO_IOMMU_DIRTY_PAGES(GET)']);
    await source.map(RANGES[1]!, dma);
    kernel.dirty = [2];
    into.clear(0, 1024);
    expect(await source.collect(into)).toBe(2);
    expect(pagesOf(into)).toEqual([2, 1, 770, 1]);
    await source.stop();
    await source.unmap(RANGES[1]!, dma);
    expect(kernel.names.at(-1)).toBe('VFIO_IOMMU_UNMAP_DMA');
    into.close();
  });

  it('of a mapping that is taken out where nobody can tell them are all of it', async () => {
    const silent = { kind: 'iommufd', coarse: false, unmap: null } as const;
    const none = async () => undefined;
    const source = new ContainerDirty({ ...silent, start: none, report: none, stop: none }, RANGES, newBitmap);
    await source.start(GPAS);
    const unmapped: number[] = [];
    await source.unmap(RANGES[1]!, { unmap: async ({ gpa }) => void unmapped.push(gpa) });
    const into = newBitmap();
    expect(await source.collect(into)).toBe(256);
    expect([unmapped, pagesOf(into)]).toEqual([[2 ** 32], [768, 256]]);
    await source.stop();
    into.close();
  });

  it('are not there where the IOMMU does not track at 4 KiB', () => {
    const kernel = new FakeVfioKernel();
    kernel.iommuInfo = type1Info([{ start: 0n, end: 0xffffn }], false);
    const info = readType1Info(kernel, 3);
    expect(new Type1Dma(kernel, 3, info, { coarse: true }).dirty).toBeNull();
    expect(info.iovaRanges).toEqual([{ start: 0, length: 0x10000 }]);
  });
});
