// Machines with flat guests for the tests on /dev/kvm: builds one, collects its console and events, and closes it after the test.
// Called by test/kvm/*.test.ts. Time-outs are generous: the machine is shared.
import type { DeviceType } from '../../devices/contract.ts';
import { createRegistry } from '../../devices/registry.ts';
import type { CpuContract, Log, Machine, MachineConfig, MachineEvent, MachineHost } from '../../vmm/api.ts';
import { buildForIncoming, buildMachine } from '../../vmm/machine.ts';
import { buildFlatGuest } from '../guests/build.ts';

export const WAIT_MS = 30_000 * Number(process.env['FERRY_TEST_PATIENCE'] ?? 1);

export const quietLog: Log = {
  trace() {},
  debug() {},
  info() {},
  warn() {},
  error() {},
  child: () => quietLog,
};

export interface FlatOptions {
  readonly append?: string;
  /** The multiboot module. */
  readonly initrd?: string;
  readonly cpus?: number;
  readonly memory?: number;
  readonly noReboot?: boolean;
  readonly clock?: 'stop' | 'catch-up';
  readonly dirtyLog?: MachineConfig['dirtyLog'];
  readonly types?: readonly DeviceType[];
  readonly devices?: MachineConfig['devices'];
}

export interface FlatMachine {
  readonly machine: Machine;
  /** All that the guest has said. */
  text(): string;
  /** What it said since the last call that returned true for `wanted`; rejects after WAIT_MS. */
  said(wanted: RegExp): Promise<RegExpMatchArray>;
  /** What it has said so far does not count for said(). */
  skip(): void;
  type(text: string): void;
  readonly events: MachineEvent[];
}

export function flatConfig(guest: string, options: FlatOptions = {}): MachineConfig {
  return {
    name: guest,
    memory: options.memory ?? 32 * 2 ** 20,
    cpus: options.cpus ?? 1,
    boot: { kernel: buildFlatGuest(guest), initrd: options.initrd ?? null, append: options.append ?? '' },
    devices: options.devices ?? [],
    serial: { kind: 'stdio' },
    clock: options.clock ?? 'stop',
    noReboot: options.noReboot ?? false,
    preallocate: false,
    dirtyLog: options.dirtyLog ?? { kind: 'bitmap' },
    debugExit: true,
  };
}

export async function bootFlat(guest: string, options: FlatOptions = {}): Promise<FlatMachine> {
  return collect(options, (host) => buildMachine(flatConfig(guest, options), host));
}

/** The machine that takes over the state of another one. */
export async function incomingFlat(
  config: MachineConfig,
  cpu: CpuContract,
  options: FlatOptions = {},
): Promise<FlatMachine> {
  return collect(options, (host) => buildForIncoming(config, cpu, host));
}

async function collect(options: FlatOptions, build: (host: MachineHost) => Promise<Machine>): Promise<FlatMachine> {
  let output = '';
  let seen = 0;
  const listeners = new Set<() => void>();
  const typed: ((bytes: Uint8Array) => void)[] = [];
  const machine = await build({
    log: quietLog,
    consoleOut: (bytes) => {
      output += Buffer.from(bytes).toString('latin1');
      for (const listener of listeners) listener();
    },
    consoleIn: (sink) => typed.push(sink),
    registry: createRegistry(options.types ?? []),
  });
  const events: MachineEvent[] = [];
  machine.on((event) => events.push(event));
  const said = (wanted: RegExp) =>
    new Promise<RegExpMatchArray>((resolve, reject) => {
      const look = () => {
        const match = output.slice(seen).match(wanted);
        if (match === null) return;
        seen += match.index! + match[0].length;
        listeners.delete(look);
        clearTimeout(timer);
        resolve(match);
      };
      const timer = setTimeout(() => {
        listeners.delete(look);
        reject(new Error(`the guest did not say ${wanted}; it said: ${output.slice(-500)}`));
      }, WAIT_MS);
      listeners.add(look);
      look();
    });
  return {
    machine,
    text: () => output,
    said,
    skip: () => {
      seen = output.length;
    },
    type: (text) => {
      for (const sink of typed) sink(Buffer.from(text));
    },
    events,
  };
}
