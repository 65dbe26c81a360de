// Cold one-shot libc calls that Node does not offer, by koffi (loaded at the first call: 7 ms and 4 MiB that most runs never need).
// Called by cli (terminal, death signal, lock files) and devices/vfio (memlock; poll and fcntl of a data fd under check). JS thread. Each throws
// SysError. Anything threaded, hot or with pointers inside structs is the addon's. Specs: getrlimit(2), prctl(2), termios(3), flock(2),
// sched_getaffinity(2), poll(2), fcntl(2).
import { createRequire } from 'node:module';
import { SysError } from './errno.ts';

interface Libc {
  getrlimit(resource: number, into: Uint8Array): number;
  prctl(option: number, a: number, b: number, c: number, d: number): number;
  tcgetattr(fd: number, into: Uint8Array): number;
  tcsetattr(fd: number, when: number, from: Uint8Array): number;
  cfmakeraw(termios: Uint8Array): void;
  flock(fd: number, operation: number): number;
  sched_getaffinity(pid: number, size: number, into: Uint8Array): number;
  poll(fds: Uint8Array, count: number, timeoutMs: number): number;
  fcntl(fd: number, command: number, arg: number): number;
  errno(): number;
}

let loaded: Libc | null = null;

function libc(): Libc {
  if (loaded === null) {
    const require = createRequire(import.meta.url ?? __filename);
    const koffi = require('koffi') as typeof import('koffi');
    const library = koffi.load('libc.so.6');
    loaded = {
      getrlimit: library.func('int getrlimit(int resource, _Out_ uint8_t *limits)'),
      prctl: library.func('int prctl(int option, ulong a, ulong b, ulong c, ulong d)'),
      tcgetattr: library.func('int tcgetattr(int fd, _Out_ uint8_t *termios)'),
      tcsetattr: library.func('int tcsetattr(int fd, int when, const uint8_t *termios)'),
      cfmakeraw: library.func('void cfmakeraw(_Inout_ uint8_t *termios)'),
      flock: library.func('int flock(int fd, int operation)'),
      sched_getaffinity: library.func('int sched_getaffinity(int pid, size_t size, _Out_ uint8_t *set)'),
      poll: library.func('int poll(_Inout_ uint8_t *fds, ulong count, int timeout)'),
      fcntl: library.func('int fcntl(int fd, int command, int arg)'),
      errno: () => koffi.errno(),
    };
  }
  return loaded;
}

function check(name: string, result: number): number {
  if (result < 0) throw new SysError(name, libc().errno());
  return result;
}

// asm-generic/resource.h
const RLIMIT_MEMLOCK = 8;
const RLIM_INFINITY = 2n ** 64n - 1n;

/** The soft limit on locked memory in bytes; null: unlimited. */
export function memlockLimit(): number | null {
  const limits = new Uint8Array(16);
  check('getrlimit(RLIMIT_MEMLOCK)', libc().getrlimit(RLIMIT_MEMLOCK, limits));
  const soft = new DataView(limits.buffer).getBigUint64(0, true);
  return soft === RLIM_INFINITY ? null : Number(soft);
}

// linux/prctl.h
const PR_SET_PDEATHSIG = 1;

/** The kernel sends us `signal` when the thread that started us ends; 0 takes it back. A parent that is gone already sends nothing. */
export function signalWhenParentDies(signal: number): void {
  check('prctl(PR_SET_PDEATHSIG)', libc().prctl(PR_SET_PDEATHSIG, signal, 0, 0, 0));
}

/** CPUs that this process may run on: 1 means that waiting actively only takes time from what is waited for. */
export function affinityCount(): number {
  const set = new Uint8Array(1024);
  check('sched_getaffinity', libc().sched_getaffinity(0, set.length, set));
  return set.reduce((count, byte) => count + popcount(byte), 0);
}
function popcount(byte: number): number {
  let count = 0;
  for (let left = byte; left !== 0; left &= left - 1) count++;
  return count;
}

// struct termios of glibc is 60 bytes; room for a longer one.
const TERMIOS_SIZE = 128;
const TCSADRAIN = 1;

/** Terminal into raw mode (also one that is not Node's stdin); restore() puts back what was there, any number of times. */
export function rawTerminal(fd: number): { restore(): void } {
  const before = new Uint8Array(TERMIOS_SIZE);
  check('tcgetattr', libc().tcgetattr(fd, before));
  const raw = before.slice();
  libc().cfmakeraw(raw);
  check('tcsetattr', libc().tcsetattr(fd, TCSADRAIN, raw));
  return {
    restore() {
      check('tcsetattr', libc().tcsetattr(fd, TCSADRAIN, before));
    },
  };
}

// asm-generic/fcntl.h
const LOCK = { shared: 1, exclusive: 2, unlock: 8 } as const;
const LOCK_NB = 4;
const EWOULDBLOCK = 11;

/** flock(2) without waiting: false when somebody else holds it. The lock goes with the last duplicate of the fd. */
export function tryLock(fd: number, kind: keyof typeof LOCK): boolean {
  if (libc().flock(fd, LOCK[kind] | LOCK_NB) === 0) return true;
  const errno = libc().errno();
  if (errno === EWOULDBLOCK) return false;
  throw new SysError('flock', errno);
}

// asm-generic/poll.h, asm-generic/fcntl.h
const POLLIN = 1;
const F_GETFL = 3;
const F_SETFL = 4;
const O_NONBLOCK = 0o4000;

/** poll(2) without waiting: whether a read would find something, an end or an error included. */
export function pollNow(fd: number): boolean {
  const entry = new Uint8Array(8);
  const view = new DataView(entry.buffer);
  view.setInt32(0, fd, true);
  view.setInt16(4, POLLIN, true);
  return check('poll', libc().poll(entry, 1, 0)) > 0;
}

export function setNonBlocking(fd: number): void {
  const flags = check('fcntl(F_GETFL)', libc().fcntl(fd, F_GETFL, 0));
  check('fcntl(F_SETFL)', libc().fcntl(fd, F_SETFL, flags | O_NONBLOCK));
}
