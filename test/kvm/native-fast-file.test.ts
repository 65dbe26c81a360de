// The vCPU threads' own accesses to a device fd (fast windows with a file): a file of this test is the device, so that both sides can be read.
// A guest of a few instructions on /dev/kvm; devices/contract.ts, FastFile.
import { closeSync, fstatSync, mkdtempSync, openSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { kvmNode } from '../../native/addon.ts';
import { DONE, loopGuests, signal } from './loop-guests.ts';
import { accessOf, hasKvm } from './native-guest.ts';

const { guest } = loopGuests();

describe.skipIf(!hasKvm)('accesses that are passed on to a device fd', () => {
  let folder: string;
  const fds: number[] = [];
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'ferry-device-'));
  });
  afterAll(() => {
    for (const fd of fds) closeSync(fd);
    rmSync(folder, { recursive: true, force: true });
  });

  /** A "device" of these bytes, from 0x10 on; the window is over what follows. */
  function device(name: string, bytes: readonly number[], flags = 'r+') {
    const path = join(folder, name);
    writeFileSync(path, Uint8Array.from([...new Array(16).fill(0xee), ...bytes]));
    const fd = openSync(path, flags);
    fds.push(fd);
    return { path, fd, bytes: () => [...readFileSync(path).subarray(16)] };
  }

  /** Runs `code` with es = 0xd000 to its end; what exited to this thread. */
  async function run(code: string, add: (loop: ReturnType<typeof guest>['loop']) => void) {
    const seen: number[] = [];
    const done = signal<void>();
    const machine = guest(
      { blocks: [`mov $0xd000, %ax\n mov %ax, %es\n ${code}\n ${DONE}`] },
      {
        exit(index) {
          const { address } = accessOf(machine.runs[index]!);
          seen.push(address);
          if (address === 0xf4) done.resolve();
          return address !== 0xf4;
        },
      },
    );
    add(machine.loop);
    machine.loop.start();
    await done.promise;
    return { machine, seen };
  }

  const none = { shadow: null, reads: [], posts: [] };

  it('arrive there with their width and place, ports and memory, and nobody here is asked', async () => {
    const bar = device('bar', [1, 2, 3, 4, 5, 6, 7, 8]);
    const ports = device('ports', [0x51, 0x52]);
    const code = `
      movl %es:0x100, %eax
      mov %eax, 0x2000
      movw %es:0x105, %ax
      mov %ax, 0x2004
      movb $0x77, %es:0x107
      movw $0xbeef, %es:0x102
      inb $0x61, %al
      mov %al, 0x2008
      mov $0x99, %al
      outb %al, $0x60`;
    const { machine, seen } = await run(code, (loop) => {
      loop.addFast('mmio', 0xd0100, 8, { ...none, file: { fd: bar.fd, offset: 16, except: [] } });
      loop.addFast('pio', 0x60, 2, { ...none, file: { fd: ports.fd, offset: 16, except: [] } });
    });
    expect(seen).toEqual([0xf4]);
    expect(machine.memory.getUint32(0x2000, true)).toBe(0x04030201);
    expect(machine.memory.getUint16(0x2004, true)).toBe(0x0706);
    expect(machine.memory.getUint8(0x2008)).toBe(0x52);
    expect(bar.bytes()).toEqual([1, 2, 0xef, 0xbe, 5, 6, 7, 0x77]);
    expect(ports.bytes()).toEqual([0x99, 0x52]);
    expect(machine.loop.stats).toEqual({ exits: 1, fastReads: 0, posted: 0, passed: 6 });
  });

  it('but those that touch an exception, or the end of the window', async () => {
    const bar = device('exceptions', [1, 2, 3, 4, 5, 6, 7, 8]);
    const code = `
      movl %es:0x101, %eax
      movb %es:0x104, %al
      movb %es:0x103, %al
      movb %al, %es:0x105
      movb %es:0x106, %al
      movw %es:0x107, %ax`;
    const { machine, seen } = await run(code, (loop) => {
      const except = [{ start: 4, length: 2 }];
      loop.addFast('mmio', 0xd0100, 8, { ...none, file: { fd: bar.fd, offset: 16, except } });
    });
    expect(seen).toEqual([0xd0101, 0xd0104, 0xd0105, 0xd0107, 0xf4]);
    expect(machine.loop.stats.passed).toBe(2);
    expect(bar.bytes()).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
  });

  it('read as all-ones where the device does not answer, and a write that it refuses is forgotten', async () => {
    const short = device('short', [1, 2], 'r');
    const code = `
      movl %es:0x100, %eax
      mov %eax, 0x2000
      movb $5, %es:0x100
      movb %es:0x100, %al
      mov %al, 0x2004`;
    const { machine, seen } = await run(code, (loop) => {
      loop.addFast('mmio', 0xd0100, 64, { ...none, file: { fd: short.fd, offset: 16, except: [] } });
    });
    expect(seen).toEqual([0xf4]);
    expect(machine.memory.getUint32(0x2000, true)).toBe(0xffffffff);
    expect(machine.memory.getUint8(0x2004)).toBe(1);
  });

  it('leave what the shadow answers and what is posted to these', async () => {
    const bar = device('mixed', [1, 2, 3, 4]);
    const replayed: number[] = [];
    const done = signal<void>();
    const code = `
      mov $0xd000, %ax
      mov %ax, %es
      movb %es:0x100, %al
      mov %al, 0x2000
      movb $7, %es:0x101
      movb $9, %es:0x102
      ${DONE}`;
    const machine = guest(
      { blocks: [code] },
      {
        exit: () => {
          done.resolve();
          return false;
        },
        posted: (_range, offset, _width, value) => {
          replayed.push(offset, value);
        },
      },
    );
    const file = { fd: bar.fd, offset: 16, except: [] };
    machine.loop.addFast('mmio', 0xd0100, 4, { shadow: Uint8Array.of(0x40, 0, 0, 0), reads: [0], posts: [1], file });
    machine.loop.start();
    await done.promise;
    expect(machine.memory.getUint8(0x2000)).toBe(0x40);
    expect(replayed).toEqual([1, 7]);
    expect(bar.bytes()).toEqual([1, 2, 9, 4]);
  });

  it('go by a duplicate of the fd, which is closed with the window, and with the loop', async () => {
    const bar = device('held', [1]);
    const { ino } = fstatSync(bar.fd);
    const open = () => readdirSync('/proc/self/fd').filter((fd) => inodeOf(Number(fd)) === ino).length;
    const { loop } = guest({ blocks: ['hlt'] }, {});
    const file = { fd: bar.fd, offset: 16, except: [] };
    const range = loop.addFast('pio', 0x60, 1, { ...none, file });
    loop.addFast('pio', 0x61, 1, { ...none, file });
    expect(open()).toBe(3);
    loop.removeFast(range);
    expect(open()).toBe(2);
    await loop.close();
    expect(open()).toBe(1);
  });

  it('are refused at the door: no such fd, exceptions outside the window, a place beyond what a file can have', () => {
    const { loop } = guest({ blocks: ['hlt'] }, {});
    const { fd } = device('door', [1]);
    const add = (file: unknown) => () => loop.addFast('mmio', 0xd0000, 16, { ...none, file: file as null });
    expect(add({ fd: 9999, offset: 0, except: [] })).toThrow(/EBADF/);
    expect(add({ fd: -1, offset: 0, except: [] })).toThrow(RangeError);
    expect(add({ fd, offset: 2 ** 63, except: [] })).toThrow(RangeError);
    expect(add({ fd, offset: 2n ** 63n - 8n, except: [] })).toThrow(RangeError);
    expect(add({ fd, offset: 0, except: [{ start: 8, length: 9 }] })).toThrow(RangeError);
    expect(add({ fd, offset: 0, except: [{ start: -1, length: 9 }] })).toThrow(RangeError);
    expect(add({ fd, offset: 0, except: new Array(17).fill({ start: 0, length: 1 }) })).toThrow(RangeError);
    expect(add({ fd, offset: 0, except: null })).toThrow(TypeError);
    expect(add({ fd, offset: 0 })).toThrow(TypeError);
    expect(add(7)).toThrow(TypeError);
    expect(add(undefined)).toThrow(TypeError);
    // Nothing of it was added, and a window of a whole device's BAR may be large.
    loop.addFast('mmio', 2 ** 40, 2 ** 40, { ...none, file: { fd, offset: 2 ** 41, except: [] } });
    expect(() => loop.addFast('mmio', 0xd0000, 2 ** 25, { ...none, posts: [0], file: null })).toThrow(RangeError);
    expect(kvmNode().pread(fd, 16, new Uint8Array(1))).toBe(1);
  });
});

function inodeOf(fd: number): number | null {
  try {
    return fstatSync(fd).ino;
  } catch {
    return null;
  }
}
