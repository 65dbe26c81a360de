// One whole migration between two DiaryMachines over a memory channel, ended one way or another: what the tests of orders and faults use.

import type { MigrateOptions, Migration, MigrationOutcome, ReceiveHost } from '../../migration/api.ts';
import { receiveFrom } from '../../migration/destination.ts';
import { migrateTo } from '../../migration/source.ts';
import type { DeviceConfig, Log, MachineConfig } from '../../vmm/api.ts';
import { type ChannelPair, channelPair, type LinkFault } from './memory-channel.ts';
import { Diary, DiaryMachine } from './migration-machine.ts';

const silent: Log = {
  trace: () => undefined,
  debug: () => undefined,
  info: () => undefined,
  warn: () => undefined,
  error: () => undefined,
  child: () => silent,
};

export const OPTIONS: MigrateOptions = {
  downtimeLimitMs: 2000,
  maxBandwidth: 0,
  timeoutMs: null,
  deviceLog: true,
  testDrop: null,
  peerIsQemu: false,
};

export function diaryConfig(deviceIds: readonly string[], pages: number): MachineConfig {
  return {
    name: 'g1',
    memory: pages * 4096,
    cpus: 1,
    boot: null,
    devices: deviceIds.map((id) => deviceConfig(id)),
    serial: { kind: 'none' },
    clock: 'stop',
    noReboot: false,
    debugExit: false,
    preallocate: false,
    dirtyLog: { kind: 'bitmap' },
  };
}

export function deviceConfig(id: string): DeviceConfig {
  return { type: 'diary', id, slot: null, properties: {} };
}

export function receiveHost(deviceIds: readonly string[], change: Partial<ReceiveHost> = {}): ReceiveHost {
  return {
    log: silent,
    consoleOut: () => undefined,
    consoleIn: () => undefined,
    registry: { get: () => null, names: () => [] },
    devices: deviceIds.map((id) => deviceConfig(id)),
    memory: null,
    cpus: null,
    preallocate: false,
    dirtyLog: { kind: 'bitmap' },
    clock: 'stop',
    ...change,
  };
}

export interface PairOptions {
  readonly deviceIds?: readonly string[];
  readonly pages?: number;
  readonly deviceBytes?: number;
  readonly options?: Partial<MigrateOptions>;
  readonly faults?: { forward?: LinkFault; back?: LinkFault };
  readonly host?: Partial<ReceiveHost>;
  readonly cpuLacks?: readonly string[];
  /** Called before anything moves. */
  readonly prepare?: (pair: RunningPair) => void;
}
export interface RunningPair {
  readonly source: DiaryMachine;
  readonly sourceDiary: Diary;
  readonly destinationDiary: Diary;
  readonly channels: ChannelPair;
  readonly migration: Migration;
  built: DiaryMachine | null;
}
export interface EndedPair extends RunningPair {
  readonly outcome: MigrationOutcome;
  /** null: the guest runs at the destination. */
  readonly destinationError: Error | null;
}

export async function migratePair(wanted: PairOptions = {}): Promise<EndedPair> {
  const ids = wanted.deviceIds ?? ['dev0', 'dev1'];
  const pages = wanted.pages ?? 16;
  const deviceBytes = wanted.deviceBytes ?? 300_000;
  const sourceDiary = new Diary();
  const destinationDiary = new Diary();
  const channels = channelPair(wanted.faults ?? {});
  const source = new DiaryMachine(diaryConfig(ids, pages), sourceDiary, {
    filled: true,
    deviceIds: ids,
    pages,
    deviceBytes,
  });
  const incoming = receiveFrom(channels.destination, receiveHost(ids, wanted.host), {
    checkCpuContract: () => [...(wanted.cpuLacks ?? [])],
    buildForIncoming: async (config) => {
      destinationDiary.note('build');
      const deviceIds = config.devices.map(({ id }) => id);
      pair.built = new DiaryMachine(config, destinationDiary, {
        filled: false,
        deviceIds,
        pages: config.memory / 4096,
        deviceBytes,
      });
      return pair.built;
    },
  });
  const migration = migrateTo(source, channels.source, { ...OPTIONS, ...wanted.options });
  const pair: RunningPair = { source, sourceDiary, destinationDiary, channels, migration, built: null };
  wanted.prepare?.(pair);
  const [outcome, arrived] = await Promise.all([
    migration.done,
    incoming.machine.then(
      () => null,
      (error: Error) => error,
    ),
  ]);
  return { ...pair, built: pair.built, outcome, destinationError: arrived };
}
