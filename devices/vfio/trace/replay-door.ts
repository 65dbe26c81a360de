// A KernelDoor that gives the answers of a trace: the same client code then runs without the device, and a user's trace becomes a test.
// Each file's calls must come in the order of the trace; the first one that does not is one line that says what was expected and what was
// asked. Used by replay-info.ts, replay-walk.ts and tests. The fds are real (of /dev/null), so that they can be told apart and closed.
import { closeSync, openSync, readlinkSync } from 'node:fs';
import { constants } from 'node:os';
import type { HostMapping, PageBitmap, Patch } from '../../../native/addon.ts';
import { SysError, VmmError } from '../../../native/errno.ts';
import type { HostPaths, KernelDoor } from '../kernel-door.ts';
import { makesOf } from './call-recorder.ts';
import { decodeIoctl } from './decode.ts';
import { viewOf } from './fields.ts';
import { type CallLine, INTERRUPTED, type NumberedCall, type Trace } from './trace-file.ts';
import { payloadOf } from './trace-writer.ts';
import { fileOfPath, kindOf, type TracedFile } from './traced-file.ts';

const PAGE = 4096;
const REPLAYED = new Set(['ioctl', 'pread', 'pwrite', 'read', 'write']);

export interface ReplayParts {
  readonly trace: Trace;
  /** Named in messages. */
  readonly file: string;
  /** Where the client finds /sys and /dev: replay-host.ts. */
  readonly paths: HostPaths;
  /** Bitmaps and eventfds need no device: the addon's. */
  readonly native: Pick<KernelDoor, 'createBitmap' | 'eventFd' | 'eventTake'>;
  /** Which calls are to be replayed; the others are as if they had never been. null: all. */
  readonly only: ((call: CallLine) => boolean) | null;
  /** Ioctls (by their words) that another program need not have made: ENOTTY where the trace has none. null: there are none. */
  readonly optional: ((what: string) => boolean) | null;
}

interface Asked {
  readonly call: string;
  readonly what: string;
  fits(recorded: CallLine): boolean;
}

export class ReplayDoor implements KernelDoor {
  readonly #parts: ReplayParts;
  readonly #queues = new Map<string, NumberedCall[]>();
  readonly #maps = new Map<string, NumberedCall[]>();
  readonly #files = new Map<number, TracedFile>();
  #mismatch: VmmError | null = null;

  constructor(parts: ReplayParts) {
    this.#parts = parts;
    // Lines are written when calls end; a call that blocked began before those that overtook it.
    const inOrder = [...parts.trace.calls].sort(byStart);
    for (const each of inOrder) {
      const { call, on, errno } = each.call;
      const queues = call === 'mmap' ? this.#maps : this.#queues;
      if (errno === INTERRUPTED || !(call === 'mmap' || REPLAYED.has(call))) continue;
      if (parts.only !== null && !parts.only(each.call)) continue;
      const queue = queues.get(on) ?? [];
      queue.push(each);
      queues.set(on, queue);
    }
  }

  /** The first call that did not fit. Client code may have taken it for a failure of the kernel and gone on. */
  get mismatch(): VmmError | null {
    return this.#mismatch;
  }

  /** Calls of the trace that nobody asked for. */
  get left(): readonly NumberedCall[] {
    return [...this.#queues.values()].flat().sort((a, b) => a.line - b.line);
  }

  /** The next one of any file. */
  peek(): NumberedCall | null {
    const heads = [...this.#queues.values()].flatMap((queue) => queue.slice(0, 1));
    return heads.sort(byStart)[0] ?? null;
  }

  skip(next: NumberedCall): void {
    const queue = this.#queues.get(next.call.on);
    if (queue?.[0] === next) queue.shift();
  }

  /** An fd for a file of the trace, where the client did not open it by itself. */
  adopt(file: TracedFile): number {
    const fd = openSync('/dev/null', 'r+');
    this.#files.set(fd, file);
    return fd;
  }

  ioctl(name: string, fd: number, request: number, arg: number | Uint8Array, patches: readonly Patch[] = []): number {
    const file = this.#fileOf(fd);
    const memory = patches.flatMap((each) =>
      'bytes' in each ? [{ at: each.at, when: 'before' as const, bytes: each.bytes }] : [],
    );
    const { what } = decodeIoctl({
      kind: file.kind,
      request,
      before: arg,
      after: null,
      failed: false,
      memory,
      labels: new Map(),
    });
    const found = this.#next(file, {
      call: 'ioctl',
      what,
      fits: (recorded) => recorded.request === request && recorded.what === what,
    });
    if (arg instanceof Uint8Array && found.call.after !== undefined) {
      const bytes = Buffer.from(found.call.after, 'hex');
      arg.set(bytes.subarray(0, arg.length));
      for (const { at } of patches) arg.fill(0, at, at + 8);
    }
    if (found.call.errno !== undefined) throw new SysError(name, errnoNumber(found.call.errno));
    this.#fillIn(found, patches);
    return found.call.made === undefined
      ? found.call.result
      : this.#make(file, request, arg, found.call.made.on, found);
  }

  async ioctlAsync(
    name: string,
    fd: number,
    request: number,
    arg: number | Uint8Array,
    patches: readonly Patch[] = [],
  ): Promise<number> {
    return this.ioctl(name, fd, request, arg, patches);
  }

  /** A call that made an fd makes one again. */
  #make(file: TracedFile, request: number, arg: number | Uint8Array, on: string, found: NumberedCall): number {
    const fd = this.adopt({ kind: kindOf(on), on });
    const at = makesOf(file.kind, request, arg);
    if (at === 'result' || at === null || !(arg instanceof Uint8Array) || arg.length < at + 4) return fd;
    viewOf(arg).setInt32(at, fd, true);
    return found.call.result;
  }

  /** What the kernel wrote behind pointers. */
  #fillIn(found: NumberedCall, patches: readonly Patch[]): void {
    const { lists = {}, bitmap, answer = {} } = found.call;
    for (const patch of patches) {
      if ('bytes' in patch && lists[patch.at] !== undefined) {
        patch.bytes.set(Buffer.from(lists[patch.at] ?? '', 'hex').subarray(0, patch.bytes.length));
      }
      if (!('bitmap' in patch)) continue;
      if (bitmap?.data === undefined) {
        const how = answer['bitmap'] === undefined ? 'its bitmap never left native memory' : 'record it with --data';
        throw this.#remember(`the dirty pages of line ${found.line} (${found.call.what}) are not in the trace: ${how}`);
      }
      patch.bitmap.orBytes(patch.firstPage * PAGE, Buffer.from(bitmap.data, 'base64'), PAGE);
    }
  }

  pread(fd: number, offset: bigint | number, into: Uint8Array): number {
    const place = `0x${offset.toString(16)}`;
    const found = this.#next(this.#fileOf(fd), {
      call: 'pread',
      what: `pread(${place}, ${into.length})`,
      fits: (recorded) => recorded.offset === place && recorded.length === into.length,
    });
    return this.#give('pread', found, into);
  }

  pwrite(fd: number, offset: bigint | number, from: Uint8Array): number {
    const place = `0x${offset.toString(16)}`;
    const found = this.#next(this.#fileOf(fd), {
      call: 'pwrite',
      what: `pwrite(${place}, ${from.length})`,
      fits: (recorded) => recorded.offset === place && recorded.length === from.length,
    });
    return this.#take('pwrite', found, from);
  }

  async preadAsync(fd: number, offset: bigint | number, into: Uint8Array): Promise<number> {
    return this.pread(fd, offset, into);
  }
  async pwriteAsync(fd: number, offset: bigint | number, from: Uint8Array): Promise<number> {
    return this.pwrite(fd, offset, from);
  }

  /** The same without its bytes, which a trace without --data has not. */
  streamLength(fd: number): number {
    const found = this.#next(this.#fileOf(fd), { call: 'read', what: 'read', fits: () => true });
    if (found.call.errno !== undefined) throw new SysError('read', errnoNumber(found.call.errno));
    return found.call.result;
  }

  /** The next read of a data stream: what the kernel gave then, whatever room there is now. For sinks of tests and of replay-walk.ts. */
  readStream(fd: number): Uint8Array {
    const found = this.#next(this.#fileOf(fd), { call: 'read', what: 'read', fits: () => true });
    const into = new Uint8Array(Math.max(0, found.call.result));
    return into.subarray(0, this.#give('read', found, into));
  }

  #give(name: string, found: NumberedCall, into: Uint8Array): number {
    const { errno, result, payload } = found.call;
    if (errno !== undefined) throw new SysError(name, errnoNumber(errno));
    if (result === 0) return 0;
    if (payload?.data === undefined) {
      throw this.#remember(
        `the bytes of line ${found.line} (${found.call.what}) are not in the trace: record it with --data`,
      );
    }
    into.set(Buffer.from(payload.data, 'base64').subarray(0, into.length));
    return result;
  }

  /** What is written must be what was written then; the trace has its hash at least. */
  #take(name: string, found: NumberedCall, from: Uint8Array): number {
    const { errno, result, payload } = found.call;
    if (errno !== undefined) throw new SysError(name, errnoNumber(errno));
    const seen = from.subarray(0, payload?.seen ?? result);
    if (payload !== undefined && payloadOf(seen, result, false).hash !== payload.hash) {
      throw this.#remember(`line ${found.line} (${found.call.what}) wrote other bytes than those that are written now`);
    }
    return result;
  }

  /** A mapping cannot be replayed: its accesses are not in the trace. The client is told that this part cannot be mapped. */
  mapFd(fd: number, offset: number): HostMapping {
    const place = `0x${offset.toString(16)}`;
    const recorded = this.#maps.get(this.#fileOf(fd).on)?.find(({ call }) => call.offset === place);
    throw new SysError('mmap', errnoNumber(recorded?.call.errno ?? 'ENODEV'));
  }

  closeFd(fd: number): void {
    this.#files.delete(fd);
    closeSync(fd);
  }
  /** What the client left open, and what was adopted. */
  close(): void {
    for (const fd of this.#files.keys()) closeSync(fd);
    this.#files.clear();
  }
  createBitmap(pages: number): PageBitmap {
    return this.#parts.native.createBitmap(pages);
  }
  eventFd(): number {
    return this.#parts.native.eventFd();
  }
  eventTake(fd: number): bigint {
    return this.#parts.native.eventTake(fd);
  }

  #next({ on }: TracedFile, asked: Asked): NumberedCall {
    const queue = this.#queues.get(on) ?? [];
    const [found] = queue;
    const isOptional = asked.call === 'ioctl' && this.#parts.optional?.(asked.what) === true;
    if (isOptional && !queue.some(({ call }) => asked.fits(call))) throw new SysError('ioctl', constants.errno.ENOTTY);
    if (found === undefined) throw this.#remember(`has no further call of ${on}, but ${asked.what} was asked`);
    if (found.call.call !== asked.call || !asked.fits(found.call)) {
      throw this.#remember(`line ${found.line} expects ${found.call.what} of ${on}, but ${asked.what} was asked`);
    }
    queue.shift();
    return found;
  }

  #remember(what: string): VmmError {
    const error = new VmmError('replay', `${this.#parts.file}: ${what}`, { exitCode: 1 });
    this.#mismatch ??= error;
    return error;
  }

  #fileOf(fd: number): TracedFile {
    const known = this.#files.get(fd);
    if (known !== undefined) return known;
    const link = readlinkSync(`/proc/self/fd/${fd}`);
    return fileOfPath(this.#parts.paths, link) ?? { kind: 'other', on: link };
  }
}

function byStart(a: NumberedCall, b: NumberedCall): number {
  return a.call.at - b.call.at || a.line - b.line;
}

/** "ENOENT" or "errno 524", as native/errno.ts writes them. */
export function errnoNumber(name: string): number {
  const number = (constants.errno as Record<string, number>)[name];
  return number ?? Number(/\d+$/.exec(name)?.[0] ?? constants.errno.EIO);
}
