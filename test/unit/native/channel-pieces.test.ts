// Chunks of device state made of pieces: framing and CRC against an independent channel (test/fakes), the ways a region refuses, what JS may
// do meanwhile. Files stand for the device's region, mappings of guest RAM for its mapped windows.
import { execFileSync } from 'node:child_process';
import {
  closeSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { type Channel, type ChunkPiece, type HostMapping, kvmNode } from '../../../native/addon.ts';
import { StreamError, SysError } from '../../../native/errno.ts';
import { channelPair } from '../../fakes/memory-channel.ts';
import { be64, concat, crc32c, pair } from './channel-pair.ts';

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
function mapping(bytes: Uint8Array): HostMapping {
  ram.copyIn(0, bytes);
  return kvm.mapFd(ram.fd, 0, Math.ceil(bytes.length / 4096) * 4096, true);
}
const descriptors = () => readdirSync('/proc/self/fd').length;

/** Sums of the io files in /proc over this process's threads of that name: calls of the read (write) kind and their bytes; no sendmsg, no recv. */
function io(name: string, kind: 'r' | 'w'): { calls: number; bytes: number } {
  const sum = { calls: 0, bytes: 0 };
  for (const task of readdirSync('/proc/self/task')) {
    const of = `/proc/self/task/${task}`;
    if (readFileSync(`${of}/comm`, 'utf8').trim() !== name) continue;
    const counts = readFileSync(`${of}/io`, 'utf8');
    sum.calls += Number(new RegExp(`sysc${kind}: (\\d+)`).exec(counts)![1]);
    sum.bytes += Number(new RegExp(`${kind}char: (\\d+)`).exec(counts)![1]);
  }
  return sum;
}
/** Accesses of a region since then, which took `bytes` in all. A lane also writes 8 bytes to an eventfd when it wakes the JS thread. */
function accesses(before: ReturnType<typeof io>, now: ReturnType<typeof io>, bytes: number): number {
  return now.calls - before.calls - (now.bytes - before.bytes - bytes) / 8;
}

/** `size` bytes as a header, a mapped window, a gap and a second window, with empty pieces between them. */
function layout(size: number, fd: number, map: HostMapping, bytes: Uint8Array): ChunkPiece[] {
  const head = Math.min(16, size);
  const first = Math.floor((size - head) / 4);
  const gap = Math.ceil((size - head) / 2);
  return [
    { bytes: bytes.subarray(0, head) },
    { mapping: map, offset: head, length: first },
    { bytes: new Uint8Array(0) },
    { fd, offset: head + first, length: gap },
    { fd, offset: 0, length: 0 },
    { mapping: map, offset: map.size, length: 0 },
    { mapping: map, offset: head + first + gap, length: size - head - first - gap },
  ];
}

describe('pumpPiecesFrom and pumpPiecesTo', () => {
  it('are one record of tag, length of all and the bytes in order, all of it in the CRC; the fake channel agrees', async () => {
    const { a, b, close } = await pair();
    const data = bytesOf(5000, 13);
    const map = mapping(data);
    const fd = openSync(file(data), 'r');
    const pieces: ChunkPiece[] = [
      { bytes: Uint8Array.of(1, 2, 3) },
      { mapping: map, offset: 4097, length: 301 },
      { fd, offset: 77, length: 2000 },
      { bytes: new Uint8Array(0) },
      { fd, offset: 9, length: 1 },
    ];
    await a.pumpPiecesFrom(pieces, TAG);
    const expected = concat([
      be64(TAG),
      be64(2305n),
      Uint8Array.of(1, 2, 3),
      data.subarray(4097, 4398),
      data.subarray(77, 2077),
      data.subarray(9, 10),
    ]);
    expect(Buffer.compare(await b.read(expected.length), expected)).toBe(0);
    expect([a.txBytes, a.txCrc]).toEqual([expected.length, crc32c(expected)]);
    expect(b.rxCrc).toBe(a.txCrc);
    const fake = channelPair();
    await fake.source.pumpPiecesFrom(pieces, TAG);
    expect(Buffer.compare(fake.written(), expected)).toBe(0);
    expect(fake.source.txCrc).toBe(a.txCrc);
    closeSync(fd);
    map.unmap();
    close();
  });

  const sizes = [1, 2, 15, 17, 4097, MIB - 1, MIB, MIB + 1, 2 * MIB + 32, 3 * MIB + 5];
  const channels: [string, () => Promise<{ a: Channel; b: Channel; close(): void }>][] = [
    ['sockets', () => pair()],
    [
      'the fake channel',
      async () => {
        const { source, destination } = channelPair();
        return { a: source, b: destination, close: () => source.abort() };
      },
    ],
  ];
  describe.each(channels)('over %s', (_name, connect) => {
    it.each(sizes)('carry %i bytes from one layout of pieces into another', async (size) => {
      const { a, b, close } = await connect();
      const data = bytesOf(size, 7);
      const map = mapping(data);
      const fd = openSync(file(data), 'r');
      const sending = a.pumpPiecesFrom(layout(size, fd, map, data), TAG);
      expect(Buffer.compare(await b.read(16), concat([be64(TAG), be64(BigInt(size))]))).toBe(0);
      const path = file(new Uint8Array(0));
      const into = openSync(path, 'r+');
      // The mirror of the layout: what came out of a window goes into the file and the other way round.
      const bytes = new Uint8Array(size);
      const target = layout(size, into, window, bytes);
      const base = 2 ** 26;
      const mirrored = target.map((piece): ChunkPiece => {
        if ('bytes' in piece) return piece;
        if ('mapping' in piece)
          return { fd: into, offset: piece.length === 0 ? 0 : piece.offset, length: piece.length };
        return { mapping: window, offset: base + piece.offset, length: piece.length };
      });
      await b.pumpPiecesTo(mirrored);
      await sending;
      truncateSync(path, size);
      const got = new Uint8Array(readFileSync(path));
      for (const piece of mirrored) {
        if ('bytes' in piece) got.set(piece.bytes, piece.bytes.byteOffset);
        else if ('mapping' in piece)
          ram.copyOut(piece.offset, got.subarray(piece.offset - base).subarray(0, piece.length));
      }
      expect(Buffer.compare(got, data)).toBe(0);
      expect(b.rxCrc).toBe(a.txCrc);
      expect(b.rxBytes).toBe(size + 16);
      for (const each of [fd, into]) closeSync(each);
      map.unmap();
      close();
    });
  });

  it.each(['fd', 'mapping', 'bytes'] as const)('carry more than 64 MiB in one piece: %s', async (kind) => {
    const { a, b, close } = await pair();
    const size = 65 * MIB + 3;
    const data = new Uint8Array(size);
    new Uint32Array(data.buffer, 0, size >> 2).forEach((_, i, words) => {
      words[i] = i * 2654435761;
    });
    const [from, to] = [file(data), file(new Uint8Array(0))];
    const [fd, into] = [openSync(from, 'r'), openSync(to, 'r+')];
    ram.copyIn(0, kind === 'mapping' ? data : new Uint8Array(size));
    const filled = new Uint8Array(size);
    const [source, target]: [ChunkPiece, ChunkPiece] =
      kind === 'fd'
        ? [
            { fd, offset: 0, length: size },
            { fd: into, offset: 0, length: size },
          ]
        : kind === 'mapping'
          ? [
              { mapping: window, offset: 0, length: size },
              { mapping: window, offset: 2 ** 26 - 4096, length: 4099 },
            ]
          : [{ bytes: data }, { bytes: filled }];
    const sending = a.pumpPiecesFrom([source], TAG);
    await b.read(16);
    if (kind === 'mapping') await b.pumpPiecesTo([{ bytes: filled.subarray(0, size - 4099) }, target]);
    else await b.pumpPiecesTo([target]);
    await sending;
    if (kind === 'mapping') ram.copyOut(2 ** 26 - 4096, filled.subarray(size - 4099));
    expect(Buffer.compare(kind === 'fd' ? readFileSync(to) : filled, data)).toBe(0);
    expect(b.rxCrc).toBe(a.txCrc);
    for (const each of [fd, into]) closeSync(each);
    close();
  });

  it('queue with the other operations of their direction, in call order', async () => {
    const { a, b, close } = await pair();
    const bytes = new Uint8Array(3);
    const reads = [b.read(17), b.pumpPiecesTo([{ bytes }]), b.read(1)];
    const writes = [
      a.write(Uint8Array.of(7)),
      a.pumpPiecesFrom([{ bytes: Uint8Array.of(1, 2, 3) }], TAG),
      a.write(Uint8Array.of(8)),
    ];
    const [first, , last] = await Promise.all(reads);
    await Promise.all(writes);
    expect([...(first as Uint8Array), ...bytes, ...(last as Uint8Array)]).toEqual([
      ...concat([Uint8Array.of(7), be64(TAG), be64(3n), Uint8Array.of(1, 2, 3, 8)]),
    ]);
    close();
  });

  it('access a region with the sizes that were given, split only at 1 MiB', async () => {
    const { a, b, close } = await pair();
    const fd = openSync(file(new Uint8Array(8 * MIB)), 'r+');
    for (const [lengths, calls] of [
      [[4], 1],
      [[4, 4, 8], 3],
      [[MIB], 1],
      [[MIB, MIB], 2],
      [[100, MIB], 2],
      [[3 * MIB + 5], 4],
      [[600_000, 600_000, 1], 3],
    ] as const) {
      // Odd lengths before each: no access may depend on how full a buffer is.
      const pieces = lengths.flatMap((length): ChunkPiece[] => [
        { bytes: new Uint8Array(777) },
        { fd, offset: 3, length },
        { mapping: window, offset: 5, length: 1001 },
      ]);
      const bytes = lengths.reduce<number>((sum, length) => sum + length, 0);
      const [read, written] = [io('channel tx', 'r'), io('channel rx', 'w')];
      const sending = a.pumpPiecesFrom(pieces, TAG);
      await b.read(16);
      await b.pumpPiecesTo(pieces);
      await sending;
      expect(accesses(read, io('channel tx', 'r'), bytes), `read ${lengths}`).toBe(calls);
      expect(accesses(written, io('channel rx', 'w'), bytes), `write ${lengths}`).toBe(calls);
    }
    closeSync(fd);
    close();
  });

  it('hold what they work on: fd, mapping and bytes may be closed, unmapped and transferred at once', async () => {
    const before = descriptors();
    const size = 2 * MIB;
    for (let round = 0; round < 10; round++) {
      const { a, b, close } = await pair();
      const data = bytesOf(size, 11);
      const map = mapping(data);
      const fd = openSync(file(data), 'r');
      const head = Uint8Array.of(1, 2, 3);
      const sending = a.pumpPiecesFrom(
        [{ bytes: head }, { mapping: map, offset: 0, length: size }, { fd, offset: 0, length: size }],
        TAG,
      );
      closeSync(fd);
      map.unmap();
      structuredClone(head.buffer, { transfer: [head.buffer] });
      await b.read(16);
      const path = file(new Uint8Array(0));
      const into = openSync(path, 'r+');
      const target = kvm.mapFd(ram.fd, 2 ** 26, size, true);
      const [filled, gone] = [new Uint8Array(2), new Uint8Array(1)];
      const receiving = b.pumpPiecesTo([
        { bytes: filled },
        { bytes: gone },
        { mapping: target, offset: 0, length: size },
        { fd: into, offset: 0, length: size },
      ]);
      closeSync(into);
      target.unmap();
      structuredClone(gone.buffer, { transfer: [gone.buffer] });
      await Promise.all([sending, receiving]);
      const got = new Uint8Array(size);
      ram.copyOut(2 ** 26, got);
      expect([...filled]).toEqual([1, 2]);
      expect(gone.length).toBe(0);
      expect(Buffer.compare(got, data)).toBe(0);
      expect(Buffer.compare(readFileSync(path), data)).toBe(0);
      close();
    }
    await expect.poll(() => descriptors() - before, { timeout: 5000 }).toBeLessThanOrEqual(0);
  });
});

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
