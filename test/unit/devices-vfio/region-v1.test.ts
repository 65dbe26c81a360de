// Migration v1 against a scripted device that was written from the text: state bits, the order of registers, chunks, whole moves.
// What goes wrong at a device is in region-faults.test.ts.
import { describe, expect, it } from 'vitest';
import { openRegionV1 } from '../../../devices/vfio/migration/region-v1.ts';
import type { VfioState } from '../../../devices/vfio/transport.ts';
import { legacyLive, loadAll, NAME, regionDoor, saveAll } from '../../fakes/legacy-live.ts';
import { MigrationRegionDevice, type RegionDeviceOptions } from '../../fakes/migration-region-device.ts';
import { RecordSource } from '../../fakes/piece-wire.ts';

const PAGE = 4096;

function made(options: RegionDeviceOptions = {}, split = false, policy: Parameters<typeof legacyLive>[2] = {}) {
  const device = new MigrationRegionDevice(options);
  return legacyLive(device, (kernel) => openRegionV1(regionDoor(kernel), split), policy);
}

const CONTENTS = Uint8Array.from({ length: 7321 }, (_, i) => (i * 13 + (i >> 7)) & 0xff);

async function moved(source: RegionDeviceOptions, target: RegionDeviceOptions, split = false) {
  const from = await made({ contents: CONTENTS, ...source });
  const to = await made({ contents: new Uint8Array(10), ...target }, split);
  const records = await saveAll(from);
  const left = await loadAll(to, records);
  return { from, to, records, left };
}

describe('a whole move', () => {
  it.each<[string, RegionDeviceOptions, string]>([
    ['trapped', {}, 'fd'],
    ['mapped', { dataOffset: PAGE, areas: [{ start: PAGE, length: 2 * PAGE }] }, 'mapping'],
    ['mixed', { dataOffset: PAGE - 600, areas: [{ start: PAGE, length: PAGE }] }, 'fd+mapping'],
    ['mixed the other way', { dataOffset: 2 * PAGE - 500, areas: [{ start: PAGE, length: PAGE }] }, 'mapping+fd'],
  ])('arrives equal through a data section that is %s', async (_, options, kinds) => {
    const { from, to, records, left } = await moved(options, options);
    expect(to.device.contents).toEqual(CONTENTS);
    expect(records).toHaveLength(8);
    expect(new Set(from.sink.kinds.slice(0, -1))).toEqual(new Set([kinds]));
    expect(new Set(left)).toEqual(new Set([0]));
    expect([from.device.violations, to.device.violations]).toEqual([[], []]);
    expect(to.device.commits).toEqual(records.map(({ length }) => length));
  });

  it('goes 011, 010 and, after the hand-over, 000 at the source; 100, 000, 001 at the destination', async () => {
    const { from, to } = await moved({}, {});
    await from.live.handedOver();
    await to.live.run();
    expect(from.device.states).toEqual([3, 2, 0]);
    expect(to.device.states).toEqual([4, 0, 1]);
    expect(to.verdict).toBe('validated');
    expect([from.port.sessionOpen, to.port.sessionOpen]).toEqual([false, false]);
  });

  it('stays in RESUMING where the driver refuses STOP, says so, and runs after the hand-over', async () => {
    const { to } = await moved({}, { stopAfterLoad: false });
    expect(to.verdict).toBe('late');
    expect(to.port.state).toBe('resuming');
    expect(to.ladder).toEqual([]);
    await to.live.quiesce();
    await to.live.run();
    expect(to.device.contents).toEqual(CONTENTS);
    expect(to.device.states).toEqual([4, 0, 1]);
  });

  it('takes pre-copy data while the device runs and the rest when it has stopped', async () => {
    const { from } = await moved({ preCopyChunks: 3 }, {});
    expect(from.live.moved).toEqual({ preCopyBytes: 3 * 1016, stopCopyBytes: 4 * 1016 + 337 });
  });

  it('does with a device that has no pre-copy data, and leaves pre-copy early', async () => {
    const { to } = await moved({ preCopyChunks: 0 }, {});
    expect(to.device.contents).toEqual(CONTENTS);
    const early = await made({ contents: CONTENTS, preCopyChunks: 5 });
    await early.live.saveSetup();
    expect(await early.live.iterate(early.sink, 1)).toBe('more');
    await early.live.stop();
    await early.live.drain(early.sink);
    expect(early.sink.records).toHaveLength(8);
    expect(early.device.violations).toEqual([]);
  });
});

describe('registers', () => {
  it('are read in the order of the text, and a chunk is given up by pending_bytes even when the budget is used up', async () => {
    const { kernel, live, sink } = await made({ contents: CONTENTS });
    await live.saveSetup();
    kernel.accesses.length = 0;
    await live.iterate(sink, 1);
    expect(kernel.accesses).toEqual(['read 0+8/8', 'read 0+16/8', 'read 0+24/8', 'read 0+32/1016', 'read 0+8/8']);
  });

  it('of the load side: data_offset, data, data_size', async () => {
    const { records } = await moved({}, {});
    const { kernel, live } = await made();
    await live.loadSetup();
    kernel.accesses.length = 0;
    await live.loadChunk(new RecordSource(kernel, records[0]!), records[0]!.length);
    expect(kernel.accesses).toEqual(['read 0+16/8', 'write 0+32/1016', 'write 0+24/8']);
  });

  it('give sizes: a minimum in the saving states, nothing otherwise', async () => {
    const { port } = await made({ contents: CONTENTS });
    expect([await port.stopCopySize(), await port.precopyInfo()]).toEqual([null, null]);
    await port.setState('pre-copy');
    expect(await port.stopCopySize()).toBe(2032);
    expect(await port.precopyInfo()).toEqual({ initial: 0, dirty: 2032, reinit: false });
    await port.setState('stop-copy');
    expect([await port.stopCopySize(), await port.precopyInfo()]).toEqual([7321 + 8 * 16, null]);
  });

  it('are not asked for sizes while a chunk is on its way: that would give it up', async () => {
    const { port, sink, kernel, device } = await made({ contents: CONTENTS });
    await port.setState('pre-copy');
    const sizes: Promise<unknown>[] = [];
    sink.during = async () => void sizes.push(port.precopyInfo());
    kernel.accesses.length = 0;
    await port.save(sink, 1);
    await Promise.all(sizes);
    expect(kernel.accesses.slice(2, 5)).toEqual(['read 0+24/8', 'read 0+32/1016', 'read 0+8/8']);
    expect(device.violations).toEqual([]);
  });

  it.each([
    ['data_offset', 0n, /data_offset is 0, which is not between 32 and/],
    ['data_offset', 31n, /data_offset is 31/],
    ['data_offset', 0x3001n, /data_offset is 12289.*end of region 9 \(12288\)/],
    ['data_offset', 2n ** 64n - 1n, /data_offset is 18446744073709552000/],
    ['data_size', 0x3000n, /data_size is 12288, but there is room for 12256 bytes at data_offset 32/],
    ['data_size', 0n, /7449 bytes are to come and gives none/],
  ] as const)('with an impossible %s of %d are an error that names it', async (register, value, words) => {
    const { live, device, sink } = await made({ contents: CONTENTS });
    device.says.set(register, value);
    await live.saveSetup();
    await live.stop();
    await expect(live.drain(sink)).rejects.toThrow(words);
    await expect(live.drain(sink)).rejects.toMatchObject({ code: 'vfio-data', message: expect.stringContaining(NAME) });
    expect(sink.records).toEqual([]);
  });

  it('with a data_size of 0 in pre-copy mean that there is nothing now', async () => {
    const { live, device, sink } = await made({ contents: CONTENTS });
    device.says.set('data_size', 0n);
    await live.saveSetup();
    expect(await live.iterate(sink, 1000)).toBe('drained');
  });
});

describe('states', () => {
  it('change three bits and no other, and 5, 6 and 7 are never written', async () => {
    const { port, device } = await made({ reservedBits: 0xfffffff8, emptyLoad: true });
    const ask: VfioState[] = ['stop', 'running', 'pre-copy', 'stop-copy', 'running', 'resuming', 'stop', 'stop-copy'];
    for (const state of ask) await port.setState(state);
    expect(device.states).toEqual([0, 1, 3, 2, 1, 4, 0, 2]);
    expect(device.violations).toEqual([]);
  });

  it('are walked by a table that an oracle knows too: every pair, with what is written', async () => {
    const oracle: Record<string, number[] | null> = {};
    const all: VfioState[] = ['stop', 'running', 'stop-copy', 'pre-copy', 'resuming', 'error', 'running-p2p'];
    for (const from of all) for (const to of all) oracle[`${from}>${to}`] = from === to ? [] : null;
    for (const lines of `
      running>stop 0; running>stop-copy 2; running>pre-copy 3; running>resuming 4
      pre-copy>stop-copy 2; pre-copy>running 1; pre-copy>stop 0
      stop-copy>stop 0; stop-copy>running 1
      stop>running 1; stop>stop-copy 2; stop>resuming 1,4
      resuming>running 1; resuming>stop 0`
      .trim()
      .split(/[;\n]/)) {
      const [pair, bits] = lines.trim().split(' ') as [string, string];
      oracle[pair] = bits.split(',').map(Number);
    }
    const reach: Partial<Record<VfioState, VfioState[]>> = {
      stop: ['stop'],
      running: [],
      'stop-copy': ['stop-copy'],
      'pre-copy': ['pre-copy'],
      resuming: ['resuming'],
    };
    for (const [from, way] of Object.entries(reach)) {
      for (const to of all.filter((state) => state !== from)) {
        const { port, device, live } = await made();
        for (const state of way) await port.setState(state);
        const before = device.states.length;
        if (from === 'resuming' && to === 'running') {
          // An empty load is refused; the oracle is of what is written.
          await expect(port.setState(to)).rejects.toThrow(/it is in RESUMING/);
        } else if (from === 'resuming' && to === 'stop') expect(await port.finishLoad()).toBe('late');
        else await port.setState(to).catch(() => undefined);
        const wrote = device.states.slice(before);
        expect(wrote, `${from}>${to}`).toEqual(oracle[`${from}>${to}`] ?? []);
        await live.cancel();
      }
    }
  });

  it('that the device changed by itself are found out before the next is written', async () => {
    const { port, device } = await made();
    await port.setState('pre-copy');
    device.reset();
    await expect(port.setState('stop-copy')).rejects.toThrow(/it is in RUNNING and was left in PRE_COPY/);
    expect(port.state).toBe('running');
    expect(port.sessionOpen).toBe(false);
    await expect(port.save(null as never, 1)).rejects.toThrow(/no migration session is open in RUNNING/);
  });

  it('are read back after a refusal; ERROR is left by a reset only', async () => {
    const { port, device } = await made();
    device.refuse.push({ from: 1, to: 3, lands: 6 });
    await expect(port.setState('pre-copy')).rejects.toThrow(/RUNNING to PRE_COPY .*EINVAL.*; it is in ERROR/);
    await expect(port.setState('running')).rejects.toThrow(/no way from ERROR to RUNNING/);
    expect(device.states).toEqual([3]);
    device.reset();
    port.wasReset();
    device.refuse.length = 0;
    await port.setState('pre-copy');
    expect(port.state).toBe('pre-copy');
  });

  it('wait for a write that is overdue, and are read back then', async () => {
    const kernel = await legacyLive(new MigrationRegionDevice(), (on) => openRegionV1(regionDoor(on, 0, 30), false));
    let release = () => {};
    kernel.kernel.stall = new Promise((done) => {
      release = done;
    });
    await expect(kernel.port.setState('pre-copy')).rejects.toThrow(/no answer from the driver/);
    kernel.kernel.stall = null;
    release();
    await kernel.port.setState('stop-copy');
    expect(kernel.device.states).toEqual([2]);
  });

  it('ends as finishLoad says: validated, late, or refused', async () => {
    const { records } = await moved({}, {});
    const short = await made();
    await expect(loadAll(short, records.slice(0, 3))).resolves.toBeDefined();
    expect(short.verdict).toBe('late'); // the driver judges by staying in RESUMING: not to be told from one without the arc
    const broken = await made();
    broken.device.refuse.push({ from: 4, to: 0, lands: 6 });
    await expect(loadAll(broken, records)).rejects.toMatchObject({ code: 'device-reset' });
    expect(broken.ladder).toEqual(['resetting the device', 'reset', 'rearm']);
    const elsewhere = await made();
    elsewhere.device.refuse.push({ from: 4, to: 0, lands: 1 });
    await expect(loadAll(elsewhere, records)).rejects.toThrow(/it is in RUNNING/);
  });
});

describe('require-validated', () => {
  const policy = { requireValidated: true };

  it('refuses a device beforehand that goes from RESUMING to RUNNING only, in one line, and leaves it running', async () => {
    const { live, device, port } = await made({ stopAfterLoad: false }, false, policy);
    await expect(live.loadSetup()).rejects.toThrow(/^0000:65:00.0: its driver validates .*require-validated=on[^\n]*$/);
    expect(device.resets).toBe(1);
    expect([device.bits, port.state, port.sessionOpen]).toEqual([1, 'running', false]);
  });

  it('takes a device that has the arc: RESUMING is entered anew, and the move goes on', async () => {
    const source = await made({ contents: CONTENTS });
    const target = await made({ emptyLoad: true }, false, policy);
    await loadAll(target, await saveAll(source));
    expect(target.device.states).toEqual([4, 0, 1, 4, 0]);
    expect(target.device.contents).toEqual(CONTENTS);
    expect(target.verdict).toBe('validated');
  });

  it('takes a device that falls into ERROR over an empty load: it judges', async () => {
    const { live, device, port } = await made({}, false, policy);
    device.refuse.push({ from: 4, to: 0, lands: 6 });
    await live.loadSetup();
    expect([device.resets, port.state, device.bits]).toEqual([1, 'resuming', 4]);
  });
});

describe('chunks', () => {
  const BIG: RegionDeviceOptions = { contents: CONTENTS, chunk: 5000 };
  const SMALL: RegionDeviceOptions = { size: 32 + 2000, takesPieces: true };

  it('larger than the data section are refused in one line, consumed, and the device is reset by cancel', async () => {
    const source = await made(BIG);
    const records = await saveAll(source);
    const target = await made(SMALL);
    await target.live.loadSetup();
    const record = new RecordSource(target.kernel, records[0]!);
    await expect(target.live.loadChunk(record, records[0]!.length)).rejects.toThrow(
      /^0000:65:00.0: a chunk of 5016 bytes does not fit into the data section .*\(2000 bytes\).*split=on$/,
    );
    expect(record.left).toHaveLength(0);
    expect(target.device.commits).toEqual([]);
    await target.live.cancel();
    expect(target.device.bits).toBe(1);
  });

  it('are committed in pieces with split=on', async () => {
    const { to } = await moved(BIG, SMALL, true);
    expect(to.device.commits).toEqual([2000, 2000, 1016, 2000, 337]);
    expect(to.device.contents).toEqual(CONTENTS);
  });

  it('are not split where they fit', async () => {
    const { to, records } = await moved({}, {}, true);
    expect(to.device.commits).toEqual(records.map(({ length }) => length));
  });
});
