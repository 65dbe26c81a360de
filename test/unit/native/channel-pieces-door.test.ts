// What pumpPiecesFrom and pumpPiecesTo refuse at the door: arguments of other types and sizes, before a byte went. The work itself:
// channel-pieces.test.ts.
import { closeSync, fstatSync, mkdtempSync, openSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { type ChunkPiece, kvmNode } from '../../../native/addon.ts';
import { SysError } from '../../../native/errno.ts';
import { pair } from './channel-pair.ts';

const kvm = kvmNode();
const dir = mkdtempSync(join(tmpdir(), 'ferry-door-'));
const ram = kvm.createRam(2 ** 20, { hugePages: false, populate: false });
const window = kvm.mapFd(ram.fd, 0, 2 ** 20, true);
afterAll(() => {
  window.unmap();
  ram.close();
  rmSync(dir, { recursive: true });
});
const TAG = 0xffffffffef100004n;
const caught = (promise: Promise<unknown>) => promise.then(() => null).catch((error: unknown) => error);
/** The file of the pieces that name an fd. Sockets of the tests before may still be closing, so no others are counted. */
const device = openSync(join(dir, 'device'), 'w+');
afterAll(() => closeSync(device));
const { ino } = fstatSync(device);
const descriptors = () => readdirSync('/proc/self/fd').filter((fd) => inodeOf(Number(fd)) === ino).length;

function inodeOf(fd: number): number | null {
  try {
    return fstatSync(fd).ino;
  } catch {
    return null;
  }
}

describe.each(['pumpPiecesFrom', 'pumpPiecesTo'] as const)('%s refuses', (call) => {
  const good = { bytes: new Uint8Array(1) };
  const gone = kvm.mapFd(ram.fd, 0, 4096, true);
  gone.unmap();
  const cases: [string, unknown, typeof TypeError | typeof RangeError][] = [
    ['no array', { 0: good, length: 1 }, TypeError],
    ['nothing', undefined, TypeError],
    ['a piece of null', [null], TypeError],
    ['a piece that names nothing', [{}], TypeError],
    ['a hole', new Array(2), TypeError],
    ['bytes of another type', [{ bytes: new Uint16Array(4) }], TypeError],
    ['bytes that are a string', [{ bytes: 'abc' }], TypeError],
    ['a mapping that is none', [{ mapping: {}, offset: 0, length: 1 }], TypeError],
    ['guest RAM for a mapping', [{ mapping: ram, offset: 0, length: 1 }], TypeError],
    ['an unmapped mapping', [{ mapping: gone, offset: 0, length: 1 }], TypeError],
    ['a mapping without offset', [{ mapping: window, length: 1 }], TypeError],
    ['a mapping without length', [{ mapping: window, offset: 0 }], TypeError],
    ['memory outside the mapping', [{ mapping: window, offset: 2 ** 20 - 1, length: 2 }], RangeError],
    ['memory that begins outside', [{ mapping: window, offset: 2 ** 20 + 1, length: 0 }], RangeError],
    ['an fd that is a string', [{ fd: '1', offset: 0, length: 1 }], TypeError],
    ['an fd that is null', [{ fd: null, offset: 0, length: 1 }], TypeError],
    ['a negative fd', [{ fd: -1, offset: 0, length: 1 }], RangeError],
    ['a negative offset', [{ fd: device, offset: -1, length: 1 }], RangeError],
    ['a fraction of a byte', [{ fd: device, offset: 0, length: 0.5 }], RangeError],
    ['an end beyond 2^63', [{ fd: device, offset: 2n ** 63n - 1n, length: 1 }], RangeError],
    ['no piece', [], RangeError],
    ['no byte', [{ bytes: new Uint8Array(0) }, { fd: device, offset: 0, length: 0 }], RangeError],
    ['more than 1 GiB', [{ fd: device, offset: 0, length: 2 ** 30 + 1 }], RangeError],
    ['more than 1 GiB in all', [good, { fd: device, offset: 0, length: 2 ** 30 }], RangeError],
    ['lengths whose sum wraps', [good, { fd: device, offset: 0, length: 2n ** 64n - 1n }], RangeError],
    ['more than 1024 pieces', new Array(1025).fill(good), RangeError],
  ];
  it.each(cases)('%s, before a byte went and without keeping a descriptor', async (_name, pieces, kind) => {
    const { a, b, close } = await pair();
    const attempt = () => (a[call] as (pieces: unknown, tag: bigint) => unknown).call(a, pieces, TAG);
    expect(attempt).toThrow(kind);
    expect(attempt).not.toThrow(SysError);
    expect(descriptors()).toBe(1);
    expect([a.txBytes, b.rxBytes]).toEqual([0, 0]);
    close();
  });

  it('an fd that is not open, with SysError, and passes on what a getter throws', async () => {
    const { a, close } = await pair();
    expect(() => a[call]([{ fd: 99999, offset: 0, length: 1 }], TAG)).toThrow('dup(device fd): EBADF');
    for (const [name, rest] of [
      ['mapping', {}],
      ['fd', {}],
      ['bytes', {}],
      ['offset', { mapping: window, length: 1 }],
      ['length', { fd: 0, offset: 0 }],
    ] as const) {
      const thrower = Object.defineProperty({ ...rest }, name, {
        get() {
          throw new Error(`mine: ${name}`);
        },
      }) as unknown as ChunkPiece;
      expect(() => a[call]([good, thrower], TAG)).toThrow(`mine: ${name}`);
    }
    const late = [good, good];
    Object.defineProperty(late, 1, {
      get() {
        throw new Error('mine too');
      },
    });
    expect(() => a[call](late, TAG)).toThrow('mine too');
    close();
  });

  it('takes 1 GiB and 1024 pieces, the limits themselves', async () => {
    const { a, close } = await pair();
    const fd = openSync(join(dir, 'region'), 'w+');
    const open = descriptors();
    const whole = caught(a[call]([{ fd, offset: 0, length: 2 ** 30 }], TAG));
    const many = caught(a[call](new Array(1024).fill({ fd, offset: 0, length: 1 }), TAG));
    expect(descriptors() - open).toBeLessThanOrEqual(2); // one duplicate a call, not one a piece
    a.abort();
    for (const error of [await whole, await many]) expect(error).toBeInstanceOf(SysError);
    closeSync(fd);
    close();
  });
});

describe('pumpPiecesFrom refuses', () => {
  it('a tag that is no u64', async () => {
    const { a, close } = await pair();
    const attempt = (tag: unknown) => a.pumpPiecesFrom([{ bytes: Uint8Array.of(1) }], tag as bigint);
    for (const tag of [1, '1', null, undefined]) expect(() => attempt(tag)).toThrow(TypeError);
    for (const tag of [-1n, 2n ** 64n]) expect(() => attempt(tag)).toThrow(RangeError);
    expect(a.txBytes).toBe(0);
    close();
  });
});
