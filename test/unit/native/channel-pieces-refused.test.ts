// Chunks of device state made of pieces, when something goes wrong on the way: a region that refuses, a peer that goes away, an abort. What
// of the stream is left then: see PumpPiecesFrom and PumpPiecesTo of native/src/chunk_pieces.h. Files stand for the device's region.
import { execFileSync } from 'node:child_process';
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { type ChunkPiece, kvmNode } from '../../../native/addon.ts';
import { StreamError, SysError } from '../../../native/errno.ts';
import { channelPair } from '../../fakes/memory-channel.ts';
import { be64, concat, pair } from './channel-pair.ts';

const kvm = kvmNode();
const dir = mkdtempSync(join(tmpdir(), 'ferry-pieces-'));
const ram = kvm.createRam(2 ** 27, { hugePages: false, populate: false });
const window = kvm.mapFd(ram.fd, 0, 2 ** 27, true);
afterAll(() => {
  window.unmap();
  ram.close();
  rmSync(dir, { recursive: true });
});
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
const bytesOf = (n: number, seed: number) => new Uint8Array(n).map((_, i) => (i * seed) >> 2);

describe('pumpPiecesFrom', () => {
  it('leaves no trace of a record whose region, of at most 1 MiB in all, is refused: the channel goes on', async () => {
    const { a, b, close } = await pair();
    const short = openSync(file(new Uint8Array(10)), 'r');
    const folder = openSync(dir, 'r');
    const event = kvm.eventFd();
    const before = { bytes: new Uint8Array(3 * MIB) };
    for (const [pieces, message] of [
      [[{ fd: folder, offset: 0, length: MIB }], 'pread(device region): EISDIR'],
      [[{ fd: event, offset: 0, length: 8 }], 'pread(device region): ESPIPE'],
      [
        [before, { fd: short, offset: 0, length: 10 }, { fd: folder, offset: 0, length: 1 }],
        'pread(device region): EISDIR',
      ],
      [[before, { fd: short, offset: 0, length: 20 }], 'pread(device region): only 10 of 20 bytes taken: EIO'],
      [
        [{ bytes: new Uint8Array(100) }, { fd: short, offset: 0, length: 20 }],
        'pread(device region): only 10 of 20 bytes taken: EIO',
      ],
      [[{ fd: short, offset: 10, length: 1 }], 'pread(device region): only 0 of 1 bytes taken: EIO'],
    ] as [ChunkPiece[], string][]) {
      const error = await caught(a.pumpPiecesFrom(pieces, TAG));
      expect(error).toBeInstanceOf(SysError);
      expect(String(error)).toContain(message);
      const fake = channelPair();
      expect(String(await caught(fake.source.pumpPiecesFrom(pieces, TAG)))).toBe(String(error));
    }
    expect([a.txBytes, a.txCrc]).toEqual([0, 0]);
    await a.write(Uint8Array.of(1));
    expect([...(await b.read(1))]).toEqual([1]);
    for (const fd of [short, folder]) closeSync(fd);
    kvm.closeFd(event);
    close();
  });

  it('breaks the channel when the region is refused after the head was sent', async () => {
    const { a, b, close } = await pair();
    const fd = openSync(file(new Uint8Array(1_500_000)), 'r');
    const receiving = b.read(MIB + 16);
    const error = await caught(a.pumpPiecesFrom([{ fd, offset: 0, length: 3 * MIB }], TAG));
    expect(error).toBeInstanceOf(SysError);
    expect(String(error)).toContain(`pread(device region): only ${1_500_000 - MIB} of ${MIB} bytes taken: EIO`);
    const begun = concat([be64(TAG), be64(BigInt(3 * MIB)), new Uint8Array(MIB)]);
    expect(Buffer.compare(await receiving, begun)).toBe(0);
    expect(String(await caught(a.write(Uint8Array.of(1))))).toBe(String(error));
    expect(String(await caught(a.pumpPiecesFrom([{ bytes: Uint8Array.of(1) }], TAG)))).toBe(String(error));
    expect(a.txBytes).toBe(MIB + 16);
    closeSync(fd);
    close();
  });

  it('is aborted while the peer takes nothing', async () => {
    const { a, close } = await pair();
    const fd = openSync(file(new Uint8Array(8 * MIB)), 'r');
    for (const piece of [
      { fd, offset: 0, length: 8 * MIB },
      { mapping: window, offset: 0, length: 64 * MIB },
    ]) {
      const full = await pair();
      const sending = caught(full.a.pumpPiecesFrom([piece], TAG));
      await later(20);
      full.a.abort();
      expect(((await sending) as SysError).code).toBe('ECANCELED');
      full.close();
    }
    a.abort();
    expect(((await caught(a.pumpPiecesFrom([{ bytes: Uint8Array.of(1) }], TAG))) as SysError).code).toBe('ECANCELED');
    closeSync(fd);
    close();
  });
});

describe('pumpPiecesTo', () => {
  it('names the write that a region refused, consumes the bytes, and writes nothing behind it', async () => {
    const { a, b, close } = await pair();
    const fd = openSync(file(new Uint8Array(0)), 'r');
    const path = file(Uint8Array.of(5));
    const good = openSync(path, 'r+');
    ram.copyIn(0, Uint8Array.of(5));
    const bytes = Uint8Array.of(5);
    const data = bytesOf(2 * MIB + 4, 3).fill(0xff, 0, 1);
    const writing = a.write(concat([data, Uint8Array.of(7)]));
    const error = await caught(
      b.pumpPiecesTo([
        { bytes },
        { fd, offset: 0, length: 2 * MIB + 1 },
        { mapping: window, offset: 0, length: 1 },
        { fd: good, offset: 0, length: 1 },
      ]),
    );
    expect(error).toBeInstanceOf(SysError);
    expect(String(error)).toContain('pwrite(device region): EBADF');
    await writing;
    const landed = new Uint8Array(1);
    ram.copyOut(0, landed);
    expect([...bytes, ...landed, ...readFileSync(path)]).toEqual([5, 5, 5]);
    expect([...(await b.read(1))]).toEqual([7]);
    expect(b.rxCrc).toBe(a.txCrc);
    for (const each of [fd, good]) closeSync(each);
    close();
  });

  it('names a short write', async () => {
    const { a, b, close } = await pair();
    const fd = openSync(file(new Uint8Array(0)), 'w');
    await a.write(concat([new Uint8Array(16), Uint8Array.of(7)]));
    const limit = (bytes: string) => execFileSync('prlimit', ['--pid', `${process.pid}`, `--fsize=${bytes}:`]);
    limit('10'); // RLIMIT_FSIZE: a write over it is cut short
    const error = await caught(b.pumpPiecesTo([{ fd, offset: 0, length: 16 }]));
    limit('unlimited');
    expect(error).toBeInstanceOf(SysError);
    expect(String(error)).toContain('pwrite(device region): only 10 of 16 bytes taken: EIO');
    expect([...(await b.read(1))]).toEqual([7]);
    closeSync(fd);
    close();
  });

  it('refuses a stream that ends inside a piece of any kind', async () => {
    const fd = openSync(file(new Uint8Array(0)), 'w');
    for (const piece of [
      { fd, offset: 0, length: 101 },
      { mapping: window, offset: 0, length: 101 },
      { bytes: new Uint8Array(101) },
    ]) {
      const { a, b, close } = await pair();
      await a.write(new Uint8Array(100));
      await a.end();
      const error = await caught(b.pumpPiecesTo([piece]));
      expect(error).toBeInstanceOf(StreamError);
      expect(String(error)).toContain('while reading device data');
      close();
    }
    closeSync(fd);
  });

  it('is aborted while the peer sends nothing, and then fills nothing', async () => {
    const { a, b, close } = await pair();
    const fd = openSync(file(new Uint8Array(0)), 'r+');
    const bytes = new Uint8Array(1);
    const waiting = caught(b.pumpPiecesTo([{ bytes }, { fd, offset: 0, length: 2 }]));
    await a.write(Uint8Array.of(9, 9));
    await later(20);
    b.abort();
    expect(((await waiting) as SysError).code).toBe('ECANCELED');
    expect([...bytes]).toEqual([0]);
    closeSync(fd);
    close();
  });

  it('refuses a mapping that is read-only: a store into it would end the process', async () => {
    const { a, b, close } = await pair();
    const only = kvm.mapFd(ram.fd, 0, 4096, false);
    expect(() => b.pumpPiecesTo([{ mapping: only, offset: 0, length: 1 }])).toThrow('read-only');
    await a.pumpPiecesFrom([{ mapping: only, offset: 0, length: 1 }], TAG);
    expect((await b.read(17)).length).toBe(17);
    only.unmap();
    close();
  });
});
