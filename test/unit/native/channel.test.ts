// Channel: bytes in order, both directions, what abort() and a peer that goes away do. Contract: native/addon.ts, Channel.
import { type AddressInfo, createServer, type Socket } from 'node:net';
import { describe, expect, it } from 'vitest';
import { type Channel, kvmNode } from '../../../native/addon.ts';
import { StreamError, SysError } from '../../../native/errno.ts';
import { concat, crc32c, PAGE, pair, socketFds } from './channel-pair.ts';

const kvm = kvmNode();
const text = (s: string) => new TextEncoder().encode(s);
const string = (b: Uint8Array) => new TextDecoder().decode(b);
const caught = (promise: Promise<unknown>) => promise.then(() => null).catch((error: unknown) => error);

for (const kind of ['tcp', 'unix'] as const) {
  describe(`bytes over ${kind}`, () => {
    it('come exactly and in order, whatever the sizes on either side', async () => {
      const { a, b, close } = await pair(kind);
      const sent = new Uint8Array(3_000_000);
      for (let i = 0; i < sent.length; i++) sent[i] = (i * 31) >> 3;
      const sizes = [1, 7, 65536, 65537, 1_000_000, 3, 500_000];
      const writes: Promise<void>[] = [];
      let at = 0;
      for (const size of sizes) {
        writes.push(a.write(sent.subarray(at, at + size)));
        at += size;
      }
      const parts: Uint8Array[] = [];
      for (let left = at; left > 0; ) {
        const n = Math.min(left, 99_991);
        parts.push(await b.read(n));
        left -= n;
      }
      await Promise.all(writes);
      expect(Buffer.compare(concat(parts), sent.subarray(0, at))).toBe(0);
      expect(a.txBytes).toBe(at);
      expect(b.rxBytes).toBe(at);
      close();
    });

    it('run through one CRC32C per direction, the same on both sides', async () => {
      const { a, b, close } = await pair(kind);
      const hello = text('123456789');
      await a.write(hello);
      await b.read(4);
      await b.read(5);
      expect(a.txCrc).toBe(0xe3069283); // RFC 3720 B.4's check value of "123456789"
      expect(b.rxCrc).toBe(0xe3069283);
      expect(b.txCrc).toBe(0);
      const large = new Uint8Array(200_001).map((_, i) => i * 7);
      const writing = a.write(large);
      await b.read(large.length);
      await writing;
      expect(a.txCrc).toBe(crc32c(concat([hello, large])));
      expect(b.rxCrc).toBe(a.txCrc);
      close();
    });

    it('are summed right in runs of any length: the three parts at once of long ones, what is left of them, and what follows', async () => {
      const { a, b, close } = await pair(kind);
      const bytes = new Uint8Array(20_007);
      for (let i = 0, seed = 1; i < bytes.length; i++) {
        seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
        bytes[i] = seed >>> 24;
      }
      const third = 2048; // kPart of native/src/crc32c.cc
      let expected = 0;
      for (const length of [0, 1, 7, 8, 9].flatMap((more) => [
        more,
        third + more,
        3 * third - more,
        6 * third + more,
      ])) {
        const run = bytes.subarray(length % 11, (length % 11) + length);
        await a.write(run);
        await b.read(length);
        expected = crc32c(run, expected);
        expect([a.txCrc, b.rxCrc], `after ${length} bytes`).toEqual([expected, expected]);
      }
      close();
    });

    it('end with a sentence when the peer ends the stream, after all that came before', async () => {
      const { a, b, close } = await pair(kind);
      await a.write(text('last'));
      await a.end();
      expect(string(await b.read(4))).toBe('last');
      const error = await caught(b.read(1));
      expect(error).toBeInstanceOf(StreamError);
      expect(String(error)).toContain('the stream ended while reading 1 bytes: the peer closed the connection');
      await b.write(text('still')); // the other direction is open
      expect(string(await a.read(5))).toBe('still');
      close();
    });

    it('refuse to end in the middle', async () => {
      const { a, b, close } = await pair(kind);
      await a.write(text('half'));
      await a.end();
      expect(await caught(b.read(5))).toBeInstanceOf(StreamError);
      close();
    });

    it('say what was being done when the peer went away', async () => {
      const { a, b, close } = await pair(kind);
      b.abort();
      let error: unknown = null;
      for (let i = 0; i < 100 && error === null; i++) error = await caught(a.write(new Uint8Array(1_000_000)));
      expect(error).toBeInstanceOf(StreamError);
      expect(String(error)).toMatch(/the connection broke while sending: the peer went away \((EPIPE|ECONNRESET)\)/);
      close();
    });
  });
}

describe('abort', () => {
  it('rejects everything that is pending with ECANCELED, in both directions and at once', async () => {
    const { a, b } = await pair();
    const pending = [
      a.read(1),
      a.read(1),
      a.write(new Uint8Array(10_000_000)), // more than the socket holds; nobody reads
      a.write(new Uint8Array(1)),
      a.end(),
    ].map(caught);
    a.abort();
    for (const error of await Promise.all(pending)) {
      expect(error).toBeInstanceOf(SysError);
      expect((error as SysError).code).toBe('ECANCELED');
    }
    a.abort(); // idempotent
    expect(a.fd).toBe(-1);
    expect(((await caught(a.read(1))) as SysError).code).toBe('ECANCELED');
    expect(((await caught(a.write(text('x')))) as SysError).code).toBe('ECANCELED');
    expect(await caught(b.read(20_000_000 / 2))).toBeInstanceOf(StreamError);
    b.abort();
  });

  it('closes the fd', async () => {
    const { a, b } = await pair();
    const fd = a.fd;
    const pending = caught(a.read(1));
    a.abort();
    await pending;
    // The rx thread lets go of the number when it has come back.
    let code = '';
    for (let i = 0; i < 1000 && code === ''; i++) {
      await new Promise((resolve) => setTimeout(resolve, 5));
      try {
        kvm.localAddress(fd);
      } catch (error) {
        code = (error as SysError).code;
      }
    }
    expect(code).toMatch(/EBADF|ENOTSOCK/);
    b.abort();
  });

  it('works on channels that never did anything, and on 200 of them in a row', async () => {
    for (let i = 0; i < 200; i++) {
      const { a, b } = await pair();
      if (i % 2) {
        const pending = caught(b.read(1));
        a.abort();
        await pending;
      }
      a.abort();
      b.abort();
    }
  });
});

describe('the door', () => {
  it('refuses what is not a descriptor, not bytes, or too large', async () => {
    expect(() => kvm.channel(-1)).toThrow(RangeError);
    expect(() => kvm.channel(999_999)).toThrow('channel: EBADF');
    const { a, close } = await pair();
    expect(() => a.read(16 * 1024 * 1024 + 1)).toThrow(RangeError);
    expect(() => a.read(-1)).toThrow(RangeError);
    expect(() => a.write('text' as unknown as Uint8Array)).toThrow(TypeError);
    const ram = kvm.createRam(4 * PAGE, { hugePages: false, populate: false });
    const bits = kvm.createBitmap(5);
    const send = (block: string, from: number) =>
      a.sendPages(ram, bits, block, { from, maxPages: 1, bytesPerSecond: 0 });
    expect(() => send('ram', 0)).toThrow('more pages than guest RAM');
    const fit = kvm.createBitmap(4);
    const sendFit = (block: string, from: number) =>
      a.sendPages(ram, fit, block, { from, maxPages: 1, bytesPerSecond: 0 });
    expect(() => sendFit('', 0)).toThrow(RangeError);
    expect(() => sendFit('x'.repeat(256), 0)).toThrow(RangeError);
    expect(() => sendFit('ram', 5)).toThrow(RangeError);
    expect(() => a.pumpFrom(999_999, 1, 1n)).toThrow('dup(data fd): EBADF');
    ram.close();
    expect(() => a.receivePages(ram, 'ram', null)).toThrow(TypeError);
    close();
  });

  it('takes the read of nothing and the write of nothing', async () => {
    const { a, b, close } = await pair();
    expect((await a.read(0)).length).toBe(0);
    await a.write(new Uint8Array(0));
    await a.write(text('x'));
    expect(string(await b.read(1))).toBe('x');
    close();
  });

  it('copies what it writes: the caller may reuse its buffer at once', async () => {
    const { a, b, close } = await pair();
    const buffer = new Uint8Array(2_000_000).fill(1);
    const writing = a.write(buffer);
    buffer.fill(2);
    const got = await b.read(buffer.length);
    await writing;
    expect(got.every((byte) => byte === 1)).toBe(true);
    close();
  });
});

describe('a pipe as the connection', () => {
  it('carries a stream one way', async () => {
    const { execFileSync } = await import('node:child_process');
    const { openSync } = await import('node:fs');
    const path = `/tmp/ferry-fifo-${process.pid}`;
    execFileSync('mkfifo', [path]);
    const both = openSync(path, 'r+'); // so that neither end waits for the other
    const reader = kvm.channel(openSync(path, 'r'));
    const writer = kvm.channel(openSync(path, 'w'));
    kvm.closeFd(both);
    execFileSync('rm', [path]);
    const large = new Uint8Array(1_000_000).fill(7);
    const writing = writer.write(large);
    expect(Buffer.compare(await reader.read(large.length), large)).toBe(0);
    await writing;
    await writer.end();
    expect(await caught(reader.read(1))).toBeInstanceOf(StreamError);
    const waiting = caught(reader.read(1));
    reader.abort();
    writer.abort();
    await waiting;
  });
});

describe('life', () => {
  it('goes on while something is pending, and a channel that was dropped is collected with its fd', async () => {
    const [one, other] = await socketFds('unix');
    (() => {
      kvm.channel(one);
    })();
    const peer = kvm.channel(other);
    const ended = caught(peer.read(1));
    const { setFlagsFromString } = await import('node:v8');
    const { runInNewContext } = await import('node:vm');
    setFlagsFromString('--expose-gc');
    const gc = runInNewContext('gc') as () => void;
    let error: unknown = null;
    ended.then((value) => {
      error = value;
    });
    for (let i = 0; i < 200 && error === null; i++) {
      gc();
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    expect(error).toBeInstanceOf(StreamError); // the dropped end was closed, and this one, pending, was not
    peer.abort();
  });
});

/** A channel by TCP and its peer. */
async function toPeer(): Promise<{ channel: Channel; socket: Socket; close(): void }> {
  let accepted: ((socket: Socket) => void) | null = null;
  const peer = new Promise<Socket>((resolve) => {
    accepted = resolve;
  });
  const server = createServer({ pauseOnConnect: true }, (socket) => accepted!(socket));
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  const channel = kvm.channel(await kvm.connect({ family: 'inet', host: '127.0.0.1', port, path: '' }, 5000));
  const close = () => {
    channel.abort();
    server.close();
  };
  return { channel, socket: await peer, close };
}

describe('an error of the connection', () => {
  it('is told by both directions, though the kernel tells it once: neither calls it an end of the stream', async () => {
    // scripts/sanitize.mjs sets FERRY_TEST_SMALL: it looks at the memory and the threads, not at which direction is told first.
    for (let turn = 0; turn < (process.env['FERRY_TEST_SMALL'] ? 5 : 20); turn++) {
      const { channel, socket, close } = await toPeer();
      // More than the socket's buffers hold: the tx thread waits in it as the rx thread does for its byte.
      const writing = caught(channel.write(new Uint8Array(16 << 20)));
      const reading = caught(channel.read(1));
      await new Promise((resolve) => setTimeout(resolve, 10));
      socket.resetAndDestroy();
      for (const error of await Promise.all([writing, reading])) {
        expect(String(error), `turn ${turn}`).toMatch(/the connection broke .*: the peer went away \(ECONNRESET\)/);
      }
      close();
    }
  });

  it('comes behind the good-bye of a peer: a process that was killed with bytes unread', async () => {
    const { channel, socket, close } = await toPeer();
    const writing = caught(channel.write(new Uint8Array(16 << 20)));
    socket.end();
    await new Promise((resolve) => setTimeout(resolve, 20));
    socket.resetAndDestroy();
    expect(String(await writing)).toMatch(/the connection broke .*: the peer went away \(EPIPE\)/);
    expect(String(await caught(channel.read(1)))).toMatch(/the connection broke .*: the peer went away \(EPIPE\)/);
    close();
  });
});
