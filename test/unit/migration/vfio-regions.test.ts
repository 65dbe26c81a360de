// Both state machines with devices of the three older migration interfaces: chunks go through the real stream as one record each, the
// hand-over waits for a verdict where the interface gives one, and a device that refuses leaves the guest at its source.
import { describe, expect, it } from 'vitest';
import type { ChunkPiece } from '../../../devices/contract.ts';
import { openRegionV1 } from '../../../devices/vfio/migration/region-v1.ts';
import { openRegionV7 } from '../../../devices/vfio/migration/region-v7.ts';
import { receiveFrom } from '../../../migration/destination.ts';
import { migrateTo } from '../../../migration/source.ts';
import { ByteBuilder } from '../../../migration/stream/bytes.ts';
import type { FakeRegionDevice, LegacyKernel } from '../../fakes/legacy-kernel.ts';
import { type LegacyLive, legacyLive, regionDoor } from '../../fakes/legacy-live.ts';
import { channelPair, type MemoryChannel } from '../../fakes/memory-channel.ts';
import { Diary, DiaryMachine } from '../../fakes/migration-machine.ts';
import { diaryConfig, OPTIONS, receiveHost } from '../../fakes/migration-pair.ts';
import { MigrationRegionDevice, type RegionDeviceOptions } from '../../fakes/migration-region-device.ts';
import { RecordSink, RecordSource } from '../../fakes/piece-wire.ts';
import { stateRegionsLive } from '../../fakes/state-regions-live.ts';

const CONTENTS = Uint8Array.from({ length: 9000 }, (_, i) => (i * 17 + (i >> 6)) & 0xff);

type Side = LegacyLive<FakeRegionDevice>;

const region = (abi: 'v1' | 'v7', options: RegionDeviceOptions): Promise<LegacyLive<MigrationRegionDevice>> =>
  legacyLive(new MigrationRegionDevice({ abi, ...options }), (kernel) =>
    (abi === 'v1' ? openRegionV1 : openRegionV7)(regionDoor(kernel), false),
  );

/** The channel's own words for pieces (native/addon.ts), over the scripted kernel of this side. */
function overKernel(channel: MemoryChannel, kernel: LegacyKernel): MemoryChannel {
  return Object.assign(channel, {
    async pumpPiecesFrom(pieces: readonly ChunkPiece[], tag: bigint): Promise<void> {
      const sink = new RecordSink(kernel);
      await sink.pumpPieces(pieces);
      await channel.write(new ByteBuilder().u64(tag).u64(BigInt(sink.bytes)).take());
      await channel.write(sink.records[0]!);
    },
    async pumpPiecesTo(pieces: readonly ChunkPiece[]): Promise<void> {
      const length = pieces.reduce((sum, piece) => sum + ('bytes' in piece ? piece.bytes.length : piece.length), 0);
      await new RecordSource(kernel, await channel.read(length)).pumpPieces(pieces);
    },
  });
}

async function move(here: Side, remote: Side) {
  const config = diaryConfig(['gpu0'], 8);
  const machineOf = (side: Side, filled: boolean) => {
    const machine = new DiaryMachine(config, new Diary(), { filled, deviceIds: [], pages: 8, deviceBytes: 0 });
    const device = {
      id: 'gpu0',
      type: 'diary',
      claims: [],
      state: null,
      live: side.live,
      dirty: null,
      interrupts: null,
      reset: () => undefined,
      close: () => undefined,
    };
    return Object.assign(machine, { devices: [device] });
  };
  const source = machineOf(here, true);
  const channels = channelPair();
  const incoming = receiveFrom(overKernel(channels.destination, remote.kernel), receiveHost(['gpu0']), {
    checkCpuContract: () => [],
    buildForIncoming: async () => machineOf(remote, false),
  });
  const outcome = await migrateTo(source, overKernel(channels.source, here.kernel), OPTIONS).done;
  await incoming.machine.catch(() => undefined);
  return { outcome, source };
}

describe.each(['v1', 'v7'] as const)('a device of %s', (abi) => {
  it.each([true, false])('moves whole; the verdict comes before the hand-over: %s', async (stopAfterLoad) => {
    const here = await region(abi, { contents: CONTENTS });
    const remote = await region(abi, { contents: new Uint8Array(7), stopAfterLoad });
    const { outcome } = await move(here, remote);
    expect(outcome.error).toBeNull();
    expect(remote.device.contents).toEqual(CONTENTS);
    expect(outcome.report.devices[0]?.lateValidation).toBe(!stopAfterLoad);
    expect([here.device.states, remote.device.states]).toEqual([
      [3, 2, 0],
      [4, 0, 1],
    ]);
    expect([here.device.violations, remote.device.violations]).toEqual([[], []]);
    expect(outcome.report.devices[0]).toMatchObject({ preCopyBytes: 2032, stopCopyBytes: 9000 + 9 * 16 - 2032 });
  });

  it('that refuses a chunk, in the middle: the guest runs on at its source, and both devices run', async () => {
    const here = await region(abi, { contents: CONTENTS });
    const remote = await region(abi, {});
    remote.device.fail.push({ op: 'write', register: 'data_size', nth: 5 });
    const { outcome, source } = await move(here, remote);
    expect(outcome.status).toBe('failed');
    expect(source.state).toBe('running');
    expect([here.device.bits, here.device.resets, remote.device.bits]).toEqual([1, 0, 1]);
    expect(here.device.contents).toEqual(CONTENTS);
  });
});

describe('a device with device state regions', () => {
  it.each([false, true])('moves whole (as GVT-g does: %s)', async (gvtG) => {
    const config = Uint8Array.from({ length: 4096 }, (_, i) => (i * 7 + 1) & 0xff);
    // Of device memory nobody knows the size beforehand: the user says it (x-stop-copy-size).
    const policy = { stopCopySize: gvtG ? null : 20_000 };
    const here = await stateRegionsLive({ gvtG, config, memory: gvtG ? null : CONTENTS }, 5000, policy);
    const remote = await stateRegionsLive({ gvtG, memory: gvtG ? null : new Uint8Array(1) });
    const { outcome } = await move(here, remote);
    expect(outcome.error).toBeNull();
    expect(remote.device.config).toEqual(config);
    if (!gvtG) expect(remote.device.deviceMemory).toEqual(CONTENTS);
    expect([here.device.active, remote.device.active]).toEqual([false, true]);
  });

  it('that refuses its config: the guest runs on at its source', async () => {
    const here = await stateRegionsLive({});
    const remote = await stateRegionsLive({});
    remote.device.fail.push({ op: 'write', field: 'config.action', nth: 1 });
    const { outcome, source } = await move(here, remote);
    expect(outcome.status).toBe('failed');
    expect([source.state, here.device.active, here.device.resets, remote.device.resets]).toEqual([
      'running',
      true,
      0,
      1,
    ]);
  });
});
