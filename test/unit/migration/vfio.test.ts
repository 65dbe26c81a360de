// Both state machines with vfio's own VfioLive over the scripted fake device: a device that refuses a state change, ends short or fails
// validation leaves a running guest and a running device at the source; vfio-migration.md section 3. The ladder itself is tested in
// test/unit/devices-vfio; here it is what migration makes of it.
import { describe, expect, it } from 'vitest';
import type { MigrationOutcome } from '../../../migration/api.ts';
import { receiveFrom } from '../../../migration/destination.ts';
import { migrateTo } from '../../../migration/source.ts';
import { channelPair } from '../../fakes/memory-channel.ts';
import { Diary, DiaryMachine } from '../../fakes/migration-machine.ts';
import { diaryConfig, OPTIONS, receiveHost } from '../../fakes/migration-pair.ts';
import { vfioDevice } from '../../fakes/vfio-live-device.ts';
import { type FakeOptions, FakeVfio, type Fault } from '../../fakes/vfio-transport.ts';

interface Moved {
  readonly outcome: MigrationOutcome;
  readonly source: DiaryMachine;
  readonly there: DiaryMachine | null;
  readonly here: readonly FakeVfio[];
  readonly remote: readonly FakeVfio[];
}

async function move(
  change: { here?: Fault[]; remote?: Fault[]; device?: FakeOptions; count?: number } = {},
): Promise<Moved> {
  const count = change.count ?? 1;
  const ids = Array.from({ length: count }, (_, n) => `net${n}`);
  const make = (faults: readonly Fault[] = []): FakeVfio[] =>
    ids.map((id, n) => {
      const fake = new FakeVfio({ ...change.device, name: id });
      if (n === count - 1) fake.faults.push(...faults);
      return fake;
    });
  const [here, remote] = [make(change.here), make(change.remote)];
  for (const [n, fake] of here.entries())
    fake.migration!.contents = Uint8Array.from({ length: 9000 + n }, (_, at) => (at * 13 + n) & 0xff);
  const machineOf = (
    config: ReturnType<typeof diaryConfig>,
    fakes: readonly FakeVfio[],
    filled: boolean,
  ): DiaryMachine => {
    const machine = new DiaryMachine(config, new Diary(), { filled, deviceIds: [], pages: 8, deviceBytes: 0 });
    return Object.assign(machine, { devices: fakes.map((fake, n) => vfioDevice(ids[n]!, fake, count)) });
  };
  const source = machineOf(diaryConfig(ids, 8), here, true);
  const channels = channelPair();
  let there: DiaryMachine | null = null;
  const incoming = receiveFrom(channels.destination, receiveHost(ids), {
    checkCpuContract: () => [],
    buildForIncoming: async (config) => {
      there = machineOf(config, remote, false);
      return there;
    },
  });
  const outcome = await migrateTo(source, channels.source, OPTIONS).done;
  await incoming.machine.catch(() => undefined);
  return { outcome, source, there, here, remote };
}

describe('devices over VfioLive', () => {
  it.each([
    { preCopy: true, p2p: true },
    { preCopy: true, p2p: false },
    { preCopy: false, p2p: true },
    { preCopy: false, p2p: false },
  ])('move with %o, their contents whole', async (device) => {
    const { outcome, here, remote, there } = await move({ device });
    expect(outcome.error).toBeNull();
    expect(Buffer.compare(here[0]!.migration!.contents, remote[0]!.migration!.contents)).toBe(0);
    expect(here[0]!.migration!.state).toBe('stop');
    expect(remote[0]!.migration!.state).toBe('running');
    expect(there!.state).toBe('running');
    const [moved] = outcome.report.devices;
    expect(moved!.preCopyBytes > 0).toBe(device.preCopy);
    expect(moved!.preCopyBytes + moved!.stopCopyBytes).toBe(9012);
  });

  it('three of them take the states of a migration, P2P on the way down and on the way up', async () => {
    const { outcome, here, remote } = await move({ count: 3 });
    expect(outcome.error).toBeNull();
    for (const fake of here)
      expect(fake.calls.filter((call) => call.startsWith('state'))).toEqual([
        'state pre-copy',
        'state pre-copy-p2p',
        'state stop-copy',
        'state stop',
      ]);
    for (const fake of remote)
      expect(fake.calls.filter((call) => call.startsWith('state'))).toEqual([
        'state resuming',
        'state stop',
        'state running-p2p',
        'state running',
      ]);
  });

  it('several without P2P states are refused before anything moves', async () => {
    const { outcome, source } = await move({ count: 2, device: { p2p: false } });
    expect(outcome.error).toMatch(/net0 cannot move: .*P2P/);
    expect(source.diary.steps).not.toContain('dirty.start');
  });

  const faults: [string, Parameters<typeof move>[0], RegExp][] = [
    [
      'refuses PRE_COPY',
      { here: [{ kind: 'refuse', target: 'pre-copy', lands: 'running' }] },
      /refused to go to pre-copy/,
    ],
    [
      'refuses P2P',
      { here: [{ kind: 'refuse', target: 'pre-copy-p2p', lands: 'pre-copy' }] },
      /refused to go to pre-copy-p2p/,
    ],
    [
      'refuses STOP_COPY',
      { here: [{ kind: 'refuse', target: 'stop-copy', lands: 'pre-copy-p2p' }] },
      /refused to go to stop-copy/,
    ],
    [
      'goes to ERROR instead of STOP_COPY',
      { here: [{ kind: 'refuse', target: 'stop-copy', lands: 'error' }] },
      /the device was reset/,
    ],
    ['says ENOMSG in STOP_COPY', { here: [{ kind: 'enomsg-in-stop-copy' }] }, /ENOMSG/],
    ['returns a second data fd', { here: [{ kind: 'second-fd', target: 'stop-copy' }] }, /second data fd/],
    [
      'ends its stream short',
      { here: [{ kind: 'short-read', after: 4000 }] },
      /the destination refused: .*net\d refuses its data/,
    ],
    [
      'refuses RESUMING at the destination',
      { remote: [{ kind: 'refuse', target: 'resuming', lands: 'running' }] },
      /the destination refused: .*resuming/,
    ],
    [
      'fails validation when leaving RESUMING',
      { remote: [{ kind: 'validation' }] },
      /the destination refused: .*refuses its data/,
    ],
  ];
  it.each(faults.flatMap(([name, change, error]) => [1, 2].map((count) => [name, count, change, error] as const)))(
    'one that %s (the last of %d): the guest and every device run on at the source',
    async (_name, count, change, error) => {
      const { outcome, source, there, here } = await move({ ...change, count });
      expect(outcome.status).toBe('failed');
      expect(outcome.error).toMatch(error);
      expect(source.state).toBe('running');
      expect(source.interruptsAttached).toBe(true);
      expect(source.tracker.on).toBe(false);
      for (const fake of here) expect(fake.migration!.state).toBe('running');
      for (const fake of here) expect(fake.migration!.sessionOpen).toBe(false);
      expect(there?.ran ?? false).toBe(false);
    },
  );

  it('one that cannot even be reset is named, and the guest runs on', async () => {
    const { outcome, source } = await move({
      here: [{ kind: 'refuse', target: 'stop-copy', lands: 'error' }, { kind: 'reset' }],
    });
    expect(outcome.error).toMatch(/device net0 did not come back/);
    expect(source.state).toBe('running');
  });
});
