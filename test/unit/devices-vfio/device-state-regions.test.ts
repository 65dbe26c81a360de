// The device state regions of February 2019 against scripted devices written from the patch and from GVT-g's: whole moves, the order of
// registers, a stop that loses no dirty page, bounds that keep GVT-g's host whole. What goes wrong is in device-state-faults.test.ts.
import { describe, expect, it } from 'vitest';
import { RegionDirty } from '../../../devices/vfio/migration/region-dirty.ts';
import type { VfioState } from '../../../devices/vfio/transport.ts';
import { saveAll } from '../../fakes/legacy-live.ts';
import { RecordSource } from '../../fakes/piece-wire.ts';
import type { StateDeviceOptions } from '../../fakes/state-regions-device.ts';
import { CONFIG, FULL, MEMORY, movedState, stateRegionsLive } from '../../fakes/state-regions-live.ts';
import { sizedRam } from '../../fakes/vfio-host.ts';

const MIB = 2 ** 20;
const PAGE = 4096;
const ram = sizedRam(6 * MIB);
const RANGES = [
  { gpa: 0, size: 4 * MIB, slice: { ram, offset: 0, size: 4 * MIB } },
  { gpa: 2 ** 32, size: 2 * MIB, slice: { ram, offset: 4 * MIB, size: 2 * MIB } },
];
const HIGH = 2 ** 32 / PAGE;
const PAGES = (6 * MIB) / PAGE;
const HEADER = 24;
async function tracked(options: StateDeviceOptions = {}) {
  const side = await stateRegionsLive(options);
  const newBitmap = () => side.kernel.createBitmap(PAGES);
  const source = new RegionDirty(side.port.dirtyPages!, RANGES, newBitmap, null);
  await source.start([]);
  const into = newBitmap();
  return { ...side, source, into, pages: () => [...into.runs(0, 1000)] };
}

describe('a whole move', () => {
  it.each<[string, StateDeviceOptions, string]>([
    ['config and memory, trapped', FULL, 'bytes+fd'],
    ['config and memory, mapped', { ...FULL, mapped: true }, 'bytes+mapping'],
    ['config alone', { config: CONFIG }, 'bytes+fd'],
    ['a device without a bitmap', { ...FULL, tracks: false }, 'bytes+fd'],
  ])('arrives equal: %s', async (_, options, kinds) => {
    const { from, to, left } = await movedState(options);
    expect(to.device.config).toEqual(CONFIG);
    if (options.memory) expect(to.device.deviceMemory).toEqual(MEMORY);
    expect(new Set(left)).toEqual(new Set([0]));
    expect(new Set(from.sink.kinds)).toEqual(new Set([kinds]));
    expect([from.device.violations, to.device.violations, to.device.harm]).toEqual([[], [], []]);
    expect(to.verdict).toBe('validated');
    await to.live.run();
    await from.live.handedOver();
    expect([from.device.state, from.device.active, to.device.state, to.device.active]).toEqual([1, false, 0, true]);
  });

  it('goes 2, then 3, 1, 3 at the source; memory is taken as a whole outside of LOGGING, then config', async () => {
    const { from, to, records } = await movedState(FULL);
    expect(from.device.states).toEqual([2, 3, 1, 3, 1]);
    expect(from.device.actions).toEqual([
      'memory snapshot in 1',
      'memory get 0',
      'memory get 4096',
      'memory get 8192',
      'config get',
    ]);
    expect(to.device.states).toEqual([1]);
    expect(to.device.actions).toEqual(['memory set 0', 'memory set 4096', 'memory set 8192', 'config set']);
    expect(records.map(({ length }) => length - HEADER)).toEqual([4096, 4096, 1808, 777]);
  });

  it('puts a header of 24 bytes before each chunk: kind, total, place', async () => {
    const { records } = await movedState(FULL);
    const heads = records.map((record) => {
      const view = new DataView(record.buffer, record.byteOffset);
      return [view.getUint32(0), view.getUint32(4), view.getBigUint64(8), view.getBigUint64(16)];
    });
    expect(heads).toEqual([
      [2, 0, 10_000n, 0n],
      [2, 0, 10_000n, 4096n],
      [2, 0, 10_000n, 8192n],
      [1, 0, 777n, 0n],
    ]);
  });

  it('never reads the size of device memory while the device runs, for sizes neither: that would consume what is dirty', async () => {
    const { live, port, device, sink } = await stateRegionsLive(FULL);
    expect(await port.stopCopySize()).toBeNull();
    await live.saveSetup();
    expect(await live.pending()).toMatchObject({ precopyInitial: 0, precopy: 0 });
    expect(await live.iterate(sink, 1000)).toBe('drained');
    await live.stop();
    expect(await port.stopCopySize()).toBeNull();
    expect(device.actions).toEqual([]);
    const without = await stateRegionsLive({ config: CONFIG });
    await without.live.saveSetup();
    expect([await without.port.stopCopySize(), await without.port.precopyInfo()]).toEqual([
      777,
      { initial: 0, dirty: 0, reinit: false },
    ]);
  });

  it('reads the size of config before and after GET_BUFFER, and believes the second', async () => {
    const { records, to, from } = await movedState({ config: CONFIG, configGrows: 23 });
    expect(records.map(({ length }) => length)).toEqual([HEADER + 800]);
    expect(to.device.config).toEqual(from.device.config);
    const { kernel, live, sink } = await stateRegionsLive({ config: CONFIG });
    await live.saveSetup();
    await live.stop();
    kernel.accesses.length = 0;
    await live.drain(sink);
    expect(kernel.accesses).toEqual(['read 0+20/8', 'write 0+12/4', 'read 0+20/8', 'read 1+0/777']);
  });

  it.each([
    ['larger than its region', { config: new Uint8Array(5000).fill(1) }, /size is 5000, which is not between 1 and/],
    ['that grows beyond it', { config: CONFIG, configGrows: 5000 }, /size is 5777/],
    ['that is empty', { config: new Uint8Array(0) }, /size is 0/],
  ])('refuses a config %s', async (_, options, words) => {
    await expect(saveAll(await stateRegionsLive(options))).rejects.toThrow(words);
  });

  it('writes and reads each register in one access at its odd place', async () => {
    const { kernel, live } = await stateRegionsLive(FULL);
    const { records } = await movedState(FULL);
    await live.loadSetup();
    kernel.accesses.length = 0;
    await live.loadChunk(new RecordSource(kernel, records[0]!), records[0]!.length);
    expect(kernel.accesses).toEqual(['write 0+36/8', 'write 2+0/4096', 'write 0+44/8', 'write 0+28/4']);
    kernel.accesses.length = 0;
    await live.loadChunk(new RecordSource(kernel, records[3]!), records[3]!.length);
    expect(kernel.accesses).toEqual(['write 0+20/8', 'write 1+0/777', 'write 0+12/4']);
  });
});

describe('GVT-g', () => {
  const GVT: StateDeviceOptions = { gvtG: true, config: Uint8Array.from({ length: PAGE }, (_, i) => (i * 9) & 0xff) };

  it('moves: it stops only at 1, its config is as large as its region, and it says yes to everything', async () => {
    const { from, to } = await movedState({ ...GVT, mapped: true });
    expect(from.device.active).toBe(false);
    expect(to.device.config).toEqual(from.device.config);
    await to.live.run();
    expect([to.device.active, to.device.states]).toEqual([true, [1, 0]]);
    expect([from.device.violations, from.device.harm, to.device.violations]).toEqual([[], [], []]);
  });

  it('runs again after a cancel: only 0 starts it', async () => {
    const side = await stateRegionsLive(GVT);
    await saveAll(side);
    await side.live.cancel();
    expect([side.device.active, side.device.state, side.device.resets]).toEqual([true, 0, 0]);
  });

  it.each([
    ['as it is', GVT],
    ['with a log that is emptied by telling', { ...GVT, cached: false }],
    ['and a device that stops at 3 and forgets at 1', { config: CONFIG }],
    ['and one with memory of its own', FULL],
  ])('loses no page that it writes on its way to the stop: %s', async (_, options) => {
    const { live, device, source, into, sink } = await tracked(options);
    device.nextPage = 10;
    await live.saveSetup();
    await source.collect(into);
    await live.stop();
    await live.drain(sink);
    // The tracker asks last, even after the device's data.
    await source.collect(into);
    const last = [...device.ever];
    expect(last.length).toBeGreaterThan(3);
    expect(last.filter((page) => !into.test(page))).toEqual([]);
    expect([device.violations, device.harm]).toEqual([[], []]);
    into.close();
  });
});

describe('dirty system memory', () => {
  it('is asked by one write of 16 bytes, read from offset 0, at the place in RAM of each range', async () => {
    const { live, device, source, into, kernel, pages } = await tracked({ bitmapRegion: 128 });
    await live.saveSetup();
    for (const page of [0, 9, 1023, HIGH, HIGH + 511]) device.untold.add(page);
    kernel.accesses.length = 0;
    expect(await source.collect(into)).toBe(5);
    expect(pages()).toEqual([0, 1, 9, 1, 1023, 2, 1535, 1]);
    const bitmap = device.index(4);
    expect(kernel.accesses).toEqual(['write 0+52/16', `read ${bitmap}+0/128`, 'write 0+52/16', `read ${bitmap}+0/64`]);
  });

  it.each([8, 24, 100])('is never asked of more pages than a bitmap region of %d bytes holds', async (bitmapRegion) => {
    for (const gvtG of [false, true]) {
      const { live, device, source, into, pages } = await tracked({ bitmapRegion, gvtG });
      await live.saveSetup();
      for (const page of [0, 63, 64, 1000, HIGH + 300]) device.untold.add(page);
      await source.collect(into);
      expect(pages()).toEqual([0, 1, 63, 2, 1000, 1, 1324, 1]);
      expect([device.harm, device.violations]).toEqual([[], []]);
    }
  });

  it('is told in the LOGGING states only: elsewhere nobody knows, which is an error', async () => {
    const { port, source, into } = await tracked();
    await expect(source.collect(into)).rejects.toThrow(/dirty pages are told in the LOGGING states only/);
    await port.setState('pre-copy');
    await source.collect(into);
    await port.setState('stop-copy');
    await source.collect(into);
    await port.setState('stop');
    await expect(source.collect(into)).rejects.toThrow(/LOGGING/);
  });

  it('that could not be read at the stop makes the next collect an error, once, and does not keep the device from stopping', async () => {
    const { live, device, source, into } = await tracked();
    await live.saveSetup();
    device.fail.push({ op: 'read', field: 'bitmap', nth: 1 });
    await live.stop();
    expect(device.state).toBe(3);
    await expect(source.collect(into)).rejects.toThrow(/reading the dirty bitmap in region 11 failed \(EIO\)/);
    await source.collect(into);
  });

  it('is not asked for where nobody tracks', async () => {
    const { live, kernel } = await stateRegionsLive();
    await live.saveSetup();
    await live.stop();
    expect(kernel.accesses.filter((access) => access.includes('+52/'))).toEqual([]);
  });

  it('leaves nothing behind when tracking ends', async () => {
    const { live, source, into, device } = await tracked();
    await live.saveSetup();
    await source.stop();
    device.untold.add(4);
    expect(await source.collect(into)).toBe(0);
  });
});

describe('states', () => {
  it('are walked by a table that an oracle knows too, never to the state that it has', async () => {
    const reach: [VfioState, VfioState[]][] = [
      ['running', []],
      ['stop', ['stop']],
      ['pre-copy', ['pre-copy']],
      ['stop-copy', ['pre-copy', 'stop-copy']],
      ['resuming', ['resuming']],
    ];
    const oracle: Record<string, string> = {
      'running>stop': '1',
      'running>pre-copy': '2',
      'running>stop-copy': '1,3',
      'running>resuming': '1',
      'stop>running': '0',
      'stop>stop-copy': '3',
      'stop>resuming': '',
      'pre-copy>running': '0',
      'pre-copy>stop': '1',
      'pre-copy>stop-copy': '3,1,3',
      'stop-copy>running': '0',
      'stop-copy>stop': '1',
      'stop-copy>resuming': '1',
      'resuming>running': '0',
      'resuming>stop': '',
    };
    for (const [from, way] of reach) {
      for (const to of [...reach.map(([state]) => state), 'error', 'running-p2p'] as VfioState[]) {
        if (to === from) continue;
        const { port, device } = await stateRegionsLive();
        for (const state of way) await port.setState(state);
        const before = device.states.length;
        const done = await port.setState(to).then(
          () => device.states.slice(before).join(),
          () => 'no way',
        );
        expect(done, `${from}>${to}`).toBe(oracle[`${from}>${to}`] ?? 'no way');
        expect(device.violations).toEqual([]);
      }
    }
  });

  it('stay as they are when a write is refused, for the register cannot be asked', async () => {
    const { port, device, kernel } = await stateRegionsLive();
    device.refuse.push({ from: 0, to: 2 });
    await expect(port.setState('pre-copy')).rejects.toThrow(/RUNNING to PRE_COPY \(EIO\); it is in RUNNING/);
    expect(port.state).toBe('running');
    expect(kernel.accesses).toEqual(['write 0+4/4']);
  });

  it('are unknown behind a write that is overdue: only a reset leads on', async () => {
    const { port, kernel, live, device } = await stateRegionsLive({}, 30);
    let release = () => {};
    kernel.stall = new Promise((done) => {
      release = done;
    });
    await expect(port.setState('pre-copy')).rejects.toThrow(/no answer from the driver/);
    expect(port.state).toBe('error');
    kernel.stall = null;
    release();
    await live.cancel();
    expect([port.state, device.resets]).toEqual(['running', 1]);
  });
});
