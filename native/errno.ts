// The error classes that everyone may throw, and errno by name. Called by every room; no state.
// A failed syscall is a SysError (thrown only by native/), a wrong input or host a VmmError, bad state or stream bytes a StateError/StreamError.
import { constants } from 'node:os';

// EAGAIN has a second name, and one number must have one name everywhere.
const NAMES = new Map<number, string>(
  Object.entries(constants.errno)
    .filter(([name]) => name !== 'EWOULDBLOCK')
    .map(([name, value]) => [value, name]),
);

/** "ENOENT" for 2; "errno 524" for one that Node does not name. */
export function errnoName(errno: number): string {
  return NAMES.get(errno) ?? `errno ${errno}`;
}

/** A failed syscall: names itself and its errno. */
export class SysError extends Error {
  override readonly name = 'SysError';
  readonly syscall: string;
  readonly errno: number;
  readonly code: string;
  constructor(syscall: string, errno: number) {
    const code = errnoName(errno);
    super(`${syscall}: ${code}`);
    this.syscall = syscall;
    this.errno = errno;
    this.code = code;
  }
}

/** Host or configuration error. `message` says what was tried, what was found and what to do, in one line; never repeats the cause. */
export class VmmError extends Error {
  override readonly name = 'VmmError';
  readonly code: string;
  /** 2 for bad input or an unfit host, 1 for what went wrong later. */
  readonly exitCode: number;
  constructor(code: string, message: string, options: { cause?: unknown; exitCode?: number } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.exitCode = options.exitCode ?? 2;
  }
}

/** State that a device's load() refuses. */
export class StateError extends Error {
  override readonly name = 'StateError';
}

/** Bytes of a peer that are not a valid stream, or a peer that went away. Ends the migration, never the guest. */
export class StreamError extends Error {
  override readonly name = 'StreamError';
}
