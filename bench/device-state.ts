// npm run bench -- device-state: 1 GiB of device state out of a data fd, through the migration's own sections and TCP, into another data fd,
// against what the same kind of socket does with plain bytes (device-state-peer.c), taking turns, medians of 5; and once in chunks of a
// migration region of 64 MiB. The fds are files on a tmpfs, whose contents are compared. The peer reads and writes the same files, so that the
// device's two copies are in both figures, and what is ours alone is the framing, the check sum and JS. The memory of this process meanwhile is
// measured too. FERRY_BENCH_MIB makes it smaller.
import { execFileSync } from 'node:child_process';
import { closeSync, ftruncateSync, mkdtempSync, openSync, readFileSync, readSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import type { ChunkSink, ChunkSource } from '../devices/contract.ts';
import { receiveBulk, receiveBulkStart, sendBulk, startBulk } from '../migration/stream/device-section.ts';
import { StreamReader } from '../migration/stream/reader.ts';
import { StreamWriter } from '../migration/stream/writer.ts';
import { kvmNode } from '../native/addon.ts';
import { line, median } from './line.ts';

const MIB = 2 ** 20;
const BYTES = Number(process.env['FERRY_BENCH_MIB'] ?? 1024) * MIB;
const REGION = 64 * MIB;
const TURNS = 5;
/** "At least 80% of what the same socket does with plain bytes." */
const TARGET = 0.8;
const MEMORY_MIB = 64;
const addon = kvmNode();

interface Files {
  readonly from: string;
  readonly to: string;
}

function makeFiles(dir: string): Files {
  const files = { from: join(dir, 'from'), to: join(dir, 'to') };
  const from = openSync(files.from, 'w');
  const block = new Uint32Array(MIB / 4);
  let seed = 0x9e3779b9;
  for (let at = 0; at < BYTES; at += MIB) {
    for (let i = 0; i < block.length; i++) block[i] = seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    writeSync(from, block);
  }
  closeSync(from);
  const to = openSync(files.to, 'w');
  ftruncateSync(to, BYTES);
  closeSync(to);
  return files;
}

/** How the bytes get out of the one device and into the other. */
interface Way {
  readonly name: string;
  save(fd: number, sink: ChunkSink): Promise<void>;
  load(fd: number): (source: ChunkSource, length: number) => Promise<void>;
}

const DATA_FD: Way = {
  name: 'data-fd',
  async save(fd, sink) {
    while ((await sink.pump(fd, 64 * MIB)).end === 'more');
  },
  load: (fd) => (source, length) => source.pump(fd, length),
};

const REGION_CHUNKS: Way = {
  name: 'region-64MiB',
  async save(fd, sink) {
    for (let at = 0; at < BYTES; at += REGION) {
      await sink.pumpPieces([{ fd, offset: at, length: Math.min(REGION, BYTES - at) }]);
    }
  },
  load(fd) {
    let at = 0;
    return (source, length) => {
      const offset = at;
      at += length;
      return source.pumpPieces([{ fd, offset, length }]);
    };
  },
};

/** Bytes per nanosecond (GB/s). */
async function ours(files: Files, way: Way): Promise<number> {
  const listener = addon.listen({ family: 'inet', host: '127.0.0.1', port: 0, path: '' });
  const accepted = addon.accept(listener);
  const out = addon.channel(await addon.connect(addon.localAddress(listener), 5000));
  const into = addon.channel(await accepted);
  addon.closeListener(listener);
  const [from, to] = [openSync(files.from, 'r'), openSync(files.to, 'r+')];
  const writer = new StreamWriter(out);
  const reader = new StreamReader(into);
  const began = process.hrtime.bigint();
  const section = await startBulk(writer, 'bench');
  const sent = sendBulk(writer, 'end', section, (sink) => way.save(from, sink));
  const received = (async () => {
    const started = await reader.next();
    if (started.kind !== 'start') throw new Error('bench device-state: the section does not start');
    await receiveBulkStart(reader, started.section);
    const record = await reader.next();
    if (record.kind !== 'end') throw new Error('bench device-state: the section has no end');
    return receiveBulk(reader, record.section, { loadChunk: way.load(to) });
  })();
  const [, bytes] = await Promise.all([sent, received]);
  const ns = Number(process.hrtime.bigint() - began);
  if (bytes !== BYTES || out.txCrc !== into.rxCrc) throw new Error('bench device-state: bytes were lost');
  for (const channel of [out, into]) channel.abort();
  for (const fd of [from, to]) closeSync(fd);
  return BYTES / ns;
}

function compare({ from, to }: Files): void {
  const [a, b] = [openSync(from, 'r'), openSync(to, 'r')];
  const [left, right] = [Buffer.alloc(MIB), Buffer.alloc(MIB)];
  for (let at = 0; at < BYTES; at += MIB) {
    readSync(a, left, 0, MIB, at);
    readSync(b, right, 0, MIB, at);
    if (!left.equals(right)) throw new Error(`bench device-state: the contents differ in the MiB at ${at}`);
  }
  for (const fd of [a, b]) closeSync(fd);
}

/** MiB: VmHWM since it was last reset. proc(5), clear_refs 5 */
function peakMib(): number {
  return Number(/^VmHWM:\s+(\d+)/m.exec(readFileSync('/proc/self/status', 'latin1'))![1]) / 1024;
}

async function main(): Promise<void> {
  const dir = mkdtempSync('/dev/shm/ferry-bench-');
  try {
    const files = makeFiles(dir);
    const peer = join(dir, 'peer');
    execFileSync('gcc', ['-O2', '-o', peer, join(process.cwd(), 'bench/device-state-peer.c')]);
    const before = peakMib();
    const plain: number[] = [];
    for (const way of [DATA_FD, REGION_CHUNKS]) {
      const speeds: number[] = [];
      for (let turn = 0; turn < TURNS; turn++) {
        speeds.push(await ours(files, way));
        plain.push(BYTES / Number(execFileSync(peer, [files.from, files.to], { encoding: 'latin1' })));
      }
      // The peer wrote the same bytes, so what is compared has to be ours.
      const to = openSync(files.to, 'r+');
      ftruncateSync(to, 0);
      ftruncateSync(to, BYTES);
      closeSync(to);
      await ours(files, way);
      compare(files);
      const measured = {
        bench: 'device-state',
        peer: 'plain socket',
        unit: 'GB/s',
        better: 'higher',
        target: TARGET,
      } as const;
      line({ ...measured, case: way.name, ours: median(speeds), theirs: median(plain.slice(-TURNS)) });
    }
    line({
      bench: 'device-state',
      case: 'memory',
      ours: peakMib() - before,
      peer: 'limit',
      theirs: MEMORY_MIB,
      unit: 'MiB',
      better: 'lower',
      target: 1,
    });
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}

void main();
