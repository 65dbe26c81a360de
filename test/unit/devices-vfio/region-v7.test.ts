// The migration region of July 2019 against a scripted device written from that patch and its review: v1's data behind 64 bytes of
// registers, and dirty pfns: NONE, ALL, partial answers, page sizes, and never in the middle of a chunk. With real native bitmaps.
import { describe, expect, it } from 'vitest';
import { RegionDirty } from '../../../devices/vfio/migration/region-dirty.ts';
import { openRegionV7 } from '../../../devices/vfio/migration/region-v7.ts';
import { vfio_device_migration_info_v7 } from '../../../native/abi/vfio-legacy.ts';
import { type LegacyLive, legacyLive, loadAll, regionDoor, saveAll } from '../../fakes/legacy-live.ts';
import { MigrationRegionDevice, type RegionDeviceOptions } from '../../fakes/migration-region-device.ts';
import { sizedRam } from '../../fakes/vfio-host.ts';

const MIB = 2 ** 20;
const PAGE = 4096;
const ram = sizedRam(6 * MIB);
/** Two runs of RAM around a hole, one after the other in the memfd. */
const RANGES = [
  { gpa: 0, size: 4 * MIB, slice: { ram, offset: 0, size: 4 * MIB } },
  { gpa: 2 ** 32, size: 2 * MIB, slice: { ram, offset: 4 * MIB, size: 2 * MIB } },
];
const HIGH = 2 ** 32 / PAGE;
const PAGES = (6 * MIB) / PAGE;
const CONTENTS = Uint8Array.from({ length: 6000 }, (_, i) => (i * 31 + (i >> 5)) & 0xff);

const made = (options: RegionDeviceOptions = {}) =>
  legacyLive(new MigrationRegionDevice({ abi: 'v7', type: 2, contents: CONTENTS, ...options }), (kernel) =>
    openRegionV7(regionDoor(kernel), false),
  );

async function tracked(options: RegionDeviceOptions = {}) {
  const side = await made(options);
  const newBitmap = () => side.kernel.createBitmap(PAGES);
  const source = new RegionDirty(side.port.dirtyPages!, RANGES, newBitmap, null);
  await source.start([]);
  const into = newBitmap();
  const pages = () => [...into.runs(0, 100)];
  return { ...side, dirty: side.device.dirty!, source, into, pages };
}

describe('a v7 device', () => {
  it('moves as a v1 device does, with its data behind 64 bytes', async () => {
    const source = await made();
    const target = await made({ contents: new Uint8Array(3) });
    await loadAll(target, await saveAll(source));
    expect(target.device.contents).toEqual(CONTENTS);
    expect([source.device.violations, target.device.violations]).toEqual([[], []]);
    await target.live.run();
    expect([source.device.states, target.device.states]).toEqual([
      [3, 2],
      [4, 0, 1],
    ]);
    expect(source.port).toMatchObject({ abi: 'v7', preCopy: true, p2p: false });
  });

  it('may not place its data among its registers', async () => {
    const side = await made();
    side.device.says.set('data_offset', 63n);
    await side.live.saveSetup();
    await expect(side.live.iterate(side.sink, 10)).rejects.toThrow(/data_offset is 63, which is not between 64 and/);
  });

  it('has no ERROR: an unknown state that is read back counts as one', async () => {
    const side = await made();
    side.device.refuse.push({ from: 1, to: 3, lands: 5 });
    await expect(side.live.saveSetup()).rejects.toMatchObject({ code: 'device-reset' });
    expect([side.device.bits, side.device.resets]).toEqual([1, 1]);
  });
});

describe('dirty pfns', () => {
  it('are ORed in at the place in RAM of each range, once, and counted', async () => {
    const { live, dirty, source, into, pages, device } = await tracked();
    await live.saveSetup();
    dirty.write(0, 5, 1023, HIGH, HIGH + 511);
    into.set(7, 1);
    expect(await source.collect(into)).toBe(5);
    expect(pages()).toEqual([0, 1, 5, 1, 7, 1, 1023, 2, 1535, 1]);
    into.zero();
    expect(await source.collect(into)).toBe(0);
    expect(device.violations).toEqual([]);
    await source.stop();
    into.close();
  });

  it('are asked by writing all three registers and reading the fourth, each time', async () => {
    const { live, dirty, source, into, kernel } = await tracked();
    await live.saveSetup();
    dirty.write(3);
    kernel.accesses.length = 0;
    await source.collect(into);
    const { start_pfn, page_size, total_pfns, copied_pfns } = vfio_device_migration_info_v7;
    const ask = [
      `write 0+${start_pfn}/8`,
      `write 0+${page_size}/8`,
      `write 0+${total_pfns}/8`,
      `read 0+${copied_pfns}/8`,
    ];
    expect(kernel.accesses).toEqual([...ask, 'read 0+16/8', 'read 0+64/128', ...ask]);
  });

  it('come in parts: start and total move on by what was copied', async () => {
    const { live, dirty, source, into, pages } = await tracked();
    await live.saveSetup();
    dirty.most = 400;
    dirty.write(1, 399, 400, 1000);
    await source.collect(into);
    expect(pages()).toEqual([1, 1, 399, 2, 1000, 1]);
    expect(dirty.queries.map(({ start, total }) => [start, total])).toEqual([
      [0, 1024],
      [400, 624],
      [800, 224],
      [HIGH, 512],
    ]);
  });

  it('NONE of the rest ends the query', async () => {
    const { live, dirty, source, into, pages } = await tracked();
    await live.saveSetup();
    dirty.most = 400;
    dirty.write(2);
    await source.collect(into);
    expect(pages()).toEqual([2, 1]);
    expect(dirty.queries.map(({ start }) => start)).toEqual([0, 400, HIGH]);
  });

  it('ALL of the rest is all of the range, and is no count above the total', async () => {
    const { live, dirty, source, into, pages } = await tracked();
    await live.saveSetup();
    dirty.answer = 'all';
    expect(await source.collect(into)).toBe(PAGES);
    expect(pages()).toEqual([0, PAGES]);
    expect(dirty.queries).toHaveLength(2);
  });

  it('ALL after a part is all from there on', async () => {
    const { live, dirty, source, into, pages } = await tracked();
    await live.saveSetup();
    dirty.most = 1000;
    dirty.write(10);
    const copied = dirty.copied.bind(dirty);
    let asked = 0;
    dirty.copied = (put) => {
      asked += 1;
      if (asked === 2) dirty.answer = 'all';
      else dirty.answer = 'bitmap';
      return copied(put);
    };
    await source.collect(into);
    expect(pages()).toEqual([10, 1, 1000, 24]);
  });

  it('more than were asked for are an error that says both', async () => {
    const { live, dirty, source, into } = await tracked();
    await live.saveSetup();
    dirty.answer = 'too many';
    await expect(source.collect(into)).rejects.toThrow(/copied_pfns is 1025, but 1024 pages were asked for/);
  });

  it('whose bitmap would leave the region are an error', async () => {
    const { live, device, dirty, source, into } = await tracked();
    await live.saveSetup();
    dirty.write(1);
    device.says.set('data_offset', 0x3000n - 100n);
    await expect(source.collect(into)).rejects.toThrow(/no room for 128 bytes at data_offset 12188/);
  });

  it('are asked in the saving states only: elsewhere nobody knows, which is an error and not "none"', async () => {
    const { port, source, into, device } = await tracked();
    await expect(source.collect(into)).rejects.toThrow(/in the saving states only, and it is in RUNNING/);
    await port.setState('pre-copy');
    await source.collect(into);
    await port.setState('stop-copy');
    await source.collect(into);
    await port.setState('stop');
    await expect(source.collect(into)).rejects.toThrow(/it is in STOP/);
    expect(device.violations).toEqual([]);
  });

  it('never come in the middle of a chunk, nor a chunk in the middle of a query', async () => {
    const { live, port, dirty, source, into, sink, device, pages } = await tracked();
    await live.saveSetup();
    dirty.write(4, HIGH + 4);
    const queries: Promise<number>[] = [];
    sink.during = async () => void queries.push(source.collect(into));
    const [saved] = await Promise.all([port.save(sink, 3000), source.collect(into), port.save(sink, 3000)]);
    await Promise.all(queries);
    expect(saved.bytes).toBe(2032);
    expect(queries).toHaveLength(2);
    expect(device.violations).toEqual([]);
    expect(pages()).toEqual([4, 1, 1028, 1]);
  });

  it('are by the page size that the device takes, converted to ours', async () => {
    const { live, dirty, source, into, pages } = await tracked();
    dirty.pageSizes = [65536];
    await live.saveSetup();
    dirty.write(17, HIGH + 33);
    expect(await source.collect(into)).toBe(32);
    expect(pages()).toEqual([16, 16, 1024 + 32, 16]);
    expect(dirty.queries.map(({ start, pageSize, total }) => [start, pageSize, total])).toEqual([
      [0, 65536, 64],
      [2 ** 32 / 65536, 65536, 32],
    ]);
  });

  it('of a device whose pages are larger than RAM is aligned to are an error', async () => {
    const odd = [RANGES[0]!, { gpa: 2 ** 32 + 65536 + PAGE, size: MIB, slice: { ram, offset: 4 * MIB, size: MIB } }];
    const { live, port, kernel, dirty } = await tracked();
    dirty.pageSizes = [65536];
    await live.saveSetup();
    const source = new RegionDirty(port.dirtyPages!, odd, () => kernel.createBitmap(PAGES), null);
    await source.start([]);
    await expect(source.collect(kernel.createBitmap(PAGES))).rejects.toThrow(
      /tells dirty pages by 65536 bytes, and RAM begins at 0x100011000/,
    );
  });

  it('of a device that takes no page size of ours are an error', async () => {
    const { live, dirty, source, into } = await tracked();
    dirty.pageSizes = [2 ** 30];
    await live.saveSetup();
    await expect(source.collect(into)).rejects.toThrow(/writing page_size of region 9 failed \(EINVAL\)/);
  });

  it('leave nothing behind when tracking ends', async () => {
    const { live, source, into } = await tracked();
    await live.saveSetup();
    await source.stop();
    await source.stop();
    expect(await source.collect(into)).toBe(0);
  });
});

/** What the tracker does in a move: the last query comes after the device has stopped. */
it('a page written by the last DMA before stop-and-copy is told after it', async () => {
  const side: Awaited<ReturnType<typeof tracked>> & LegacyLive<MigrationRegionDevice> = await tracked();
  await side.live.saveSetup();
  await side.source.collect(side.into);
  side.dirty.write(100);
  await side.live.stop();
  await side.source.collect(side.into);
  expect(side.pages()).toEqual([100, 1]);
  await side.live.drain(side.sink);
  expect(side.device.violations).toEqual([]);
});
