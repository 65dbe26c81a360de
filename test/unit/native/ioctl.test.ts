// ioctl at the door: what is refused before the kernel sees it, what comes back, and that host addresses stay out of JS.
// FIONREAD on a pipe-like fd and FS_IOC_GETFLAGS need no device; the fiemap ioctl of a memfd is refused by the kernel with its errno.
import { once } from 'node:events';
import { closeSync, openSync } from 'node:fs';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { afterAll, describe, expect, it } from 'vitest';
import { kvmNode } from '../../../native/addon.ts';
import { SysError } from '../../../native/errno.ts';

const kvm = kvmNode();
const ram = kvm.createRam(2 ** 20, { hugePages: false, populate: false });
const ptmx = openSync('/dev/ptmx', 'r+');
afterAll(() => {
  ram.close();
  closeSync(ptmx);
});

// asm-generic/ioctls.h
const TIOCGPTN = 0x80045430;
const FIONREAD = 0x541b;
// linux/kvm.h
const KVM_GET_SUPPORTED_CPUID = 0xc008ae05;
// linux/vfio.h, VFIO_DEVICE_GET_INFO
const VFIO_DEVICE_GET_INFO = 0x3b6b;

describe('ioctl', () => {
  it('copies the struct back', () => {
    const arg = new Uint8Array(4).fill(0xff);
    expect(kvm.ioctl('TIOCGPTN', ptmx, TIOCGPTN, arg)).toBe(0);
    expect(new DataView(arg.buffer).getUint32(0, true)).toBeLessThan(0xffffffff);
  });

  it('throws SysError with the given name and the errno', () => {
    const attempt = () => kvm.ioctl('KVM_GET_API_VERSION', ram.fd, 0xae00, 0);
    expect(attempt).toThrow(SysError);
    expect(attempt).toThrow('KVM_GET_API_VERSION: ENOTTY');
    expect(() => kvm.ioctl('X', 99999, 0xae00, 0)).toThrow('X: EBADF');
  });

  it('the async form rejects with the same error and resolves with the same result', async () => {
    await expect(kvm.ioctlAsync('Y', 99999, 0xae00, 0)).rejects.toThrow(SysError);
    const arg = new Uint8Array(4).fill(0xff);
    expect(await kvm.ioctlAsync('TIOCGPTN', ptmx, TIOCGPTN, arg)).toBe(0);
    expect(arg[3]).toBe(0);
  });

  it('refuses a struct shorter than the kernel would write', () => {
    expect(() => kvm.ioctl('TIOCGPTN', ptmx, TIOCGPTN, new Uint8Array(3))).toThrow(RangeError);
    // Counted: 2 entries need 8 + 80 bytes.
    expect(() => kvm.ioctl('c', ram.fd, KVM_GET_SUPPORTED_CPUID, Uint8Array.of(2, ...new Array(86).fill(0)))).toThrow(
      RangeError,
    );
    // argsz beyond the array.
    expect(() => kvm.ioctl('v', ram.fd, VFIO_DEVICE_GET_INFO, Uint8Array.of(21, ...new Array(19).fill(0)))).toThrow(
      RangeError,
    );
    expect(() => kvm.ioctl('v', ram.fd, VFIO_DEVICE_GET_INFO, Uint8Array.of(20, ...new Array(19).fill(0)))).toThrow(
      'v: ENOTTY',
    );
  });

  it('refuses a number where the request wants a struct: that would be a host address from JS', () => {
    expect(() => kvm.ioctl('TIOCGPTN', ptmx, TIOCGPTN, 4096)).toThrow(TypeError);
  });

  it('refuses patches outside the argument, outside what they name, or that name nothing', () => {
    const arg = new Uint8Array(16);
    const attempt = (patch: object, argument: Uint8Array | number = arg) =>
      kvm.ioctl('p', ram.fd, FIONREAD, argument, [patch as never]);
    expect(() => attempt({ at: 9, ram, offset: 0, length: 1 })).toThrow(RangeError);
    expect(() => attempt({ at: 0, ram, offset: 0, length: 1 }, 0)).toThrow(RangeError);
    expect(() => attempt({ at: 0, ram, offset: 2 ** 20, length: 1 })).toThrow(RangeError);
    expect(() => attempt({ at: 0, ram: {}, offset: 0, length: 1 })).toThrow(TypeError);
    expect(() => attempt({ at: 0 })).toThrow(TypeError);
    expect(() => attempt({ ram, offset: 0, length: 1 })).toThrow(TypeError);
    const bitmap = kvm.createBitmap(128);
    expect(() => attempt({ at: 0, bitmap, firstPage: 1, pages: 1 })).toThrow(RangeError);
    expect(() => attempt({ at: 0, bitmap, firstPage: 64, pages: 65 })).toThrow(RangeError);
    bitmap.close();
    expect(() => attempt({ at: 0, bitmap, firstPage: 0, pages: 1 })).toThrow('closed');
  });

  it('zeroes the patched pointer in what JS gets back, also after a failure', () => {
    const arg = new Uint8Array(16).fill(0xff);
    expect(() => kvm.ioctl('q', 99999, FIONREAD, arg, [{ at: 4, ram, offset: 4096, length: 1 }])).toThrow('q: EBADF');
    expect([...arg]).toEqual([255, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255]);
    const three = [1, 2, 3].map((value) => new Uint8Array(5000).fill(value));
    const patches = three.map((bytes, n) => ({ at: n * 8, bytes }));
    const wide = new Uint8Array(24).fill(0xff);
    expect(() => kvm.ioctl('q', 99999, FIONREAD, wide, patches)).toThrow('q: EBADF');
    expect(wide.every((byte) => byte === 0)).toBe(true);
    expect(three.map((bytes) => [bytes[0], bytes[4999]])).toEqual([
      [1, 1],
      [2, 2],
      [3, 3],
    ]);
  });
});

describe('a worker that ends while its calls are on their threads', () => {
  it('takes nobody with it', async () => {
    const addon = process.env['FERRY_ADDON'] ?? join(process.cwd(), 'build/Release/kvm_node.node');
    // scripts/sanitize.mjs sets FERRY_TEST_SMALL: its addon takes several times as long for a byte.
    const size = process.env['FERRY_TEST_SMALL'] ? 2 ** 23 : 2 ** 26;
    const body = `
      const { parentPort } = require('node:worker_threads');
      const kvm = require(${JSON.stringify(addon)});
      kvm.adoptErrors(class extends Error {}, class extends Error {});
      const ram = kvm.createRam(${size}, { hugePages: false, populate: false });
      const again = () => ram.hash(0, ${size}).then(again);
      for (let i = 0; i < 4; i++) again();
      parentPort.postMessage('busy');`;
    for (let round = 0; round < 10; round++) {
      const worker = new Worker(body, { eval: true });
      await once(worker, 'message');
      await new Promise((resolve) => setTimeout(resolve, round * 3));
      await worker.terminate();
    }
    // What their threads still held is let go of when they end.
    await ram.hash(0, 2 ** 20);
  });
});
