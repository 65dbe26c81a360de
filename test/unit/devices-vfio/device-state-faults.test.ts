// What goes wrong with the device state regions: streams that are not theirs, chunks out of turn or too large, and the fault ladder at every
// arc and at the first, a middle and the last chunk. A record is consumed whatever becomes of it.
import { describe, expect, it } from 'vitest';
import { type LegacyLive, loadAll, saveAll } from '../../fakes/legacy-live.ts';
import { RecordSource } from '../../fakes/piece-wire.ts';
import type { StateDeviceOptions, StateRegionsDevice } from '../../fakes/state-regions-device.ts';
import { CONFIG, FULL, movedState, stateRegionsLive } from '../../fakes/state-regions-live.ts';

const MIB = 2 ** 20;

type Side = LegacyLive<StateRegionsDevice>;

describe('a load that is not right', () => {
  const other = (record: Uint8Array, at: number, value: number) => {
    const copy = record.slice();
    new DataView(copy.buffer).setBigUint64(at, BigInt(value));
    return copy;
  };
  async function refused(records: readonly Uint8Array[], options: StateDeviceOptions = FULL): Promise<string> {
    const side = await stateRegionsLive(options);
    await side.live.loadSetup();
    let words = '';
    for (const record of records) {
      const source = new RecordSource(side.kernel, record);
      words = await side.live.loadChunk(source, record.length).then(
        () => 'loaded',
        (error: Error) => error.message,
      );
      expect(source.left).toHaveLength(0);
    }
    expect(side.device.harm).toEqual([]);
    return words;
  }

  it('is told, and its bytes are consumed', async () => {
    const { records } = await movedState(FULL);
    const [first, second, third, config] = records as [Uint8Array, Uint8Array, Uint8Array, Uint8Array];
    const alien = new Uint8Array(2 * MIB).fill(0x55);
    expect(await refused([alien])).toMatch(/none of the device state regions: the source speaks another/);
    expect(await refused([alien.slice(0, 10)])).toMatch(/a chunk of 10 bytes/);
    expect(await refused([second])).toMatch(/memory of the device at 4096 is out of turn/);
    expect(await refused([first, third])).toMatch(/at 8192 is out of turn/);
    expect(await refused([first, other(second, 8, 20_000)])).toMatch(/out of turn/);
    expect(await refused([other(third, 16, 0)])).toMatch(/comes by 1808 bytes, and region 11 takes it by 4096/);
    expect(await refused([other(config, 8, 778)])).toMatch(/speaks another/);
    expect(await refused([first], { config: CONFIG })).toMatch(/this host’s device has none/);
    expect(await refused([first], { ...FULL, memoryRegion: 2048 })).toMatch(
      /does not fit into region 11 \(2048 bytes\)/,
    );
    expect(await refused([config], { config: CONFIG, configRegion: 512 })).toMatch(
      /777 bytes does not fit into region 10/,
    );
    expect(await refused([first, second, third, config])).toBe('loaded');
  });

  it('and does not come as a whole is refused at its end: the device is reset', async () => {
    const { records } = await movedState(FULL);
    for (const part of [records.slice(0, 3), [...records.slice(0, 2), records[3]!], []]) {
      const side = await stateRegionsLive(FULL);
      await expect(loadAll(side, part)).rejects.toThrow(/its state has not come as a whole; the device was reset/);
      expect([side.device.state, side.device.resets, side.port.state]).toEqual([0, 1, 'running']);
    }
  });

  it.each([
    ['first', 1],
    ['middle', 2],
    ['last', 3],
  ])('SET_BUFFER is refused at the %s chunk of memory', async (_, nth) => {
    const { records } = await movedState(FULL);
    const side = await stateRegionsLive(FULL);
    side.device.fail.push({ op: 'write', field: 'memory.action', nth });
    await expect(loadAll(side, records)).rejects.toThrow(
      /refused its state \(writing device_memory.action of region 9/,
    );
    await side.live.cancel();
    expect([side.device.resets, side.device.state]).toEqual([1, 0]);
  });

  it('SET_BUFFER of config is refused, or answers short', async () => {
    const { records } = await movedState(FULL);
    for (const short of [undefined, 3]) {
      const side = await stateRegionsLive(FULL);
      side.device.fail.push({ op: 'write', field: 'config.action', nth: 1, ...(short === undefined ? {} : { short }) });
      await expect(loadAll(side, records)).rejects.toMatchObject({ code: 'vfio-data' });
    }
  });
});

describe('faults', () => {
  const arcs: [string, number, number, (side: Side) => Promise<unknown>, boolean][] = [
    ['RUNNING -> RUNNING|LOGGING', 0, 2, (side) => side.live.saveSetup(), false],
    ['RUNNING|LOGGING -> STOP|LOGGING', 2, 3, (side) => saveAll(side), false],
    ['STOP|LOGGING -> STOP', 3, 1, (side) => saveAll(side), true],
    ['STOP -> STOP|LOGGING', 1, 3, (side) => saveAll(side), false],
    ['RUNNING -> STOP of a load', 0, 1, (side) => side.live.loadSetup(), true],
  ];
  it.each(arcs)('%s refused: cancel() brings it back to RUNNING', async (_, from, to, go, resets) => {
    const side = await stateRegionsLive(FULL);
    side.device.refuse.push({ from, to });
    await expect(go(side)).rejects.toThrow(/refused to go/);
    await side.live.cancel();
    expect([side.device.state, side.device.active, side.port.state]).toEqual([0, true, 'running']);
    expect([side.device.resets > 0, side.ladder.includes('rearm')]).toEqual([resets, resets]);
    expect(side.device.violations).toEqual([]);
  });

  for (const [where, nth] of [
    ['first', 1],
    ['middle', 2],
    ['last', 3],
  ] as const) {
    for (const [op, field] of [
      ['write', 'memory.pos'],
      ['write', 'memory.action'],
      ['read', 'memory'],
    ] as const) {
      it(`${field} fails at the ${where} chunk of the save: told, and cancel() brings it back`, async () => {
        const side = await stateRegionsLive(FULL);
        side.device.fail.push({ op, field, nth });
        await expect(saveAll(side)).rejects.toThrow(/EIO/);
        expect(side.sink.records).toHaveLength(nth - 1);
        // What is asked for after that begins anew; it does not look like an end.
        expect(await side.port.save(side.sink, 10)).toMatchObject({ end: 'more' });
        await side.live.cancel();
        expect([side.device.state, side.device.resets]).toEqual([0, 0]);
      });
    }
  }

  it.each([
    ['RUNNING|LOGGING', 2, (side: Side) => side.live.saveSetup()],
    ['STOP', 1, (side: Side) => saveAll(side)],
  ] as const)('%s -> RUNNING refused on the way back: reset, and armed anew', async (_, from, go) => {
    const side = await stateRegionsLive(FULL);
    await go(side);
    side.device.refuse.push({ from, to: 0 });
    await side.live.cancel();
    expect(side.ladder).toEqual(['resetting the device', 'reset', 'rearm']);
    expect([side.device.state, side.device.active, side.port.state]).toEqual([0, true, 'running']);
  });

  it('STOP -> RUNNING refused at the end of a load: told, and the device is reset', async () => {
    const { records } = await movedState(FULL);
    const side = await stateRegionsLive(FULL);
    await loadAll(side, records);
    side.device.refuse.push({ from: 1, to: 0 });
    await expect(side.live.run()).rejects.toMatchObject({ code: 'device-reset' });
    expect([side.device.state, side.device.active]).toEqual([0, true]);
  });

  it('the reset fails, or the device is gone: lost, by name', async () => {
    const side = await stateRegionsLive(FULL);
    await side.live.loadSetup();
    side.device.resetFails = true;
    await expect(side.live.cancel()).rejects.toMatchObject({ code: 'device-lost' });
    const gone = await stateRegionsLive(FULL);
    await gone.live.saveSetup();
    gone.device.gone = true;
    await expect(gone.live.stop()).rejects.toMatchObject({ code: 'device-lost', message: /ENODEV/ });
  });
});
