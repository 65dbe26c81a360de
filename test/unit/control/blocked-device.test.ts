// Rules (main-job.md, nothing blocks the one JS thread): while a device takes 5 s over a state change, the real QMP socket answers
// query-status; and devices take each pass of states together, not one after the other. That the kernel's own calls block no thread of
// ours is test/kvm/native-ioctl-async.test.ts.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { QmpClient } from '../../../control/qmp-client.ts';
import { QmpServer } from '../../../control/qmp-server.ts';
import { VmSession } from '../../../control/vm-session.ts';
import type { MigrationOutcome } from '../../../migration/api.ts';
import { receiveFrom } from '../../../migration/destination.ts';
import { migrateTo } from '../../../migration/source.ts';
import { channelPair } from '../../fakes/memory-channel.ts';
import { Diary, DiaryMachine } from '../../fakes/migration-machine.ts';
import { diaryConfig, receiveHost } from '../../fakes/migration-pair.ts';
import { vfioDevice } from '../../fakes/vfio-live-device.ts';
import { FakeVfio } from '../../fakes/vfio-transport.ts';

const BLOCK_MS = 5000;
/** Measured: 1-3 ms, and once 20 ms on a busy machine. */
const ANSWER_MS = 100;
const IDS = ['net0', 'net1', 'net2'];
type State = Parameters<NonNullable<FakeVfio['migration']>['setState']>[0];

let dir: string;
let server: QmpServer;
let source: DiaryMachine;
let here: FakeVfio[];
let there: FakeVfio[];
let ended: Promise<MigrationOutcome | null>;

function machineOf(fakes: readonly FakeVfio[], filled: boolean): DiaryMachine {
  const plan = { filled, deviceIds: [], pages: 8, deviceBytes: 0 };
  const machine = new DiaryMachine(diaryConfig(IDS, 8), new Diary(), plan);
  return Object.assign(machine, { devices: fakes.map((fake, n) => vfioDevice(IDS[n]!, fake, IDS.length)) });
}

beforeEach(async () => {
  dir = mkdtempSync(join(tmpdir(), 'ferry-qmp-'));
  here = IDS.map((name) => new FakeVfio({ name }));
  there = IDS.map((name) => new FakeVfio({ name }));
  source = machineOf(here, true);
  const channels = channelPair();
  const incoming = receiveFrom(channels.destination, receiveHost(IDS), {
    checkCpuContract: () => [],
    buildForIncoming: async () => machineOf(there, false),
  });
  incoming.machine.catch(() => undefined);
  let end: (outcome: MigrationOutcome | null) => void = () => undefined;
  ended = new Promise((resolve) => {
    end = resolve;
  });
  const session = new VmSession({
    name: 'g1',
    door: {
      connect: async () => channels.source,
      listen: () => Promise.reject(new Error('nobody is received here')),
      migrateTo,
      receiveFrom: () => incoming,
    },
    receiveHost: null,
    onQuit: () => undefined,
    onMigrated: (outcome) => end(outcome),
    onArrived: () => undefined,
    onReceiveFailed: () => undefined,
  });
  session.adopt(source);
  server = await QmpServer.listen(session, `unix:${join(dir, 'sock')}`);
});

afterEach(async () => {
  await server.close();
  rmSync(dir, { recursive: true, force: true });
});

describe('devices that take their time', () => {
  it.each([
    ['pre-copy', 'running'],
    ['pre-copy-p2p', 'finish-migrate'],
  ] as const)(
    '5 s to %s: query-status is answered meanwhile (%s), and the migration completes',
    async (target, state) => {
      const port = here[1]!.migration!;
      const change = port.setState.bind(port);
      let blocked = false;
      port.setState = async (to: State) => {
        blocked = to === target;
        if (blocked) await sleep(BLOCK_MS);
        blocked = false;
        return change(to);
      };
      const client = await QmpClient.connect(join(dir, 'sock'));
      await client.execute('migrate', { uri: 'tcp:h:1' });
      await expect.poll(() => blocked, { timeout: 10_000 }).toBe(true);
      const slowest = { ms: 0, asked: 0 };
      for (;;) {
        const began = performance.now();
        const answer = await client.execute('query-status');
        if (!blocked) break;
        expect(answer).toMatchObject({ status: state });
        slowest.ms = Math.max(slowest.ms, performance.now() - began);
        slowest.asked++;
        await sleep(20);
      }
      expect(slowest.asked).toBeGreaterThan(20);
      expect(slowest.ms).toBeLessThan(ANSWER_MS);
      expect((await ended)?.status).toBe('completed');
      client.close();
    },
  );

  it('take every pass together, at both sides', async () => {
    const [before, after] = [together(here), together(there)];
    const client = await QmpClient.connect(join(dir, 'sock'));
    await client.execute('migrate', { uri: 'tcp:h:1' });
    expect((await ended)?.error).toBeNull();
    expect(before).toEqual({ 'pre-copy': 3, 'pre-copy-p2p': 3, 'stop-copy': 3, stop: 3 });
    // RESUMING comes with each device's section, while the guest still runs.
    expect(after).toEqual({ resuming: 1, stop: 3, 'running-p2p': 3, running: 3 });
    client.close();
  });
});

/** Makes each change take 50 ms; says how many devices were on their way to a state at once. */
function together(fakes: readonly FakeVfio[]): Record<string, number> {
  const most: Record<string, number> = {};
  const now: Record<string, number> = {};
  for (const { migration } of fakes) {
    const port = migration!;
    const change = port.setState.bind(port);
    port.setState = async (target: State) => {
      now[target] = (now[target] ?? 0) + 1;
      most[target] = Math.max(most[target] ?? 0, now[target]);
      await sleep(50);
      await change(target);
      now[target]--;
    };
  }
  return most;
}
