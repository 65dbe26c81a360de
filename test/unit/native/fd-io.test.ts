// preadAsync and pwriteAsync: what comes back, what is refused, and what JS may do to fd and buffer meanwhile. Files stand for regions.
import { once } from 'node:events';
import {
  closeSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { afterAll, describe, expect, it } from 'vitest';
import { kvmNode } from '../../../native/addon.ts';
import { SysError } from '../../../native/errno.ts';

const kvm = kvmNode();
const dir = mkdtempSync(join(tmpdir(), 'ferry-fd-io-'));
afterAll(() => rmSync(dir, { recursive: true }));
const MIB = 1024 * 1024;
/** scripts/sanitize.mjs sets FERRY_TEST_SMALL: more of the same bytes is nothing more for a sanitizer to see. */
const LARGEST = (process.env['FERRY_TEST_SMALL'] ? 5 : 65) * MIB + 3;
const SIZES = [0, 1, 3, MIB - 1, MIB + 1, LARGEST];

let made = 0;
function file(bytes: Uint8Array): string {
  const path = join(dir, `f${made++}`);
  writeFileSync(path, bytes);
  return path;
}
const bytesOf = (n: number, seed: number) => new Uint8Array(n).map((_, i) => (i * seed) >> 2);
/** How many descriptors of this process are open files below `dir`. */
function open(): number {
  const targets = readdirSync('/proc/self/fd').map((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`);
    } catch {
      return ''; // the one that lists them
    }
  });
  return targets.filter((target) => target.startsWith(dir)).length;
}

describe('preadAsync', () => {
  it.each(SIZES)('reads %i bytes at an offset', async (size) => {
    const data = bytesOf(size + 9, 13);
    const fd = openSync(file(data), 'r');
    const into = new Uint8Array(size);
    expect(await kvm.preadAsync(fd, 7, into)).toBe(size);
    expect(Buffer.compare(into, data.subarray(7, 7 + size))).toBe(0);
    closeSync(fd);
  });

  it('leaves alone what the fd had no bytes for, as pread does', async () => {
    const fd = openSync(file(Uint8Array.of(1, 2, 3)), 'r');
    const [into, sync] = [new Uint8Array(6).fill(9), new Uint8Array(6).fill(9)];
    expect(await kvm.preadAsync(fd, 1n, into)).toBe(2);
    expect(kvm.pread(fd, 1, sync)).toBe(2);
    expect([...into]).toEqual([2, 3, 9, 9, 9, 9]);
    expect(into).toEqual(sync);
    expect(await kvm.preadAsync(fd, 2 ** 40, into)).toBe(0);
    closeSync(fd);
  });

  it('writes only into its own part of a larger buffer', async () => {
    const fd = openSync(file(Uint8Array.of(1, 2)), 'r');
    const all = new Uint8Array(6).fill(9);
    await kvm.preadAsync(fd, 0, all.subarray(2, 4));
    expect([...all]).toEqual([9, 9, 1, 2, 9, 9]);
    closeSync(fd);
  });

  it('reads from the file that was meant, also when JS closes the fd and its number goes to another one', async () => {
    const [one, other] = [file(Uint8Array.of(1)), file(Uint8Array.of(2))];
    for (let round = 0; round < 50; round++) {
      const fd = openSync(one, 'r');
      const into = new Uint8Array(1);
      const pending = kvm.preadAsync(fd, 0, into);
      closeSync(fd);
      expect(openSync(other, 'r')).toBe(fd);
      expect(await pending).toBe(1);
      expect(into[0]).toBe(1);
      closeSync(fd);
    }
    expect(open()).toBe(0);
  });

  it('leaves alone a buffer that was transferred meanwhile', async () => {
    const fd = openSync(file(Uint8Array.of(1, 2, 3)), 'r');
    const into = new Uint8Array(3);
    const pending = kvm.preadAsync(fd, 0, into);
    const moved = new Uint8Array(structuredClone(into.buffer, { transfer: [into.buffer] }));
    expect(await pending).toBe(3);
    expect(into.length).toBe(0);
    expect([...moved]).toEqual([0, 0, 0]);
    closeSync(fd);
  });
});

describe('pwriteAsync', () => {
  it.each(SIZES)('writes %i bytes at an offset, as they were at the call', async (size) => {
    const path = file(Uint8Array.of(5, 5));
    const fd = openSync(path, 'r+');
    const from = bytesOf(size, 7);
    const pending = kvm.pwriteAsync(fd, 2, from);
    const expected = from.slice();
    from.fill(0xee);
    expect(await pending).toBe(size);
    expect(Buffer.compare(readFileSync(path), Buffer.concat([Uint8Array.of(5, 5), expected]))).toBe(0);
    expect(from.every((byte) => byte === 0xee)).toBe(true); // never written to
    closeSync(fd);
  });

  it('writes to the file that was meant, also when JS closes the fd and its number goes to another one', async () => {
    const [one, other] = [file(new Uint8Array(1)), file(new Uint8Array(1))];
    for (let round = 1; round <= 50; round++) {
      const fd = openSync(one, 'r+');
      const pending = kvm.pwriteAsync(fd, 0, Uint8Array.of(round));
      closeSync(fd);
      expect(openSync(other, 'r+')).toBe(fd);
      await pending;
      closeSync(fd);
      expect([...readFileSync(one), ...readFileSync(other)]).toEqual([round, 0]);
    }
    expect(open()).toBe(0);
  });
});

describe.each(['preadAsync', 'pwriteAsync'] as const)('%s', (call) => {
  it('rejects with SysError: its syscall and its errno', async () => {
    const name = call.replace('Async', '');
    const wrongWay = openSync(file(new Uint8Array(4)), call === 'preadAsync' ? 'w' : 'r');
    const event = kvm.eventFd();
    for (const [fd, errno] of [
      [99999, 'EBADF'],
      [wrongWay, 'EBADF'],
      [event, 'ESPIPE'],
    ] as const) {
      const error = await kvm[call](fd, 0, new Uint8Array(4)).catch((caught: unknown) => caught);
      expect(error).toBeInstanceOf(SysError);
      expect(String(error)).toContain(`${name}: ${errno}`);
    }
    closeSync(wrongWay);
    kvm.closeFd(event);
  });

  it('refuses arguments of other types and sizes before anything is done', () => {
    const fd = openSync(file(new Uint8Array(4)), 'r+');
    const into = new Uint8Array(4);
    const attempt = (...args: unknown[]) => (kvm[call] as (...args: unknown[]) => unknown)(...args);
    for (const wrong of ['1', null, undefined, {}, into]) {
      expect(() => attempt(wrong, 0, into)).toThrow(TypeError);
      expect(() => attempt(fd, wrong, into)).toThrow(TypeError);
    }
    for (const wrong of [
      'bytes',
      null,
      undefined,
      4,
      [1],
      new Uint16Array(4),
      new ArrayBuffer(4),
      new DataView(into.buffer),
    ])
      expect(() => attempt(fd, 0, wrong)).toThrow(TypeError);
    for (const wrong of [-1, 0.5, Number.NaN, 2 ** 53, 2n ** 64n, -1n]) {
      expect(() => attempt(wrong, 0, into)).toThrow(RangeError);
      expect(() => attempt(fd, wrong, into)).toThrow(RangeError);
    }
    expect(() => attempt(fd, 2n ** 63n, into)).toThrow(RangeError);
    expect(() => attempt(2 ** 31, 0, into)).toThrow(RangeError);
    closeSync(fd);
  });

  it('a worker that ends meanwhile takes nobody with it, and leaves no duplicate of the fd', async () => {
    const addon = process.env['FERRY_ADDON'] ?? join(process.cwd(), 'build/Release/kvm_node.node');
    const fd = openSync(file(new Uint8Array(8 * MIB)), 'r+');
    const body = `
      const { parentPort } = require('node:worker_threads');
      const kvm = require(${JSON.stringify(addon)});
      kvm.adoptErrors(class extends Error {}, class extends Error {});
      const again = () => kvm.${call}(${fd}, 0, new Uint8Array(8 * ${MIB})).then(again);
      for (let i = 0; i < 3; i++) again();
      parentPort.postMessage('busy');`;
    for (let round = 0; round < 5; round++) {
      const worker = new Worker(body, { eval: true });
      await once(worker, 'message');
      await new Promise((resolve) => setTimeout(resolve, round * 3));
      await worker.terminate();
    }
    await expect.poll(open, { timeout: 10_000 }).toBe(1);
    closeSync(fd);
  });
});
