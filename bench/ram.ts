// npm run bench -- ram: 2 GiB of a paused guest, half of it zero in runs of 32 KiB, from one process to another over TCP and UNIX, Ferry
// and QEMU (precopy, `-machine none -S`, memory-backend-file with the same content, max-bandwidth 0) taking turns; without allocation on
// either side and with it on both. Measured from `migrate` to the destination's completed; the memories are compared afterwards.
// FERRY_BENCH_MIB and FERRY_BENCH_RUNS make it smaller. This file runs itself as the two processes of Ferry's side.
import { type ChildProcess, execFileSync, fork } from 'node:child_process';
import { closeSync, ftruncateSync, mkdtempSync, openSync, readSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { type GuestRam, kvmNode, type SocketAddress } from '../native/addon.ts';
import { line, median } from './line.ts';
import { Qemu } from './ram-qemu.ts';
import { receiveStream, sendStream } from './ram-stream.ts';

const MIB = 1048576;
const BYTES = Number(process.env['FERRY_BENCH_MIB'] ?? 2048) * MIB;
const RUNS = Number(process.env['FERRY_BENCH_RUNS'] ?? 5);
const RUN_OF_ZEROS = 32 * 1024;
const PAGE = 4096;
/** "At least as fast as QEMU's precopy." */
const TARGET = 1;

type Transport = 'tcp' | 'unix';
interface Case {
  readonly transport: Transport;
  readonly preallocate: boolean;
}
interface Order {
  readonly role: 'source' | 'destination';
  readonly preallocate: boolean;
  readonly content: string;
}

/** The content of RAM as a file: runs of 32 KiB in turn, zero (written, not holes) and different in each word. */
function makeContent(path: string): void {
  const fd = openSync(path, 'w');
  const block = Buffer.alloc(MIB);
  const words = new Uint32Array(block.buffer, block.byteOffset, MIB / 4);
  let seed = 0x9e3779b9;
  for (let at = 0; at < BYTES; at += MIB) {
    for (let i = 0; i < words.length; i++) {
      seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
      words[i] = Math.floor((i * 4) / RUN_OF_ZEROS) % 2 ? 0 : seed | 1;
    }
    writeSync(fd, block);
  }
  closeSync(fd);
}

/** Through the descriptor, not the mapping: as QEMU finds it in a file, present but in nobody's page tables. */
function fill(ram: GuestRam, content: string): void {
  const fd = openSync(content, 'r');
  const block = Buffer.alloc(MIB);
  for (let at = 0; at < BYTES; at += MIB) {
    readSync(fd, block, 0, MIB, at);
    writeSync(ram.fd, block, 0, MIB, at);
  }
  closeSync(fd);
}

const addressOf = (transport: Transport, path: string, port: number): SocketAddress =>
  transport === 'tcp'
    ? { family: 'inet', host: '127.0.0.1', port, path: '' }
    : { family: 'unix', host: '', port: 0, path };

// --- the two processes of Ferry's side ---

async function child(order: Order): Promise<void> {
  const kvm = kvmNode();
  const ram = kvm.createRam(BYTES, { hugePages: false, populate: order.preallocate });
  const tell = (message: unknown) => process.send?.(message);
  const messages = (take: (message: { address: SocketAddress }) => Promise<void>) =>
    process.on('message', (message) => {
      take(message as { address: SocketAddress }).catch((error: unknown) => {
        console.error(error);
        process.exit(1);
      });
    });
  if (order.role === 'source') {
    fill(ram, order.content);
    const bitmap = kvm.createBitmap(BYTES / PAGE);
    bitmap.fill();
    messages(async ({ address }) => {
      const channel = kvm.channel(await kvm.connect(address, 10_000));
      await sendStream(channel, ram, bitmap, 'ram');
      await channel.end();
      tell({ hash: String(await ram.hash(0, BYTES)) });
    });
    tell({ ready: null });
    return;
  }
  messages(async ({ address }) => {
    const listener = kvm.listen(address);
    tell({ ready: kvm.localAddress(listener) });
    const channel = kvm.channel(await kvm.accept(listener));
    await receiveStream(channel, ram, 'ram');
    tell({ completed: true });
    kvm.closeListener(listener);
    tell({ hash: String(await ram.hash(0, BYTES)) });
  });
  tell({ started: true });
}

class Party {
  readonly #process: ChildProcess;
  readonly #got = new Map<string, unknown>();
  readonly #waiting = new Map<string, (value: unknown) => void>();
  constructor(order: Order) {
    this.#process = fork(__filename, [], { env: { ...process.env, FERRY_BENCH_RAM: JSON.stringify(order) } });
    this.#process.on('message', (message: Record<string, unknown>) => {
      for (const [key, value] of Object.entries(message)) {
        this.#got.set(key, value);
        this.#waiting.get(key)?.(value);
      }
    });
    this.#process.on('exit', (code) => {
      if (code) throw new Error(`bench ram: a ${order.role} ended with ${code}`);
    });
  }
  send(message: unknown): void {
    this.#process.send(message as object);
  }
  async wait(key: string): Promise<unknown> {
    if (this.#got.has(key)) return this.#got.get(key);
    return new Promise((resolve) => this.#waiting.set(key, resolve));
  }
  stop(): Promise<void> {
    return new Promise((resolve) => {
      this.#process.once('exit', () => resolve());
      this.#process.kill('SIGTERM');
    });
  }
}

async function ferry(which: Case, dir: string, content: string): Promise<number> {
  const source = new Party({ role: 'source', preallocate: which.preallocate, content });
  const destination = new Party({ role: 'destination', preallocate: which.preallocate, content });
  await destination.wait('started');
  destination.send({ address: addressOf(which.transport, join(dir, 'ferry'), 0) });
  const address = await destination.wait('ready');
  await source.wait('ready');
  const began = performance.now();
  source.send({ address });
  await destination.wait('completed');
  const ms = performance.now() - began;
  if ((await source.wait('hash')) !== (await destination.wait('hash')))
    throw new Error('bench ram: Ferry lost content');
  await Promise.all([source.stop(), destination.stop()]);
  return ms;
}

async function qemu(which: Case, dir: string, content: string): Promise<number> {
  const received = join(dir, 'qemu-received');
  const fd = openSync(received, 'w');
  ftruncateSync(fd, BYTES);
  closeSync(fd);
  const common = { bytes: BYTES, preallocate: which.preallocate };
  const source = await Qemu.start({ ...common, memoryFile: content, incoming: false });
  const destination = await Qemu.start({ ...common, memoryFile: received, incoming: true });
  const uri = await destination.listen(which.transport === 'tcp' ? 'tcp:127.0.0.1:0' : `unix:${join(dir, 'qemu')}`);
  const began = performance.now();
  const migrating = source.command('migrate', { uri });
  await destination.migrated();
  const ms = performance.now() - began;
  await migrating;
  await Promise.all([source.quit(), destination.quit()]);
  execFileSync('cmp', [content, received]);
  rmSync(received);
  return ms;
}

async function measure(which: Case, dir: string, content: string): Promise<boolean> {
  const times: { ours: number[]; theirs: number[] } = { ours: [], theirs: [] };
  for (let run = 0; run < RUNS; run++) {
    times.ours.push(await ferry(which, dir, content));
    times.theirs.push(await qemu(which, dir, content));
    console.error(
      `ram ${which.transport} prealloc=${which.preallocate}: ferry ${times.ours[run]?.toFixed(0)} ms, qemu ${times.theirs[run]?.toFixed(0)} ms`,
    );
  }
  const rate = (values: readonly number[]) => BYTES / 1e9 / (median(values) / 1000);
  return line({
    bench: 'ram',
    case: `${which.transport}${which.preallocate ? '-prealloc' : ''}`,
    ours: rate(times.ours),
    peer: 'qemu-system-x86_64 precopy',
    theirs: rate(times.theirs),
    unit: 'GB/s',
    better: 'higher',
    target: TARGET,
  });
}

async function main(): Promise<void> {
  const dir = mkdtempSync('/dev/shm/ferry-bench-');
  process.once('exit', () => rmSync(dir, { recursive: true, force: true }));
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1));
  const content = join(dir, 'content');
  makeContent(content);
  for (const transport of ['tcp', 'unix'] as const) {
    for (const preallocate of [false, true]) await measure({ transport, preallocate }, dir, content);
  }
}

const order = process.env['FERRY_BENCH_RAM'];
(order === undefined ? main() : child(JSON.parse(order) as Order)).catch((error: unknown) => {
  console.error(error);
  process.exit(1);
});
