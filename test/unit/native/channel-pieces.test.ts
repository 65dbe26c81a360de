// Chunks of device state made of pieces: framing and CRC against an independent channel (test/fakes), sizes of accesses, and what JS may do
// meanwhile. Refusals: channel-pieces-refused.test.ts and channel-pieces-door.test.ts.
// Files stand for the device's region, mappings of guest RAM for its mapped windows.
import {
  closeSync,
  existsSync,
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

const counted = existsSync('/proc/self/io');
const tasks = () => readdirSync('/proc/self/task');
/**
 * How often the threads of that name, but for the `old` ones, called read or write for the `bytes` that they moved so; sendmsg and recv do
 * not count. A lane also writes 8 bytes to an eventfd whenever it wakes the JS thread: those are taken off.
 */
function accesses(name: string, kind: 'r' | 'w', old: ReadonlySet<string>, bytes: number): number {
  let calls = 0;
  let moved = 0;
  for (const task of tasks().filter((id) => !old.has(id))) {
    const of = `/proc/self/task/${task}`;
    if (readFileSync(`${of}/comm`, 'utf8').trim() !== name) continue;
    const counts = readFileSync(`${of}/io`, 'utf8');
    calls += Number(new RegExp(`sysc${kind}: (\\d+)`).exec(counts)![1]);
    moved += Number(new RegExp(`${kind}char: (\\d+)`).exec(counts)![1]);
  }
  return calls - (moved - bytes) / 8;
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

  // scripts/sanitize.mjs sets FERRY_TEST_SMALL: more of the same bytes is nothing more for a sanitizer to see.
  const large = (process.env['FERRY_TEST_SMALL'] ? 5 : 65) * MIB + 3;
  it.each(['fd', 'mapping', 'bytes'] as const)(`carry ${large} bytes in one piece: %s`, async (kind) => {
    const { a, b, close } = await pair();
    const size = large;
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

  if (!counted) console.warn('skipped: this kernel does not count the calls of a thread (/proc/self/io)');
  it.skipIf(!counted).each([
    [[4], 1],
    [[4, 4, 8], 3],
    [[MIB], 1],
    [[MIB, MIB], 2],
    [[100, MIB], 2],
    [[3 * MIB + 5], 4],
    [[600_000, 600_000, 1], 3],
  ])('access a region with the sizes that were given, split only at 1 MiB: %j', async (lengths, calls) => {
    const old = new Set(tasks());
    const { a, b, close } = await pair();
    const fd = openSync(file(new Uint8Array(8 * MIB)), 'r+');
    // Other pieces before each: no access may depend on how full a buffer is.
    const pieces = (at: number) =>
      lengths.flatMap((length): ChunkPiece[] => [
        { bytes: new Uint8Array(777) },
        { fd, offset: 3, length },
        { mapping: window, offset: at, length: 1001 },
      ]);
    const bytes = lengths.reduce((sum, length) => sum + length, 0);
    const sending = a.pumpPiecesFrom(pieces(0), TAG);
    await b.read(16);
    await b.pumpPiecesTo(pieces(2 ** 26));
    await sending;
    // A call may be counted a moment after it woke us.
    await expect.poll(() => accesses('channel tx', 'r', old, bytes), { timeout: 5000 }).toBe(calls);
    await expect.poll(() => accesses('channel rx', 'w', old, bytes), { timeout: 5000 }).toBe(calls);
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
    await expect.poll(() => descriptors() - before, { timeout: 15_000 }).toBeLessThanOrEqual(0);
  });
});
