// The calls that `ferry vfio check` makes beyond those of the rest of this room: RAM for DMA, and read, write, poll and fcntl on a data fd as
// they are, without the pumps of a migration. Made by cli/vfio-check.ts; unit tests give a scripted one. read and write run on libuv's threads.
import { read, write } from 'node:fs';
import type { KvmNode } from '../../../native/addon.ts';
import { kvmNode } from '../../../native/addon.ts';
import { SysError } from '../../../native/errno.ts';
import { pollNow, setNonBlocking } from '../../../native/syscalls.ts';
import type { KernelDoor } from '../kernel-door.ts';

export interface CheckDoor extends KernelDoor, Pick<KvmNode, 'createRam' | 'dupFd'> {
  /** read(2), or pread(2) when an offset is given. Rejects with SysError. */
  readFd(fd: number, into: Uint8Array, offset: number | null): Promise<number>;
  writeFd(fd: number, from: Uint8Array): Promise<number>;
  /** Whether poll(2) calls it readable now. A file without a poll of its own always is. */
  readable(fd: number): boolean;
  nonBlocking(fd: number): void;
}

export function openCheckDoor(): CheckDoor {
  const addon = kvmNode();
  return {
    ioctl: (name, fd, request, arg, patches) => addon.ioctl(name, fd, request, arg, patches),
    ioctlAsync: (name, fd, request, arg, patches) => addon.ioctlAsync(name, fd, request, arg, patches),
    mapFd: (fd, offset, size, writable) => addon.mapFd(fd, offset, size, writable),
    pread: (fd, offset, into) => addon.pread(fd, offset, into),
    pwrite: (fd, offset, from) => addon.pwrite(fd, offset, from),
    preadAsync: (fd, offset, into) => addon.preadAsync(fd, offset, into),
    pwriteAsync: (fd, offset, from) => addon.pwriteAsync(fd, offset, from),
    closeFd: (fd) => addon.closeFd(fd),
    dupFd: (fd) => addon.dupFd(fd),
    createBitmap: (pages) => addon.createBitmap(pages),
    createRam: (size, options) => addon.createRam(size, options),
    eventFd: () => addon.eventFd(),
    eventTake: (fd) => addon.eventTake(fd),
    readFd: (fd, into, offset) => called('read(data fd)', (done) => read(fd, into, 0, into.length, offset, done)),
    writeFd: (fd, from) => called('write(data fd)', (done) => write(fd, from, 0, from.length, null, done)),
    readable: (fd) => pollNow(fd),
    nonBlocking: (fd) => setNonBlocking(fd),
  };
}

function called(
  name: string,
  start: (done: (error: NodeJS.ErrnoException | null, bytes: number) => void) => void,
): Promise<number> {
  return new Promise((resolve, reject) => {
    start((error, bytes) => {
      if (error === null) resolve(bytes);
      else reject(new SysError(name, Math.abs(error.errno ?? 5)));
    });
  });
}
