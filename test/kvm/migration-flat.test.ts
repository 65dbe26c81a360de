// Real guests on /dev/kvm moved between two machines in this process, over real sockets: ticks go on without loss, pages verify, states and
// device data arrive, the clock stands still during the pause. Two processes are migration-processes.test.ts.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import type { DeviceType } from '../../devices/contract.ts';
import { createRegistry } from '../../devices/registry.ts';
import type { MigrateOptions, MigrationOutcome, ReceiveHost } from '../../migration/api.ts';
import { receiveFrom } from '../../migration/destination.ts';
import { migrateTo } from '../../migration/source.ts';
import { connectPeer, listenForPeer } from '../../migration/transport/uri.ts';
import type { DeviceConfig, Machine } from '../../vmm/api.ts';
import { blobContents, blobType } from './blob-device.ts';
import { bootFlat, type FlatMachine, type FlatOptions, quietLog, WAIT_MS } from './flat-machine.ts';
import { judgeTicks } from './worker-console.ts';

const OPTIONS: MigrateOptions = {
  downtimeLimitMs: 2000,
  maxBandwidth: 0,
  timeoutMs: null,
  deviceLog: true,
  testDrop: null,
  peerIsQemu: false,
};

let directory = '';
let counter: DeviceType | null = null;
const open: Machine[] = [];
beforeAll(async () => {
  directory = mkdtempSync(join(tmpdir(), 'ferry-flat-'));
  const registry = createRegistry([]);
  counter = registry.get(
    await registry.loadPlugin(resolve(import.meta.dirname, '../../docs/examples/counter-device.js')),
  );
});
afterAll(() => rmSync(directory, { recursive: true }));
afterEach(async () => {
  for (const machine of open.splice(0)) await machine.close();
});

async function boot(append: string, options: FlatOptions = {}): Promise<FlatMachine> {
  const flat = await bootFlat('worker', { append, ...options });
  open.push(flat.machine);
  await flat.machine.start();
  return flat;
}

interface Arrived {
  readonly outcome: MigrationOutcome;
  readonly machine: Machine | null;
  readonly error: Error | null;
  /** What the guest says at the destination. */
  text(): string;
  type(text: string): void;
}

let sockets = 0;
async function move(
  from: Machine,
  change: { options?: Partial<MigrateOptions>; types?: readonly DeviceType[]; devices?: readonly DeviceConfig[] } = {},
): Promise<Arrived> {
  const listener = await listenForPeer(`unix:${join(directory, `m${sockets++}`)}`);
  const accepted = listener.accept();
  const peer = await connectPeer(listener.uri);
  let output = '';
  const typed: ((bytes: Uint8Array) => void)[] = [];
  const host: ReceiveHost = {
    log: quietLog,
    consoleOut: (bytes) => {
      output += Buffer.from(bytes).toString('latin1');
    },
    consoleIn: (sink) => typed.push(sink),
    registry: createRegistry(change.types ?? []),
    devices: change.devices ?? from.config.devices,
    memory: null,
    cpus: null,
    preallocate: false,
    dirtyLog: { kind: 'bitmap' },
    clock: 'stop',
  };
  const incoming = receiveFrom(await accepted, host);
  const outcome = await migrateTo(from, peer, { ...OPTIONS, ...change.options }).done;
  const { machine, error } = await incoming.machine.then(
    (machine) => ({ machine, error: null }),
    (error: Error) => ({ machine: null, error }),
  );
  if (machine !== null) open.push(machine);
  listener.close();
  const type = (text: string): void => {
    for (const sink of typed) sink(Buffer.from(text));
  };
  return { outcome, machine, error, text: () => output, type };
}

async function until(true_: () => boolean, what: () => string): Promise<void> {
  const began = performance.now();
  while (!true_()) {
    if (performance.now() - began > WAIT_MS) throw new Error(`waited in vain: ${what()}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

function ticksIn(text: string): number {
  return text.match(/tick n=/g)?.length ?? 0;
}

describe('a flat guest on /dev/kvm', () => {
  it('moves while it writes and ticks: no tick lost, every page verified, the clock never back', async () => {
    const source = await boot('pages=512 batch=16 tick=10000');
    await source.said(/tick n=40 /);
    const there = await move(source.machine);
    expect(there.outcome.error).toBeNull();
    expect(there.outcome.status).toBe('completed');
    expect(there.error).toBeNull();
    const text = source.text();
    await until(() => ticksIn(there.text()) >= 60, there.text);
    there.type('q');
    const end = await there.machine!.ended;
    expect(end.exitCode).toBe(1); // Debug-exit port: 0 << 1 | 1.
    const verdict = judgeTicks(text, there.text());
    expect(verdict).toMatchObject({ lost: 0, errors: 0, back: 0 });
    expect(verdict.checks).toBeGreaterThan(0);
    expect(source.text()).toBe(text);
    expect(source.machine.state).toBe('postmigrate');
    const { report } = there.outcome;
    expect(report.rounds.length).toBeGreaterThan(1);
    expect(report.dirty.kvm).toBeGreaterThan(0);
    const sum = Object.values(report.downtime).reduce((a, b) => a + b, 0);
    expect(Math.abs(sum - report.downtimeMs)).toBeLessThan(Math.max(20, report.downtimeMs / 10));
  });

  it('negative control: with the last round of the KVM log thrown away the guest finds wrong pages', async () => {
    // Writes nearly all the time, so that the last round cannot be empty; and comes by a page seldom, so that what it writes in the last
    // round was not dirty, and sent, before.
    const source = await boot('pages=5120 batch=16 tick=1000');
    await source.said(/tick n=330 /);
    const there = await move(source.machine, { options: { testDrop: 'kvmLastRound' } });
    expect(there.outcome.report.rounds.at(-1)!.dirty.kvm).toBeGreaterThan(0);
    // Lost pages may hold the guest's own stack: it then says so by dying instead of by a verdict.
    if (there.machine !== null) {
      const wrong = (): boolean => {
        const { errors, lost } = judgeTicks(source.text(), there.text());
        return errors + lost > 0 || there.machine!.state !== 'running';
      };
      await until(wrong, there.text);
    }
  });

  it('carries devices along: the example plug-in with its registers, a live device with its bulk data', async () => {
    const devices: DeviceConfig[] = [
      { type: 'counter', id: 'count0', slot: 5, properties: { step: 2 } },
      { type: 'blob', id: 'blob0', slot: null, properties: { seed: 7 } },
    ];
    const types = [counter!, blobType];
    const source = await boot('pages=64 tick=10000', { devices, types });
    await source.said(/tick n=5 /);
    const state = source.machine.devices.find(({ id }) => id === 'count0')!.state!;
    const saved = state.save() as { device?: unknown };
    const there = await move(source.machine, {
      types,
      devices: [devices[0]!, { ...devices[1]!, properties: { seed: 9 } }],
    });
    expect(there.outcome.error).toBeNull();
    const arrived = there.machine!.devices;
    expect(arrived.find(({ id }) => id === 'count0')!.state!.save()).toEqual(saved);
    const blob = blobContents(arrived.find(({ id }) => id === 'blob0'));
    expect(
      Buffer.compare(blob.contents, blobContents(source.machine.devices.find(({ id }) => id === 'blob0')).contents),
    ).toBe(0);
    expect(blob.where).toBe('running');
    expect(there.outcome.report.bytes.device).toBe(256 << 10);
    expect(there.outcome.report.devices).toEqual([
      { id: 'blob0', preCopyBytes: 80_000, stopCopyBytes: (256 << 10) - 80_000, lateValidation: false },
    ]);
  });

  it('is refused by a host without the device, before any RAM, and ticks on at the source', async () => {
    const devices: DeviceConfig[] = [{ type: 'blob', id: 'blob0', slot: null, properties: { seed: 7 } }];
    const source = await boot('pages=64 tick=10000', { devices, types: [blobType] });
    await source.said(/tick n=5 /);
    const there = await move(source.machine, { types: [blobType], devices: [] });
    expect(there.outcome.error).toMatch(/the destination refused: there is no device blob0 \(blob\) here/);
    expect(there.error!.message).toMatch(/no device blob0/);
    expect(there.outcome.report.bytes.ram).toBe(0);
    const before = ticksIn(source.text());
    await until(() => ticksIn(source.text()) > before + 10, source.text);
    expect(judgeTicks(source.text(), '')).toMatchObject({ lost: 0, errors: 0, back: 0 });
  });

  it('moves 20 times in a row', async () => {
    const first = await boot('pages=256 batch=16 tick=5000');
    await first.said(/tick n=20 /);
    let machine = first.machine;
    let text = '';
    let current: { text(): string; type(text: string): void } = first;
    for (let n = 0; n < 20; n += 1) {
      const there = await move(machine);
      expect(there.outcome.error).toBeNull();
      text += current.text();
      await machine.close();
      machine = there.machine!;
      current = there;
      const now = there;
      await until(() => ticksIn(now.text()) >= 5, now.text);
    }
    current.type('q');
    await machine.ended;
    expect(judgeTicks(text, current.text())).toMatchObject({ lost: 0, errors: 0, back: 0 });
  });
});
