// The fault ladder of the migration region, v1 and v7: a refusal at every arc, a failing register or data section at the first, a middle and
// the last chunk of a save and of a load, a reset that fails, a device that is gone. After each the device is RUNNING, or named as lost.
import { describe, expect, it } from 'vitest';
import { openRegionV1 } from '../../../devices/vfio/migration/region-v1.ts';
import { openRegionV7 } from '../../../devices/vfio/migration/region-v7.ts';
import { ENODEV } from '../../fakes/legacy-kernel.ts';
import { type LegacyLive, legacyLive, loadAll, regionDoor, saveAll } from '../../fakes/legacy-live.ts';
import { MigrationRegionDevice, type RegionDeviceOptions } from '../../fakes/migration-region-device.ts';
import { RecordSource } from '../../fakes/piece-wire.ts';

const CONTENTS = Uint8Array.from({ length: 7321 }, (_, i) => (i * 13 + (i >> 7)) & 0xff);

describe.each(['v1', 'v7'] as const)('faults of %s', (abi) => {
  const made = (options: RegionDeviceOptions = {}) => {
    const open = abi === 'v1' ? openRegionV1 : openRegionV7;
    return legacyLive(new MigrationRegionDevice({ abi, ...options }), (kernel) => open(regionDoor(kernel), false));
  };

  const arcs: [string, number, number, (side: LegacyLive<MigrationRegionDevice>) => Promise<unknown>][] = [
    ['RUNNING -> pre-copy', 1, 3, (side) => side.live.saveSetup()],
    ['pre-copy -> stop-and-copy', 3, 2, (side) => saveAll(side)],
    ['RUNNING -> RESUMING', 1, 4, (side) => side.live.loadSetup()],
  ];
  for (const [name, from, to, go] of arcs) {
    for (const lands of [from, 1, 6]) {
      it(`${name} refused, device in ${lands}: cancel() brings it back to RUNNING`, async () => {
        const side = await made({ contents: CONTENTS });
        side.device.refuse.push({ from, to, lands });
        await expect(go(side)).rejects.toThrow(/refused to go/);
        side.device.refuse.length = 0;
        await side.live.cancel();
        expect([side.device.bits, side.port.state, side.port.sessionOpen]).toEqual([1, 'running', false]);
        expect(side.device.violations).toEqual([]);
        expect(side.ladder.includes('reset')).toBe(lands === 6 || to === 4);
      });
    }
  }

  it.each([true, false])(
    'RUNNING refused at the end of a load (from STOP: %s): told, and the device is reset',
    async (stopAfterLoad) => {
      const records = await saveAll(await made({ contents: CONTENTS }));
      const side = await made({ stopAfterLoad });
      await loadAll(side, records);
      side.device.refuse.push({ from: stopAfterLoad ? 0 : 4, to: 1, lands: 6 });
      await expect(side.live.run()).rejects.toMatchObject({ code: 'device-reset' });
      expect([side.device.bits, side.port.state, side.ladder.at(-1)]).toEqual([1, 'running', 'rearm']);
    },
  );

  it('device_state that cannot be read at the end of a load is no late validation: refused, and reset', async () => {
    const records = await saveAll(await made({ contents: CONTENTS }));
    const side = await made();
    // At the opening, before RESUMING, and now.
    side.device.fail.push({ op: 'read', register: 'device_state', nth: 3 });
    await expect(loadAll(side, records)).rejects.toMatchObject({ code: 'device-reset' });
    expect([side.verdict, side.device.bits]).toEqual([null, 1]);
  });

  it('pre-copy -> RUNNING refused on the way back: reset, and armed anew', async () => {
    const side = await made();
    await side.live.saveSetup();
    side.device.refuse.push({ from: 3, to: 1, lands: 3 });
    await side.live.cancel();
    expect(side.ladder).toEqual(['resetting the device', 'reset', 'rearm']);
    expect([side.device.bits, side.port.state, side.port.sessionOpen]).toEqual([1, 'running', false]);
  });

  it('stop-and-copy -> RUNNING refused on the way back: reset, and armed anew', async () => {
    const side = await made({ strict: true });
    await saveAll(side);
    await side.live.cancel();
    expect(side.ladder).toEqual(['resetting the device', 'reset', 'rearm']);
    expect([side.device.bits, side.port.state]).toEqual([1, 'running']);
  });

  it('stop-and-copy -> STOP refused after the hand-over is told, and the session is over', async () => {
    const side = await made();
    await saveAll(side);
    side.device.refuse.push({ from: 2, to: 0, lands: 2 });
    await expect(side.live.handedOver()).rejects.toThrow(/STOP_COPY to STOP/);
    expect(side.port.sessionOpen).toBe(false);
  });

  for (const [where, nth] of [
    ['first', 1],
    ['middle', 4],
    ['last', 8],
  ] as const) {
    for (const register of ['data_offset', 'data_size', 'data'] as const) {
      it(`${register} fails at the ${where} chunk of the save: named, and cancel() brings the device back`, async () => {
        const side = await made({ contents: CONTENTS });
        side.device.fail.push({ op: 'read', register, nth });
        await expect(saveAll(side)).rejects.toThrow(register === 'data' ? /pread/ : `reading ${register} of region 9`);
        expect(side.sink.records).toHaveLength(nth - 1);
        await side.live.cancel();
        expect([side.device.bits, side.port.state]).toEqual([1, 'running']);
      });
    }

    for (const [op, register] of [
      ['read', 'data_offset'],
      ['write', 'data'],
      ['write', 'data_size'],
    ] as const) {
      it(`${register} fails at the ${where} chunk of the load: the record is consumed, and cancel() resets`, async () => {
        const records = await saveAll(await made({ contents: CONTENTS }));
        const side = await made();
        side.device.fail.push({ op, register, nth });
        await side.live.loadSetup();
        for (const record of records.slice(0, nth - 1))
          await side.live.loadChunk(new RecordSource(side.kernel, record), record.length);
        const bad = new RecordSource(side.kernel, records[nth - 1]!);
        await expect(side.live.loadChunk(bad, bad.left.length)).rejects.toMatchObject({
          code: 'vfio-data',
          message: expect.stringMatching(/^0000:65:00.0: the device refused its state/),
        });
        expect(bad.left).toHaveLength(0);
        await side.live.cancel();
        expect([side.device.bits, side.ladder.includes('reset')]).toEqual([1, true]);
      });
    }
  }

  it('a chunk that arrives altered is refused by the device, by name', async () => {
    const records = await saveAll(await made({ contents: CONTENTS }));
    records[2]![500]! ^= 1;
    await expect(loadAll(await made(), records)).rejects.toThrow(/refused its state .*data_size/);
  });

  it('pending_bytes fails: told, and back to RUNNING', async () => {
    const side = await made();
    side.device.fail.push({ op: 'read', register: 'pending_bytes', nth: 1 });
    await side.live.saveSetup();
    await expect(side.live.pending()).rejects.toThrow(/reading pending_bytes of region 9 failed \(EIO\)/);
    await side.live.cancel();
    expect(side.device.bits).toBe(1);
  });

  it('the reset fails: the device is lost, by name', async () => {
    const side = await made();
    await side.live.loadSetup();
    side.device.resetFails = true;
    await expect(side.live.cancel()).rejects.toMatchObject({ code: 'device-lost', message: /and the reset failed/ });
  });

  it('the device is gone: every step says ENODEV, and it is lost', async () => {
    const side = await made();
    await side.live.saveSetup();
    side.device.gone = true;
    await expect(side.live.iterate(side.sink, 100)).rejects.toThrow(/ENODEV/);
    await expect(side.live.stop()).rejects.toMatchObject({ code: 'device-lost' });
    expect(side.port.state).toBe('error');
    const cause = await side.live.cancel().catch((error: Error) => error.cause);
    expect(cause).toMatchObject({ errno: ENODEV });
  });
});
