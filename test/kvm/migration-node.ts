// One side of a migration as a process of its own: boots a flat guest, or waits for one. JSON lines in (commands) and out (events, console).
// Bundled and started by migration-processes.ts; the other end of the link is a proxy in the test that does harm.
import { createInterface } from 'node:readline';
import { createRegistry } from '../../devices/registry.ts';
import type { MigrateOptions, Migration, ReceiveHost } from '../../migration/api.ts';
import { receiveFrom } from '../../migration/destination.ts';
import { migrateTo } from '../../migration/source.ts';
import { connectPeer, listenForPeer } from '../../migration/transport/uri.ts';
import type { Log, Machine, MachineConfig, MachineHost } from '../../vmm/api.ts';
import { buildMachine } from '../../vmm/machine.ts';
import { blobType } from './blob-device.ts';

const OPTIONS: MigrateOptions = {
  downtimeLimitMs: 1500,
  maxBandwidth: 0,
  timeoutMs: null,
  deviceLog: true,
  testDrop: null,
  peerIsQemu: false,
};

const quiet: Log = {
  trace() {},
  debug() {},
  info() {},
  warn() {},
  error() {},
  child: () => quiet,
};

function say(event: object): void {
  process.stdout.write(`${JSON.stringify(event)}\n`);
}

const typed: ((bytes: Uint8Array) => void)[] = [];
const host: MachineHost = {
  log: quiet,
  consoleOut: (bytes) => say({ console: Buffer.from(bytes).toString('latin1') }),
  consoleIn: (sink) => typed.push(sink),
  registry: createRegistry([blobType]),
};

let machine: Machine | null = null;
let migration: Migration | null = null;

async function boot(config: MachineConfig): Promise<void> {
  machine = await buildMachine(config, host);
  await machine.start();
  say({ event: 'booted' });
}

type Wanted = Pick<ReceiveHost, 'devices'> & Partial<Pick<ReceiveHost, 'memory' | 'cpus'>>;

async function receive(uri: string, wanted: Wanted): Promise<void> {
  const listener = await listenForPeer(uri);
  say({ event: 'listening', uri: listener.uri });
  const peer = await listener.accept();
  try {
    machine = await receiveFrom(peer, {
      ...host,
      memory: null,
      cpus: null,
      preallocate: false,
      dirtyLog: { kind: 'bitmap' },
      clock: 'stop',
      ...wanted,
    }).machine;
    say({ event: 'arrived', state: machine.state });
    machine.ended.then(({ reason, exitCode }) => say({ event: 'ended', reason, exitCode }));
  } catch (error) {
    say({ event: 'refused', error: (error as Error).message });
  }
  listener.close();
}

async function migrate(uri: string, change: Partial<MigrateOptions>): Promise<void> {
  migration = migrateTo(machine!, await connectPeer(uri), { ...OPTIONS, ...change });
  migration.onChange((status) => say({ event: 'status', status }));
  const { status, error, unanswered } = await migration.done;
  const blob = machine!.devices.find(({ id }) => id === 'blob0') as { where?: string } | undefined;
  say({ event: 'outcome', status, error, unanswered, state: machine!.state, device: blob?.where ?? null });
}

async function obey(command: { do: string } & Record<string, unknown>): Promise<void> {
  switch (command.do) {
    case 'boot':
      return boot(command['config'] as MachineConfig);
    case 'receive':
      return receive(command['uri'] as string, command['wanted'] as Wanted);
    case 'migrate':
      return migrate(command['uri'] as string, (command['options'] ?? {}) as Partial<MigrateOptions>);
    case 'cancel':
      return say({ event: 'cancel', taken: migration!.cancel() });
    case 'state':
      return say({ event: 'state', state: machine?.state ?? 'inmigrate' });
    case 'type':
      for (const sink of typed) sink(Buffer.from(command['text'] as string));
      return;
    default:
      throw new Error(`unknown command ${command.do}`);
  }
}

createInterface({ input: process.stdin })
  .on('line', (line) => {
    obey(JSON.parse(line)).catch((error: Error) => say({ event: 'error', error: error.message }));
  })
  // The test has gone: nothing may stay behind.
  .on('close', () => process.exit(0));
