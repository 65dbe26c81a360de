// Channels between two processes, and what becomes of operations that are pending when a process or a worker ends.
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { resolve } from 'node:path';
import { Worker } from 'node:worker_threads';
import { describe, expect, it } from 'vitest';
import { kvmNode, type SocketAddress } from '../../../native/addon.ts';
import { StreamError } from '../../../native/errno.ts';
import { PAGE } from './channel-pair.ts';

const kvm = kvmNode();
const ADDON = resolve(process.env['FERRY_ADDON'] ?? 'build/Release/kvm_node.node');
const BYTES = 32 * 1024 * 1024;
/** Plain JS for `node -e`: the addon alone, RAM with known content and a channel to the address in argv. */
const PRELUDE = `
  const kvm = require(${JSON.stringify(ADDON)});
  kvm.adoptErrors(class SysError extends Error {}, class StreamError extends Error {});
  const ram = kvm.createRam(${BYTES}, { hugePages: false, populate: false });
  const page = Buffer.alloc(${PAGE});
  for (let n = 0; n < ${BYTES / PAGE}; n += 2) { page.fill(n * 7 + 1); page.writeUInt32LE(n); ram.copyIn(n * ${PAGE}, page); }
  const bits = kvm.createBitmap(${BYTES / PAGE});
  bits.fill();
  const all = { from: 0, maxPages: 1e9, bytesPerSecond: 0 };
  const eos = Buffer.from('0000000000000010', 'hex');
  const later = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
`;

function child(body: string, address: SocketAddress | null = null): ChildProcess {
  const script = `${PRELUDE}(async () => { ${body} })().catch((error) => { console.error(error); process.exit(9); });`;
  return spawn(process.execPath, ['-e', script, JSON.stringify(address)], { stdio: ['ignore', 'pipe', 'inherit'] });
}
async function exitOf(process: ChildProcess): Promise<number | string | null> {
  const [code, signal] = await once(process, 'exit');
  return signal ?? code;
}
const CONNECT = 'const channel = kvm.channel(await kvm.connect(JSON.parse(process.argv[1]), 10000));';

async function from(kind: 'inet' | 'unix', body: string) {
  const path = kind === 'unix' ? `/tmp/ferry-process-${process.pid}` : '';
  const listener = kvm.listen({ family: kind, host: kind === 'inet' ? '127.0.0.1' : '', port: 0, path });
  const accepted = kvm.accept(listener);
  const process_ = child(CONNECT + body, kvm.localAddress(listener));
  const channel = kvm.channel(await accepted);
  kvm.closeListener(listener);
  return { channel, process: process_, exit: exitOf(process_) };
}

// scripts/sanitize.mjs sets FERRY_TEST_SMALL: Node starts slowly with its runtime, and to our code the two are one.
const KINDS = process.env['FERRY_TEST_SMALL'] ? (['inet'] as const) : (['inet', 'unix'] as const);

describe('between two processes', () => {
  for (const kind of KINDS) {
    it(`RAM is the same afterwards, over ${kind}`, async () => {
      const body = `
        await channel.sendPages(ram, bits, 'ram', all);
        await channel.write(eos);
        await channel.write(Buffer.from((await ram.hash(0, ${BYTES})).toString().padStart(20)));
        await channel.end();`;
      const { channel, exit } = await from(kind, body);
      const to = kvm.createRam(BYTES, { hugePages: false, populate: false });
      expect(await channel.receivePages(to, 'ram', null)).toMatchObject({ pages: 4096, zeroPages: 4096 });
      const hash = BigInt(Buffer.from(await channel.read(20)).toString());
      expect(await to.hash(0, BYTES)).toBe(hash);
      expect(await exit).toBe(0);
      channel.abort();
    });

    it(`a source that is killed in the middle is a stream that ended, over ${kind}`, async () => {
      const slow = `await channel.sendPages(ram, bits, 'ram', { ...all, bytesPerSecond: 4e6 });`;
      const { channel, process: source, exit } = await from(kind, slow);
      const to = kvm.createRam(BYTES, { hugePages: false, populate: false });
      const receiving = channel.receivePages(to, 'ram', null).catch((error: unknown) => error);
      while (to.resident() < 100 * PAGE) await new Promise((resolve) => setTimeout(resolve, 5));
      source.kill('SIGKILL');
      expect(await exit).toBe('SIGKILL');
      const error = await receiving;
      expect(error).toBeInstanceOf(StreamError);
      expect(String(error)).toMatch(/while reading RAM pages: the peer (closed the connection|went away)/);
      channel.abort();
    });

    it(`a destination that is killed in the middle is a broken connection, over ${kind}`, async () => {
      const { channel, process: destination, exit } = await from(kind, 'await channel.read(4096); await later(1e6);');
      const ram = kvm.createRam(BYTES, { hugePages: false, populate: false });
      ram.copyIn(0, new Uint8Array(BYTES).fill(1));
      const bits = kvm.createBitmap(BYTES / PAGE);
      bits.fill();
      const options = { from: 0, maxPages: BYTES / PAGE, bytesPerSecond: 0 };
      const sending = channel.sendPages(ram, bits, 'ram', options).catch((error: unknown) => error);
      await new Promise((resolve) => setTimeout(resolve, 50));
      destination.kill('SIGKILL');
      await exit;
      const error = await sending;
      expect(error).toBeInstanceOf(StreamError);
      expect(String(error)).toContain('the connection broke while sending RAM pages: the peer went away');
      channel.abort();
    });
  }
});

describe('a process that ends', () => {
  it('of itself, when nothing is pending any more', async () => {
    const { channel, exit } = await from('unix', 'await channel.write(eos);');
    await channel.read(8);
    expect(await exit).toBe(0);
    channel.abort();
  });

  it('by process.exit, with every kind of operation pending', async () => {
    const body = `
      channel.read(1); channel.sendPages(ram, bits, 'ram', all); channel.write(eos);
      const listener = kvm.listen({ family: 'inet', host: '127.0.0.1', port: 0, path: '' });
      kvm.accept(listener);
      await later(50);
      process.exit(7);`;
    const { channel, exit } = await from('unix', body);
    expect(await exit).toBe(7);
    channel.abort();
  });

  it('stays while something is pending', async () => {
    const { channel, process: peer, exit } = await from('unix', 'await channel.read(1); process.exitCode = 5;');
    await new Promise((resolve) => setTimeout(resolve, 100));
    expect(peer.exitCode).toBe(null);
    await channel.write(Uint8Array.of(1));
    expect(await exit).toBe(5);
    channel.abort();
  });
});

describe('a worker that ends', () => {
  it('takes its channels with it, pending or not', async () => {
    const listener = kvm.listen({ family: 'inet', host: '127.0.0.1', port: 0, path: '' });
    const body = `
      const { parentPort, workerData } = require('node:worker_threads');
      ${PRELUDE}
      (async () => {
        const idle = kvm.channel(await kvm.connect(workerData, 10000));
        const busy = kvm.channel(await kvm.connect(workerData, 10000));
        busy.read(1); busy.sendPages(ram, bits, 'ram', all);
        parentPort.postMessage('pending');
      })();`;
    const worker = new Worker(body, { eval: true, workerData: kvm.localAddress(listener) });
    const pending = once(worker, 'message'); // it may come before both connections are accepted
    const peers = [kvm.channel(await kvm.accept(listener)), kvm.channel(await kvm.accept(listener))];
    await pending;
    await worker.terminate();
    for (const peer of peers) {
      const rest = (async () => {
        for (;;) await peer.read(1000);
      })();
      expect(await rest.catch((error: unknown) => error)).toBeInstanceOf(StreamError);
      peer.abort();
    }
    kvm.closeListener(listener);
  });
});
