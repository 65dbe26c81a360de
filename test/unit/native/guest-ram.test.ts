// Guest RAM: one memfd, shown in windows, reached by copies, refused outside, gone after close().
import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { kvmNode } from '../../../native/addon.ts';
import { SysError } from '../../../native/errno.ts';

const kvm = kvmNode();
const MiB = 2 ** 20;
const plain = { hugePages: false, populate: false };

describe('GuestRam', () => {
  it('shows the same bytes through windows and copies', () => {
    const ram = kvm.createRam(2 * MiB, plain);
    const view = new Uint8Array(ram.window(0));
    ram.copyIn(MiB, Uint8Array.of(1, 2, 3));
    expect([...view.subarray(MiB, MiB + 3)]).toEqual([1, 2, 3]);
    view[5] = 9;
    const out = new Uint8Array(2);
    ram.copyOut(4, out);
    expect([...out]).toEqual([0, 9]);
    expect(ram.window(0)).toBe(view.buffer);
    ram.close();
  });

  it('has 1 GiB windows, the last one shorter', () => {
    const ram = kvm.createRam(2 ** 30 + 3 * MiB, plain);
    expect(ram.window(0).byteLength).toBe(2 ** 30);
    expect(ram.window(1).byteLength).toBe(3 * MiB);
    expect(() => ram.window(2)).toThrow(RangeError);
    new Uint8Array(ram.window(1))[0] = 7;
    const out = new Uint8Array(1);
    ram.copyOut(2 ** 30, out);
    expect(out[0]).toBe(7);
    ram.close();
  });

  it('refuses sizes that are no pages and ranges outside', () => {
    expect(() => kvm.createRam(0, plain)).toThrow(RangeError);
    expect(() => kvm.createRam(4097, plain)).toThrow(RangeError);
    expect(() => kvm.createRam(-4096, plain)).toThrow(RangeError);
    const ram = kvm.createRam(MiB, plain);
    expect(() => ram.copyIn(MiB - 1, new Uint8Array(2))).toThrow(RangeError);
    expect(() => ram.copyOut(2 ** 53 - 1, new Uint8Array(2))).toThrow(RangeError);
    expect(() => ram.copyOut(0.5, new Uint8Array(2))).toThrow(RangeError);
    expect(() => ram.populate(MiB, 1)).toThrow(RangeError);
    expect(() => ram.copyIn(0, 'bytes' as unknown as Uint8Array)).toThrow(TypeError);
    ram.close();
  });

  it('names the syscall and errno when the host refuses', () => {
    expect(() => kvm.createRam(2 ** 52, plain)).toThrow(SysError);
  });

  it('detaches its windows when it is closed, and refuses afterwards', () => {
    const ram = kvm.createRam(MiB, plain);
    const window = ram.window(0);
    ram.close();
    ram.close();
    expect(window.byteLength).toBe(0);
    expect(() => ram.copyOut(0, new Uint8Array(1))).toThrow('closed');
    expect(() => ram.window(0)).toThrow('closed');
    expect(ram.fd).toBe(-1);
  });

  it('populates a range and counts what is resident', async () => {
    const ram = kvm.createRam(4 * MiB, plain);
    expect(ram.resident()).toBe(0);
    await ram.populate(MiB, MiB);
    expect(ram.resident()).toBe(MiB);
    ram.close();
    const whole = kvm.createRam(MiB, { hugePages: false, populate: true });
    expect(whole.resident()).toBe(MiB);
    whole.close();
    const huge = kvm.createRam(4 * MiB, { hugePages: true, populate: true });
    expect(huge.resident()).toBe(4 * MiB);
    huge.close();
  });

  it('hugePages: one page touched backs all 2 MiB around it, and the mount it takes is nowhere to be seen', (context) => {
    const mounts = readFileSync('/proc/self/mounts', 'utf8');
    const ram = kvm.createRam(8 * MiB, { hugePages: true, populate: false });
    const map = readFileSync('/proc/self/maps', 'utf8').match(
      /^([0-9a-f]+)-.* (\/ferry-ram|\/memfd:ferry-ram) \(deleted\)$/m,
    );
    expect(Number.parseInt(map?.[1] ?? '1', 16) % (2 * MiB)).toBe(0);
    expect(readFileSync('/proc/self/mounts', 'utf8')).toBe(mounts);
    ram.copyIn(3 * MiB, Uint8Array.of(1));
    const resident = ram.resident();
    ram.close();
    if (map?.[2] !== '/ferry-ram') context.skip('no tmpfs mount of our own without CAP_SYS_ADMIN');
    if (/\[never\]/.test(readFileSync('/sys/kernel/mm/transparent_hugepage/enabled', 'utf8')))
      context.skip('this host has huge pages switched off');
    expect(resident).toBe(2 * MiB);
  });

  it('hashes contents, not addresses: equal contents agree, one flipped bit or another length does not', async () => {
    const [a, b] = [kvm.createRam(MiB, plain), kvm.createRam(2 * MiB, plain)];
    a.copyIn(77, Uint8Array.of(1, 2, 3));
    b.copyIn(MiB + 77, Uint8Array.of(1, 2, 3));
    const hash = await a.hash(0, MiB);
    expect(await b.hash(MiB, MiB)).toBe(hash);
    expect(await b.hash(MiB, MiB - 1)).not.toBe(hash);
    b.copyIn(2 * MiB - 1, Uint8Array.of(0x80));
    expect(await b.hash(MiB, MiB)).not.toBe(hash);
    a.close();
    b.close();
  });

  it('stays mapped for a job that runs while it is closed', async () => {
    const ram = kvm.createRam(64 * MiB, plain);
    const expected = await ram.hash(0, 64 * MiB);
    const pending = ram.hash(0, 64 * MiB);
    ram.close();
    expect(await pending).toBe(expected);
  });

  it('unmaps: no mapping of the memfd is left after close()', () => {
    const mine = () => readFileSync('/proc/self/maps', 'utf8').match(/memfd:ferry-ram/g)?.length ?? 0;
    const before = mine();
    const ram = kvm.createRam(MiB, plain);
    expect(mine()).toBe(before + 1);
    ram.close();
    expect(mine()).toBe(before);
  });
});

describe('mapFd', () => {
  it('shares the fd’s bytes and is detached by unmap()', () => {
    const ram = kvm.createRam(MiB, plain);
    const mapping = kvm.mapFd(ram.fd, 4096, 8192, true);
    expect(mapping.size).toBe(8192);
    new Uint8Array(mapping.view)[1] = 42;
    const out = new Uint8Array(2);
    ram.copyOut(4096, out);
    expect([...out]).toEqual([0, 42]);
    const view = mapping.view;
    mapping.unmap();
    expect(view.byteLength).toBe(0);
    expect(() => mapping.view).toThrow('unmapped');
    ram.close();
  });

  it('refuses what is no page and passes on the errno', () => {
    const ram = kvm.createRam(MiB, plain);
    expect(() => kvm.mapFd(ram.fd, 1, 4096, true)).toThrow(RangeError);
    expect(() => kvm.mapFd(ram.fd, 0, 0, true)).toThrow(RangeError);
    expect(() => kvm.mapFd(99999, 0, 4096, true)).toThrow('mmap: EBADF');
    ram.close();
  });
});
