// A KernelDoor that writes down every VFIO and iommufd call of this process, with its arguments, result and time. Put around the addon's door
// by cli where --vfio-trace is given; nobody behind it knows. JS thread; a call that blocks is written down when it is answered.
// Not seen: what Ferry's pumps read and write at a data fd (in C++, off this thread), and what a guest does to a mapped BAR.
import { readlinkSync } from 'node:fs';
import type { HostMapping, PageBitmap, Patch } from '../../../native/addon.ts';
import { SysError } from '../../../native/errno.ts';
import type { HostPaths, KernelDoor } from '../kernel-door.ts';
import { CallRecorder, type Moment, type Outcome } from './call-recorder.ts';
import type { PointedMemory } from './decode.ts';
import type { TraceSink } from './trace-writer.ts';
import { fileOfPath, type TracedFile } from './traced-file.ts';

export const OWN_TRACE_NOTES = [
  'accesses to mapped BARs are not visible: neither those of the guest nor those of Ferry',
  "the contents of device data streams are not visible: Ferry's pumps move them outside of JavaScript",
  'dirty bitmaps are not visible: they stay in native memory',
];

interface IoctlStart {
  readonly fd: number;
  readonly request: number;
  readonly file: TracedFile;
  readonly before: Uint8Array | number;
  readonly memory: readonly PointedMemory[];
  readonly labels: ReadonlyMap<number, string>;
  readonly began: number;
}

export class TracingDoor implements KernelDoor {
  readonly #door: KernelDoor;
  readonly #paths: HostPaths;
  readonly #recorder: CallRecorder;
  /** Files whose fds came through this door; others are looked up each time, for their numbers are used again unseen. */
  readonly #files = new Map<number, TracedFile>();
  readonly #epoch = performance.now();

  constructor(
    door: KernelDoor,
    trace: { readonly sink: TraceSink; readonly paths: HostPaths; readonly data: boolean },
  ) {
    this.#door = door;
    this.#paths = trace.paths;
    this.#recorder = new CallRecorder(trace.sink, trace.paths, trace.data);
  }

  ioctl(name: string, fd: number, request: number, arg: number | Uint8Array, patches: readonly Patch[] = []): number {
    const start = this.#begin(fd, request, arg, patches);
    try {
      const result = this.#door.ioctl(name, fd, request, arg, patches);
      this.#ended(start, arg, patches, { result, errno: null });
      return result;
    } catch (error) {
      if (error instanceof SysError) this.#ended(start, arg, patches, { result: -1, errno: error.code });
      throw error;
    }
  }

  async ioctlAsync(
    name: string,
    fd: number,
    request: number,
    arg: number | Uint8Array,
    patches: readonly Patch[] = [],
  ): Promise<number> {
    const start = this.#begin(fd, request, arg, patches);
    try {
      const result = await this.#door.ioctlAsync(name, fd, request, arg, patches);
      this.#ended(start, arg, patches, { result, errno: null });
      return result;
    } catch (error) {
      if (error instanceof SysError) this.#ended(start, arg, patches, { result: -1, errno: error.code });
      throw error;
    }
  }

  #begin(fd: number, request: number, arg: number | Uint8Array, patches: readonly Patch[]): IoctlStart {
    return {
      fd,
      request,
      file: this.#fileOf(fd),
      before: typeof arg === 'number' ? arg : arg.slice(),
      memory: memoryOf(patches, 'before'),
      labels: new Map(patches.filter((each) => !('bytes' in each)).map((each) => [each.at, labelOf(each)])),
      began: performance.now(),
    };
  }

  #ended(start: IoctlStart, arg: number | Uint8Array, patches: readonly Patch[], outcome: Outcome): void {
    const { fd, request, file, before, labels } = start;
    const made = this.#recorder.ioctl(this.#moment(start.began), {
      fd,
      request,
      file,
      before,
      after: typeof arg === 'number' ? null : arg.slice(),
      memory: [...start.memory, ...memoryOf(patches, 'after')],
      labels,
      outcome,
    });
    if (made !== null) this.#files.set(made.fd, made.file);
  }

  pread(fd: number, offset: bigint | number, into: Uint8Array): number {
    return this.#access('pread', fd, offset, into, () => this.#door.pread(fd, offset, into));
  }

  pwrite(fd: number, offset: bigint | number, from: Uint8Array): number {
    return this.#access('pwrite', fd, offset, from, () => this.#door.pwrite(fd, offset, from));
  }

  #access(call: string, fd: number, offset: bigint | number, bytes: Uint8Array, go: () => number): number {
    const began = performance.now();
    try {
      const result = go();
      this.#accessed(call, { fd, offset, bytes, began }, { result, errno: null });
      return result;
    } catch (error) {
      if (error instanceof SysError) {
        this.#accessed(call, { fd, offset, bytes, began }, { result: -1, errno: error.code });
      }
      throw error;
    }
  }

  async preadAsync(fd: number, offset: bigint | number, into: Uint8Array): Promise<number> {
    return this.#accessLater('pread', fd, offset, into, () => this.#door.preadAsync(fd, offset, into));
  }

  async pwriteAsync(fd: number, offset: bigint | number, from: Uint8Array): Promise<number> {
    return this.#accessLater('pwrite', fd, offset, from, () => this.#door.pwriteAsync(fd, offset, from));
  }

  async #accessLater(
    call: string,
    fd: number,
    offset: bigint | number,
    bytes: Uint8Array,
    go: () => Promise<number>,
  ): Promise<number> {
    const began = performance.now();
    try {
      const result = await go();
      this.#accessed(call, { fd, offset, bytes, began }, { result, errno: null });
      return result;
    } catch (error) {
      if (error instanceof SysError) {
        this.#accessed(call, { fd, offset, bytes, began }, { result: -1, errno: error.code });
      }
      throw error;
    }
  }

  #accessed(
    call: string,
    seen: { fd: number; offset: bigint | number; bytes: Uint8Array; began: number },
    outcome: Outcome,
  ): void {
    this.#recorder.access(this.#moment(seen.began), {
      call,
      fd: seen.fd,
      file: this.#fileOf(seen.fd),
      offset: BigInt(seen.offset),
      length: seen.bytes.length,
      bytes: outcome.errno === null ? seen.bytes.subarray(0, outcome.result) : null,
      outcome,
    });
  }

  mapFd(fd: number, offset: number, size: number, writable: boolean): HostMapping {
    const began = performance.now();
    const file = this.#fileOf(fd);
    const record = (outcome: Outcome) => {
      const place = this.#recorder.placeOf(file, BigInt(offset));
      this.#recorder.other(this.#moment(began), {
        call: 'mmap',
        fd,
        on: file.on,
        what: `mmap(${place}, 0x${size.toString(16)}, ${writable ? 'READ|WRITE' : 'READ'})`,
        outcome,
        rest: { offset: `0x${offset.toString(16)}`, length: size },
      });
    };
    try {
      const mapping = this.#door.mapFd(fd, offset, size, writable);
      record({ result: 0, errno: null });
      return mapping;
    } catch (error) {
      if (error instanceof SysError) record({ result: -1, errno: error.code });
      throw error;
    }
  }

  closeFd(fd: number): void {
    const began = performance.now();
    const file = this.#fileOf(fd);
    this.#door.closeFd(fd);
    this.#files.delete(fd);
    if (file.kind === 'other') return;
    const outcome = { result: 0, errno: null };
    this.#recorder.other(this.#moment(began), { call: 'close', fd, on: file.on, what: 'close', outcome });
  }

  createBitmap(pages: number): PageBitmap {
    return this.#door.createBitmap(pages);
  }
  eventFd(): number {
    return this.#door.eventFd();
  }
  eventTake(fd: number): bigint {
    return this.#door.eventTake(fd);
  }

  #fileOf(fd: number): TracedFile {
    const known = this.#files.get(fd);
    if (known !== undefined) return known;
    let link = '';
    try {
      link = readlinkSync(`/proc/self/fd/${fd}`);
    } catch {
      // closed already: the call will say EBADF
    }
    const file = fileOfPath(this.#paths, link) ?? { kind: 'other', on: link === '' ? 'closed' : link };
    // A device's fd is closed through this door, and is used often.
    if (file.kind === 'device') {
      this.#files.set(fd, file);
      this.#recorder.describe(file);
    }
    return file;
  }

  #moment(began: number): Moment {
    const now = performance.now();
    return { at: Math.round((began - this.#epoch) * 1000), us: Math.round((now - began) * 1000) };
  }
}

/** Lists and buffers that the argument points to, as they were and as they are. */
function memoryOf(patches: readonly Patch[], when: 'before' | 'after'): PointedMemory[] {
  return patches.flatMap((each) => ('bytes' in each ? [{ at: each.at, when, bytes: each.bytes.slice() }] : []));
}

function labelOf(patch: Patch): string {
  if ('ram' in patch) return `RAM+0x${patch.offset.toString(16)}`;
  if ('mapping' in patch) return `mapping+0x${patch.offset.toString(16)}`;
  return 'bitmap' in patch ? `bitmap of ${patch.pages} pages from page ${patch.firstPage}` : 'bytes';
}
