// npm run bench -- ram: 2 GiB of a paused guest, half of it zero in runs of 32 KiB, from one process to another over TCP and UNIX, Ferry
// and QEMU (precopy, `-machine none -S`, memory-backend-file with the same content, max-bandwidth 0) taking turns; without allocation on
// either side and with it on both. Measured from `migrate` to the destination's completed; the memories are compared afterwards.
// FERRY_BENCH_MIB and FERRY_BENCH_RUNS make it smaller.
import { execFileSync } from 'node:child_process';
import { closeSync, ftruncateSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import type { SocketAddress } from '../native/addon.ts';
import { line, median } from './line.ts';
import { isParty, Party } from './ram-ferry.ts';
import { Qemu } from './ram-qemu.ts';

const MIB = 1048576;
const BYTES = Number(process.env['FERRY_BENCH_MIB'] ?? 2048) * MIB;
const RUNS = Number(process.env['FERRY_BENCH_RUNS'] ?? 5);
const RUN_OF_ZEROS = 32 * 1024;
/** "At least as fast as QEMU's precopy." */
const TARGET = 1;

interface Case {
  readonly transport: 'tcp' | 'unix';
  readonly preallocate: boolean;
}

/** The content of RAM as a file: runs of 32 KiB in turn, different in each word, and zero (written zeros, not holes). */
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

/** One migration by Ferry, in milliseconds. */
async function ferry({ transport, preallocate }: Case, dir: string, content: string): Promise<number> {
  const order = { bytes: BYTES, preallocate, content };
  const source = new Party({ role: 'source', ...order });
  const destination = new Party({ role: 'destination', ...order });
  try {
    const address: SocketAddress =
      transport === 'tcp'
        ? { family: 'inet', host: '127.0.0.1', port: 0, path: '' }
        : { family: 'unix', host: '', port: 0, path: join(dir, 'ferry') };
    await destination.wait('started');
    destination.send(address);
    const bound = (await destination.wait('ready')) as SocketAddress;
    await source.wait('ready');
    const began = performance.now();
    source.send(bound);
    await destination.wait('completed');
    const ms = performance.now() - began;
    if ((await source.wait('hash')) !== (await destination.wait('hash')))
      throw new Error('bench ram: Ferry lost content');
    return ms;
  } finally {
    await Promise.all([source.stop(), destination.stop()]);
  }
}

/** The same by QEMU. */
async function qemu({ transport, preallocate }: Case, dir: string, content: string): Promise<number> {
  const received = join(dir, 'qemu-received');
  const fd = openSync(received, 'w');
  ftruncateSync(fd, BYTES);
  closeSync(fd);
  const source = await Qemu.start({ bytes: BYTES, preallocate, memoryFile: content, incoming: false });
  const destination = await Qemu.start({ bytes: BYTES, preallocate, memoryFile: received, incoming: true });
  try {
    const uri = await destination.listen(transport === 'tcp' ? 'tcp:127.0.0.1:0' : `unix:${join(dir, 'qemu')}`);
    const began = performance.now();
    const migrating = source.command('migrate', { uri });
    await destination.migrated();
    const ms = performance.now() - began;
    await migrating;
    await source.quit();
    await destination.quit();
    execFileSync('cmp', [content, received]);
    return ms;
  } finally {
    await Promise.all([source.quit(), destination.quit()]);
    rmSync(received);
  }
}

async function measure(which: Case, dir: string, content: string): Promise<boolean> {
  const name = `${which.transport}${which.preallocate ? '-prealloc' : ''}`;
  const times: { ours: number[]; theirs: number[] } = { ours: [], theirs: [] };
  for (let run = 0; run < RUNS; run++) {
    times.ours.push(await ferry(which, dir, content));
    times.theirs.push(await qemu(which, dir, content));
    console.error(`ram ${name}: ferry ${times.ours[run]?.toFixed(0)} ms, qemu ${times.theirs[run]?.toFixed(0)} ms`);
  }
  const rate = (values: readonly number[]) => BYTES / 1e9 / (median(values) / 1000);
  return line({
    bench: 'ram',
    case: name,
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
  // One of each unmeasured: where this machine is a guest itself, its own host has to find the memory first.
  const first: Case = { transport: 'unix', preallocate: false };
  await qemu(first, dir, content);
  await ferry(first, dir, content);
  for (const transport of ['tcp', 'unix'] as const) {
    for (const preallocate of [false, true]) await measure({ transport, preallocate }, dir, content);
  }
}

if (!isParty()) {
  main().catch((error: unknown) => {
    console.error(error);
    process.exit(1);
  });
}
