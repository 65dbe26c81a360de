// Ferry's side of bench/ram.ts: the two processes of one migration (the bench forks itself), each with a real machine on /dev/kvm whose guest
// never runs, and the parent's view of them. RAM is overwritten with the bench's content from end to end.
import { type ChildProcess, fork } from 'node:child_process';
import { closeSync, openSync, readSync, writeSync } from 'node:fs';
import { createRegistry } from '../devices/registry.ts';
import type { ReceiveHost } from '../migration/api.ts';
import { type MachineBuilder, receiveFrom } from '../migration/destination.ts';
import { migrateTo } from '../migration/source.ts';
import { type GuestRam, kvmNode, type SocketAddress } from '../native/addon.ts';
import type { Log, MachineConfig, MachineHost } from '../vmm/api.ts';
import { checkCpuContract, readHostOffer } from '../vmm/cpu-contract.ts';
import { buildForIncoming, buildMachine } from '../vmm/machine.ts';
import { PreparedRam } from '../vmm/prepared-ram.ts';

const MIB = 1048576;
/** QEMU's default downtime-limit. */
const DOWNTIME_LIMIT_MS = 300;
const ORDER = 'FERRY_BENCH_RAM';

export interface Order {
  readonly role: 'source' | 'destination';
  readonly bytes: number;
  readonly preallocate: boolean;
  /** A file with the content of RAM. */
  readonly content: string;
}

const log: Log = {
  trace() {},
  debug() {},
  info() {},
  warn: (fields, message) => console.error(message, fields),
  error: (fields, message) => console.error(message, fields),
  child: () => log,
};
const host: MachineHost = { log, consoleOut() {}, consoleIn() {}, registry: createRegistry([]) };

function configOf(order: Order): MachineConfig {
  return {
    name: 'bench',
    memory: order.bytes,
    cpus: 1,
    boot: null,
    devices: [],
    serial: { kind: 'none' },
    clock: 'stop',
    noReboot: false,
    preallocate: order.preallocate,
    dirtyLog: { kind: 'bitmap' },
    debugExit: false,
  };
}

/** Through the descriptor, not the mapping: as QEMU finds it in a file, present but in nobody's page tables unless preallocated. */
function fill(ram: GuestRam, content: string): void {
  const fd = openSync(content, 'r');
  const block = Buffer.alloc(MIB);
  for (let at = 0; at < ram.size; at += MIB) {
    readSync(fd, block, 0, MIB, at);
    writeSync(ram.fd, block, 0, MIB, at);
  }
  closeSync(fd);
}

const tell = (message: object) => process.send?.(message);

async function source(order: Order, address: Promise<SocketAddress>): Promise<void> {
  const machine = await buildMachine(configOf(order), host);
  fill(machine.ram, order.content);
  tell({ ready: true });
  const channel = kvmNode().channel(await kvmNode().connect(await address, 10_000));
  const migration = migrateTo(machine, channel, {
    downtimeLimitMs: DOWNTIME_LIMIT_MS,
    maxBandwidth: 0,
    timeoutMs: null,
    deviceLog: true,
    testDrop: null,
    peerIsQemu: false,
  });
  const outcome = await migration.done;
  if (outcome.status !== 'completed') throw new Error(`bench ram: the migration ${outcome.status}: ${outcome.error}`);
  tell({ hash: String(await machine.ram.hash(0, order.bytes)), cpu: process.cpuUsage() });
}

async function destination(order: Order, address: Promise<SocketAddress>): Promise<void> {
  const kvm = kvmNode();
  // As `ferry receive --memory SIZE --preallocate` does, and as QEMU does with prealloc=on.
  const prepared = order.preallocate ? await PreparedRam.of(order.bytes) : null;
  // As `ferry receive` does before it listens.
  const offer = readHostOffer();
  tell({ started: true });
  const listener = kvm.listen(await address);
  tell({ ready: kvm.localAddress(listener) });
  const channel = kvm.channel(await kvm.accept(listener));
  const receiveHost: ReceiveHost = {
    ...host,
    devices: [],
    memory: null,
    cpus: null,
    preallocate: order.preallocate,
    dirtyLog: { kind: 'bitmap' },
    clock: 'stop',
  };
  const builder: MachineBuilder = {
    checkCpuContract: (wanted) => checkCpuContract(wanted, offer),
    buildForIncoming: (config, cpu, machineHost) => buildForIncoming(config, cpu, machineHost, prepared),
  };
  const machine = await receiveFrom(channel, receiveHost, builder).machine;
  tell({ completed: true });
  kvm.closeListener(listener);
  tell({ hash: String(await machine.ram.hash(0, order.bytes)) });
}

/** True when this process is one of the two; it then lives until the parent ends it. */
export function isParty(): boolean {
  const text = process.env[ORDER];
  if (text === undefined) return false;
  const order = JSON.parse(text) as Order;
  const address = new Promise<SocketAddress>((resolve) => {
    process.on('message', (message) => resolve(message as SocketAddress));
  });
  process.on('disconnect', () => process.exit(0));
  (order.role === 'source' ? source : destination)(order, address).catch((error: unknown) => {
    console.error(error);
    process.exit(1);
  });
  return true;
}

/** One of the two processes as the parent sees it: what it has told so far, by name. */
export class Party {
  readonly #process: ChildProcess;
  readonly #told = new Map<string, unknown>();
  readonly #waiting = new Map<string, { resolve: (value: unknown) => void; reject: (error: Error) => void }>();
  #ended: Error | null = null;

  constructor(order: Order) {
    this.#process = fork(__filename, [], { env: { ...process.env, [ORDER]: JSON.stringify(order) } });
    this.#process.on('message', (message: Record<string, unknown>) => {
      for (const [name, value] of Object.entries(message)) {
        this.#told.set(name, value);
        this.#waiting.get(name)?.resolve(value);
      }
    });
    this.#process.on('exit', (code) => {
      this.#ended = new Error(`bench ram: the ${order.role} ended with ${code}`);
      for (const { reject } of this.#waiting.values()) reject(this.#ended);
    });
  }

  send(address: SocketAddress): void {
    this.#process.send(address);
  }

  async wait(name: string): Promise<unknown> {
    if (this.#told.has(name)) return this.#told.get(name);
    if (this.#ended) throw this.#ended;
    return new Promise((resolve, reject) => this.#waiting.set(name, { resolve, reject }));
  }

  stop(): Promise<void> {
    return new Promise((resolve) => {
      this.#process.once('exit', () => resolve());
      this.#process.kill('SIGKILL');
    });
  }
}
