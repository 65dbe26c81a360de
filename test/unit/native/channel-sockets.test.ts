// connect, listen, accept, localAddress, descriptors over UNIX sockets, pread and pwrite. Contract: native/addon.ts, KvmNode.
import { closeSync, existsSync, mkdtempSync, openSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { kvmNode, type SocketAddress } from '../../../native/addon.ts';
import type { SysError } from '../../../native/errno.ts';
import { socketFds } from './channel-pair.ts';

const kvm = kvmNode();
const dir = mkdtempSync(join(tmpdir(), 'ferry-sockets-'));
afterAll(() => rmSync(dir, { recursive: true }));
const inet = (host: string, port = 0): SocketAddress => ({ family: 'inet', host, port, path: '' });
const inet6 = (host: string, port = 0): SocketAddress => ({ family: 'inet6', host, port, path: '' });
const unix = (path: string): SocketAddress => ({ family: 'unix', host: '', port: 0, path });
const codeOf = (promise: Promise<unknown>) => promise.then(() => 'none').catch((error: SysError) => error.code);

describe('connecting', () => {
  it('finds each family at the address that localAddress tells', async () => {
    for (const address of [inet('127.0.0.1'), inet6('::1'), unix(join(dir, 'one'))]) {
      const listener = kvm.listen(address);
      const local = kvm.localAddress(listener);
      expect(local.family).toBe(address.family);
      if (address.family === 'unix') expect(local.path).toBe(address.path);
      else expect(local.port).toBeGreaterThan(0);
      const accepted = kvm.accept(listener);
      const fds = [await kvm.connect(local, 5000), await accepted];
      for (const fd of fds) kvm.closeFd(fd);
      kvm.closeListener(listener);
    }
  });

  it('reaches the wildcard of IPv6 by IPv4, as libvirt does', async () => {
    const listener = kvm.listen(inet6('::'));
    const accepted = kvm.accept(listener);
    const fd = await kvm.connect(inet('127.0.0.1', kvm.localAddress(listener).port), 5000);
    kvm.closeFd(fd);
    kvm.closeFd(await accepted);
    kvm.closeListener(listener);
  });

  it('lets a sender on a UNIX socket be far ahead of its reader, further than the system allows by itself', async (context) => {
    // socket(7), SO_SNDBUFFORCE
    if (process.getuid?.() !== 0) context.skip('only root may have a socket buffer beyond net.core.wmem_max');
    const ahead = 1 << 20;
    expect(Number(readFileSync('/proc/sys/net/core/wmem_default', 'utf8'))).toBeLessThan(ahead);
    const listener = kvm.listen(unix(join(dir, 'ahead')));
    const accepted = kvm.accept(listener);
    const sender = kvm.channel(await kvm.connect(unix(join(dir, 'ahead')), 5000));
    const reader = await accepted;
    // Nobody reads.
    await sender.write(new Uint8Array(ahead));
    sender.abort();
    kvm.closeFd(reader);
    kvm.closeListener(listener);
  });

  it('says by errno why it did not come about', async () => {
    const listener = kvm.listen(inet('127.0.0.1'));
    const { port } = kvm.localAddress(listener);
    kvm.closeListener(listener);
    expect(await codeOf(kvm.connect(inet('127.0.0.1', port), 5000))).toBe('ECONNREFUSED');
    expect(await codeOf(kvm.connect(unix(join(dir, 'nobody')), 5000))).toBe('ENOENT');
    expect(await codeOf(kvm.connect(inet('no-name.example', 1), 5000))).toBe('EINVAL'); // numeric hosts only
    expect(await codeOf(kvm.connect(unix('/'.padEnd(200, 'x')), 5000))).toBe('ENAMETOOLONG');
    expect(() => kvm.connect({ ...inet('127.0.0.1'), family: 'ipx' } as never, 1)).toThrow(TypeError);
    expect(() => kvm.listen(inet('300.0.0.1'))).toThrow('bind: EINVAL');
    expect(() => kvm.listen(inet('127.0.0.1', 65536))).toThrow('bind: EINVAL');
  });

  it('gives up after its time when the listener takes no more', async () => {
    const listener = kvm.listen(unix(join(dir, 'full')));
    const fds: number[] = [];
    let code = 'none';
    for (let i = 0; i < 1000 && code === 'none'; i++) {
      code = await kvm.connect(unix(join(dir, 'full')), 50).then(
        (fd) => {
          fds.push(fd);
          return 'none';
        },
        (error: SysError) => error.code,
      );
    }
    expect(code).toBe('ETIMEDOUT');
    for (const fd of fds) kvm.closeFd(fd);
    kvm.closeListener(listener);
  });
});

describe('listening', () => {
  it('makes a socket file for its owner alone, and removes it at the end', () => {
    const path = join(dir, 'mine');
    const listener = kvm.listen(unix(path));
    expect(statSync(path).mode & 0o777).toBe(0o600);
    kvm.closeListener(listener);
    expect(existsSync(path)).toBe(false);
  });

  it('replaces a stale socket file, refuses one in use and any other file', async () => {
    const path = join(dir, 'stale');
    const first = kvm.listen(unix(path));
    expect(() => kvm.listen(unix(path))).toThrow('bind: EADDRINUSE');
    kvm.closeFd(first); // as a killed process leaves it: the file stays
    const second = kvm.listen(unix(path));
    kvm.closeListener(second);
    writeFileSync(path, 'data');
    expect(() => kvm.listen(unix(path))).toThrow('bind: EADDRINUSE');
    expect(readFileSync(path, 'utf8')).toBe('data');
    const server = createServer().listen(0, '127.0.0.1');
    await new Promise((resolve) => server.once('listening', resolve));
    const { port } = server.address() as { port: number };
    expect(() => kvm.listen(inet('127.0.0.1', port))).toThrow('bind: EADDRINUSE');
    server.close();
  });

  it('ends what waits in accept when it is closed', async () => {
    for (const address of [inet('127.0.0.1'), unix(join(dir, 'waiting'))]) {
      const listener = kvm.listen(address);
      const codes = [codeOf(kvm.accept(listener)), codeOf(kvm.accept(listener))];
      await new Promise((resolve) => setTimeout(resolve, 10));
      kvm.closeListener(listener);
      expect(await Promise.all(codes)).toEqual(['ECANCELED', 'ECANCELED']);
    }
    const [one, other] = await socketFds('unix');
    expect(() => kvm.accept(one)).toThrow('accept: EINVAL');
    kvm.closeFd(one);
    kvm.closeFd(other);
    expect(() => kvm.accept(one)).toThrow('EBADF');
  });
});

describe('descriptors over a UNIX socket', () => {
  it('arrive with the bytes they were sent with, as descriptors of their own', async () => {
    const [one, other] = await socketFds('unix');
    const path = join(dir, 'passed');
    writeFileSync(path, 'content');
    const fd = openSync(path, 'r');
    kvm.sendFds(one, new TextEncoder().encode('two of them'), [fd, fd]);
    const into = new Uint8Array(64);
    const got = kvm.recvFds(other, into, 8);
    expect(new TextDecoder().decode(into.subarray(0, got.bytes))).toBe('two of them');
    expect(got.fds.length).toBe(2);
    closeSync(fd);
    for (const each of got.fds) {
      expect(readFileSync(`/proc/self/fdinfo/${each}`, 'utf8')).toContain('flags:\t02'); // O_CLOEXEC
      const content = new Uint8Array(7);
      expect(kvm.pread(each, 0, content)).toBe(7);
      expect(new TextDecoder().decode(content)).toBe('content');
      closeSync(each);
    }
    kvm.sendFds(one, Uint8Array.of(1), []);
    expect(kvm.recvFds(other, into, 0)).toEqual({ bytes: 1, fds: [] });
    expect(() => kvm.recvFds(other, into, 1)).toThrow('recvmsg: EAGAIN');
    kvm.closeFd(one);
    expect(kvm.recvFds(other, into, 1)).toEqual({ bytes: 0, fds: [] });
    kvm.closeFd(other);
  });

  it('are refused, and closed, when there are more than expected', async () => {
    const [one, other] = await socketFds('unix');
    const open = () => readFileSync('/proc/self/status', 'utf8') && statSync(`/proc/self/fd`).size;
    const before = open();
    for (const [sent, wanted] of [
      [2, 1],
      [10, 2],
      [1, 0],
    ] as const) {
      kvm.sendFds(one, Uint8Array.of(1), Array(sent).fill(one));
      expect(() => kvm.recvFds(other, new Uint8Array(1), wanted)).toThrow('more descriptors than expected');
    }
    expect(open()).toBe(before);
    expect(() => kvm.sendFds(one, new Uint8Array(0), [one])).toThrow(RangeError);
    expect(() => kvm.sendFds(one, Uint8Array.of(1), [999_999])).toThrow('sendmsg: EBADF');
    kvm.closeFd(one);
    expect(() => kvm.sendFds(other, Uint8Array.of(1), [])).toThrow('sendmsg: EPIPE');
    kvm.closeFd(other);
  });
});

describe('pread and pwrite', () => {
  it('take offsets as numbers and as bigints, and say how much they moved', () => {
    const path = join(dir, 'sparse');
    const fd = openSync(path, 'w+');
    expect(kvm.pwrite(fd, 2 ** 33, Uint8Array.of(1, 2, 3))).toBe(3);
    const into = new Uint8Array(8);
    expect(kvm.pread(fd, 2n ** 33n + 1n, into)).toBe(2);
    expect([...into.subarray(0, 2)]).toEqual([2, 3]);
    expect(kvm.pread(fd, 2 ** 34, into)).toBe(0);
    expect(() => kvm.pread(fd, -1, into)).toThrow(RangeError);
    expect(() => kvm.pread(fd, 2n ** 63n, into)).toThrow(RangeError);
    closeSync(fd);
    expect(() => kvm.pwrite(fd, 0, into)).toThrow('pwrite: EBADF');
  });
});
