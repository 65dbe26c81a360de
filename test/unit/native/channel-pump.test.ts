// Device data between a data fd and a Channel: framing, the ways a data fd ends or refuses, and abort while it has nothing.
// linux/vfio.h, VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE; pipes, files and an eventfd stand for drivers here.
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync, writeSync } from 'node:fs';
import { type AddressInfo, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { kvmNode } from '../../../native/addon.ts';
import { StreamError, SysError } from '../../../native/errno.ts';
import { be64, concat, crc32c, pair } from './channel-pair.ts';

const kvm = kvmNode();
const dir = mkdtempSync(join(tmpdir(), 'ferry-pump-'));
afterAll(() => rmSync(dir, { recursive: true }));
const TAG = 0xffffffffef100004n;
const MIB = 1024 * 1024;
const caught = (promise: Promise<unknown>) => promise.then(() => null).catch((error: unknown) => error);
const later = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

let made = 0;
function file(bytes: Uint8Array): string {
  const path = join(dir, `f${made++}`);
  writeFileSync(path, bytes);
  return path;
}
/** The two ends of a pipe. */
function pipe(): { read: number; write: number } {
  const path = join(dir, `p${made++}`);
  execFileSync('mkfifo', [path]);
  const both = openSync(path, 'r+');
  const ends = { read: openSync(path, 'r'), write: openSync(path, 'w') };
  closeSync(both);
  return ends;
}
const bytesOf = (n: number, seed: number) => new Uint8Array(n).map((_, i) => (i * seed) >> 2);

describe('pumpFrom', () => {
  it('frames what each read gave with tag and length, at most 1 MiB, and ends at the end of the data', async () => {
    const { a, b, close } = await pair();
    const data = bytesOf(MIB + 1000, 13);
    const fd = openSync(file(data), 'r');
    const pumping = a.pumpFrom(fd, 1024 * MIB, TAG);
    const got = await b.read(data.length + 32);
    expect(await pumping).toEqual({ bytes: data.length, end: 'end' });
    const expected = concat([
      be64(TAG),
      be64(BigInt(MIB)),
      data.subarray(0, MIB),
      be64(TAG),
      be64(1000n),
      data.subarray(MIB),
    ]);
    expect(Buffer.compare(got, expected)).toBe(0);
    expect(a.txCrc).toBe(crc32c(expected)); // device data is in the CRC
    expect(b.rxCrc).toBe(a.txCrc);
    closeSync(fd);
    close();
  });

  it('stops at the budget and says that there is more', async () => {
    const { a, b, close } = await pair();
    const fd = openSync(file(bytesOf(10_000, 3)), 'r');
    expect(await a.pumpFrom(fd, 4000, TAG)).toEqual({ bytes: 4000, end: 'more' });
    expect(await a.pumpFrom(fd, 0, TAG)).toEqual({ bytes: 0, end: 'more' });
    expect(await a.pumpFrom(fd, 1_000_000, TAG)).toEqual({ bytes: 6000, end: 'end' });
    expect(a.txBytes).toBe(10_000 + 32);
    await b.read(1);
    closeSync(fd);
    close();
  });

  it('waits for a data fd that has nothing yet, and leaves its flags as they were', async () => {
    const { a, b, close } = await pair();
    const ends = pipe();
    const flagsBefore = readFileSync(`/proc/self/fdinfo/${ends.read}`, 'utf8');
    const pumping = a.pumpFrom(ends.read, 5, TAG);
    await later(20);
    writeSync(ends.write, 'hello');
    expect(await pumping).toEqual({ bytes: 5, end: 'more' });
    expect(readFileSync(`/proc/self/fdinfo/${ends.read}`, 'utf8')).toBe(flagsBefore);
    expect(new TextDecoder().decode((await b.read(21)).subarray(16))).toBe('hello');
    closeSync(ends.write);
    expect(await a.pumpFrom(ends.read, 5, TAG)).toEqual({ bytes: 0, end: 'end' });
    closeSync(ends.read);
    close();
  });

  it('names the read that a driver refused; the stream has nothing of it and goes on', async () => {
    const { a, b, close } = await pair();
    const fd = openSync(dir, 'r'); // read(2) of a directory: EISDIR
    const error = await caught(a.pumpFrom(fd, 5, TAG));
    expect(error).toBeInstanceOf(SysError);
    expect(String(error)).toContain('read(data fd): EISDIR');
    expect(a.txBytes).toBe(0);
    await a.write(Uint8Array.of(1));
    expect([...(await b.read(1))]).toEqual([1]);
    closeSync(fd);
    close();
  });

  it('is aborted while the data fd has nothing, and while the peer takes nothing', async () => {
    const waiting = await pair();
    const ends = pipe();
    const pumping = caught(waiting.a.pumpFrom(ends.read, 5, TAG));
    await later(20);
    waiting.a.abort();
    expect(((await pumping) as SysError).code).toBe('ECANCELED');
    waiting.close();
    const full = await pair();
    const fd = openSync(file(new Uint8Array(8 * MIB)), 'r');
    const sending = caught(full.a.pumpFrom(fd, 8 * MIB, TAG));
    await later(20);
    full.a.abort();
    expect(((await sending) as SysError).code).toBe('ECANCELED');
    full.close();
    for (const each of [ends.read, ends.write, fd]) closeSync(each);
  });
});

describe('pumpTo', () => {
  it('writes exactly `length` bytes to a file, and leaves what follows', async () => {
    const { a, b, close } = await pair();
    const data = bytesOf(3 * MIB + 5, 7);
    const path = file(new Uint8Array(0));
    const fd = openSync(path, 'w');
    const writing = a.write(concat([data, Uint8Array.of(9)]));
    await b.pumpTo(fd, data.length);
    await writing;
    expect([...(await b.read(1))]).toEqual([9]);
    expect(Buffer.compare(readFileSync(path), data)).toBe(0);
    expect(b.rxCrc).toBe(a.txCrc);
    closeSync(fd);
    close();
  });

  it('waits for a pipe that is full', async () => {
    const { a, b, close } = await pair();
    const ends = pipe();
    const data = bytesOf(MIB, 5);
    const reader = kvm.channel(ends.read);
    const writing = a.write(data);
    const pumping = b.pumpTo(ends.write, data.length);
    await later(20);
    expect(Buffer.compare(await reader.read(data.length), data)).toBe(0);
    await Promise.all([writing, pumping]);
    closeSync(ends.write);
    reader.abort();
    close();
  });

  it('names the write that a driver refused, consumes the bytes, and the stream goes on behind them', async () => {
    const { a, b, close } = await pair();
    const fd = kvm.eventFd(); // takes 8 bytes, not ~0: EINVAL
    const data = new Uint8Array(1_500_000).fill(0xff);
    const writing = a.write(concat([data, Uint8Array.of(7)]));
    const error = await caught(b.pumpTo(fd, data.length));
    expect(error).toBeInstanceOf(SysError);
    expect(String(error)).toContain('write(data fd): EINVAL');
    await writing;
    expect([...(await b.read(1))]).toEqual([7]);
    expect(b.rxCrc).toBe(a.txCrc);
    kvm.closeFd(fd);
    close();
  });

  it('names a short write', async () => {
    const { a, b, close } = await pair();
    const fd = openSync(file(new Uint8Array(0)), 'w');
    await a.write(concat([new Uint8Array(16), Uint8Array.of(7)]));
    const limit = (bytes: string) => execFileSync('prlimit', ['--pid', `${process.pid}`, `--fsize=${bytes}:`]);
    limit('10'); // RLIMIT_FSIZE: a write over it is cut short
    const error = await caught(b.pumpTo(fd, 16));
    limit('unlimited');
    expect(error).toBeInstanceOf(SysError);
    expect(String(error)).toContain('write(data fd): only 10 of 16 bytes taken');
    expect([...(await b.read(1))]).toEqual([7]);
    closeSync(fd);
    close();
  });

  it('refuses a stream that ends inside the data', async () => {
    const { a, b, close } = await pair();
    const fd = openSync(file(new Uint8Array(0)), 'w');
    await a.write(new Uint8Array(100));
    await a.end();
    const error = await caught(b.pumpTo(fd, 101));
    expect(error).toBeInstanceOf(StreamError);
    expect(String(error)).toContain('while reading device data');
    closeSync(fd);
    close();
  });

  it('is aborted while the pipe is full, and while the peer sends nothing', async () => {
    const { a, b, close } = await pair();
    const ends = pipe();
    const writing = caught(a.write(new Uint8Array(MIB)));
    const pumping = caught(b.pumpTo(ends.write, MIB));
    await later(20);
    b.abort();
    expect(((await pumping) as SysError).code).toBe('ECANCELED');
    close();
    await writing;
    const silent = await pair();
    const waiting = caught(silent.b.pumpTo(ends.write, 1));
    silent.b.abort();
    expect(((await waiting) as SysError).code).toBe('ECANCELED');
    silent.close();
    closeSync(ends.read);
    closeSync(ends.write);
  });
});

describe('pumpTo with records that may follow', () => {
  const END = concat([be64(0xffffffffef100001n), be64(5n)]);
  const record = (data: Uint8Array, tag = TAG) => concat([be64(tag), be64(BigInt(data.length)), data]);
  /** All of it is in the receiver's socket when this resolves. */
  async function arrived(kind: 'tcp' | 'unix', ...parts: Uint8Array[]) {
    const ends = await pair(kind);
    await ends.a.write(concat(parts));
    const path = file(new Uint8Array(0));
    const fd = openSync(path, 'w');
    return { ...ends, fd, path, left: async (length: number) => [...(await ends.b.read(length))] };
  }

  it('takes along those of its tag that have arrived, and leaves what is none', async () => {
    const parts = [bytesOf(1000, 3), bytesOf(1, 5), bytesOf(40_000, 7)] as const;
    const { a, b, fd, path, left, close } = await arrived('unix', parts[0], record(parts[1]), record(parts[2]), END);
    expect(await b.pumpTo(fd, 1000, { tag: TAG, budget: 64 * MIB })).toBe(41_001);
    expect(Buffer.compare(readFileSync(path), concat(parts))).toBe(0);
    expect(await left(16)).toEqual([...END]);
    expect([b.rxBytes, b.rxCrc]).toEqual([a.txBytes, a.txCrc]);
    closeSync(fd);
    close();
  });

  it.each([
    ['of another tag', record(Uint8Array.of(4), TAG + 1n), 64 * MIB],
    ['of no bytes', record(new Uint8Array(0)), 64 * MIB],
    ['that does not fit into the budget', record(new Uint8Array(3)), 6],
    ['when the budget is used up', record(Uint8Array.of(4)), 2],
    ['whose length is nonsense', concat([be64(TAG), be64(2n ** 64n - 1n)]), 64 * MIB],
    ['whose head is not there yet', be64(TAG), 64 * MIB],
  ])('leaves one %s for whoever reads next', async (_which, next, budget) => {
    const { a, b, fd, path, left, close } = await arrived(
      'unix',
      Uint8Array.of(1, 2),
      record(Uint8Array.of(8, 9)),
      next,
    );
    const went = await b.pumpTo(fd, 2, { tag: TAG, budget });
    expect(went).toBe(budget === 2 ? 2 : 4);
    expect([...readFileSync(path)]).toEqual([1, 2, 8, 9].slice(0, went));
    const rest = budget === 2 ? record(Uint8Array.of(8, 9)) : next;
    await a.write(Uint8Array.of(7)); // it did not wait for more, and took nothing of it
    expect((await left(rest.length + (budget === 2 ? next.length : 0) + 1)).slice(0, rest.length)).toEqual([...rest]);
    expect(b.rxCrc).toBe(a.txCrc);
    closeSync(fd);
    close();
  });

  it('carries many records of any size behind each other, as fast as they come', async () => {
    const { a, b, close } = await pair('tcp');
    const path = file(new Uint8Array(0));
    const fd = openSync(path, 'w');
    const data = bytesOf(9 * MIB + 77, 11);
    const sending = (async () => {
      for (let at = 0, size = 1; at < data.length; size = Math.min(size * 3, MIB)) {
        await a.write(record(data.subarray(at, at + size)));
        at += size;
      }
      await a.write(END);
    })();
    let went = 0;
    for (;;) {
      const head = Buffer.from(await b.read(16));
      if (head.readBigUInt64BE(0) !== TAG) break;
      went += await b.pumpTo(fd, Number(head.readBigUInt64BE(8)), { tag: TAG, budget: 4 * MIB });
    }
    await sending;
    expect(went).toBe(data.length);
    expect(Buffer.compare(readFileSync(path), data)).toBe(0);
    expect([b.rxBytes, b.rxCrc]).toEqual([a.txBytes, a.txCrc]);
    closeSync(fd);
    close();
  });

  it('stops behind a record that the driver refused: its bytes are consumed, those of the next are not', async () => {
    const event = kvm.eventFd();
    const one = Uint8Array.of(1, 0, 0, 0, 0, 0, 0, 0);
    const next = record(one);
    const { b, fd, left, close } = await arrived('unix', one, record(new Uint8Array(8).fill(0xff)), next);
    const error = await caught(b.pumpTo(event, 8, { tag: TAG, budget: MIB }));
    expect(String(error)).toContain('write(data fd): EINVAL');
    expect(await left(next.length)).toEqual([...next]);
    expect(kvm.eventTake(event)).toBe(1n);
    kvm.closeFd(event);
    closeSync(fd);
    close();
  });

  it('leaves to the next read how the stream ended, and why the connection broke', async () => {
    const { a, b, fd, close } = await arrived('unix', Uint8Array.of(1));
    await a.end();
    expect(await b.pumpTo(fd, 1, { tag: TAG, budget: MIB })).toBe(1);
    expect(String(await caught(b.read(1)))).toContain('the peer closed the connection');
    close();
    const server = createServer();
    await once(server.listen(0, '127.0.0.1'), 'listening');
    const peer = once(server, 'connection') as Promise<[Socket]>;
    const { port } = server.address() as AddressInfo;
    const channel = kvm.channel(await kvm.connect({ family: 'inet', host: '127.0.0.1', port, path: '' }, 5000));
    const [socket] = await peer;
    socket.write(Uint8Array.of(1), () => socket.resetAndDestroy());
    await later(100);
    expect(await channel.pumpTo(fd, 1, { tag: TAG, budget: MIB })).toBe(1);
    expect(String(await caught(channel.read(1)))).toContain('the peer went away (ECONNRESET)');
    channel.abort();
    server.close();
    closeSync(fd);
  });

  it('refuses a tag or budget of another type, before a byte went', async () => {
    const { b, fd, left, close } = await arrived('unix', Uint8Array.of(1));
    const attempt = (following: unknown) => () => b.pumpTo(fd, 1, following as { tag: bigint; budget: number });
    for (const wrong of [null, 1, {}, { tag: 1, budget: 1 }, { tag: 1n }]) expect(attempt(wrong)).toThrow(TypeError);
    expect(attempt({ tag: 1n, budget: -1 })).toThrow(RangeError);
    expect(await left(1)).toEqual([1]);
    closeSync(fd);
    close();
  });
});
