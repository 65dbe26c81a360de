// Makes the lines of a trace out of what was seen of each call, for Ferry's own calls (tracing-door.ts) and those of other programs
// (foreign.ts) alike. Names files that ioctls make, and writes down what sysfs says of a device when it is first seen. JS thread.
import { parseSysfsDevice } from '../host-pci.ts';
import type { HostPaths } from '../kernel-door.ts';
import { decodeIoctl, type IoctlCall, isFeatureCall, requestOf } from './decode.ts';
import { FEATURES } from './features.ts';
import { type Values, viewOf } from './fields.ts';
import type { FdKind, Feature, Pointer } from './request.ts';
import type { CallLine } from './trace-file.ts';
import { payloadOf, type TraceSink } from './trace-writer.ts';
import { describeDevice, type TracedFile } from './traced-file.ts';

/** Register accesses are kept whole: a hash of four bytes hides nothing and helps nobody. */
const SMALL = 64;

/** When, and in another program where. */
export type Moment = Pick<CallLine, 'at' | 'us' | 'pid' | 'tid'>;

export interface Outcome {
  readonly result: number;
  /** Its name; null: the call succeeded. */
  readonly errno: string | null;
}

export interface SeenIoctl extends Omit<IoctlCall, 'kind' | 'failed'> {
  readonly fd: number;
  readonly file: TracedFile;
  readonly outcome: Outcome;
}

export interface SeenAccess {
  readonly call: string;
  readonly fd: number;
  readonly file: TracedFile;
  /** null: a stream has none. */
  readonly offset: bigint | null;
  /** As asked for. */
  readonly length: number;
  /** What was moved, or its beginning; null: a failure, or memory that is not looked at. */
  readonly bytes: Uint8Array | null;
  readonly outcome: Outcome;
}

interface Region {
  readonly index: number;
  readonly start: bigint;
  readonly size: bigint;
}

export class CallRecorder {
  readonly #sink: TraceSink;
  readonly #paths: HostPaths;
  readonly #keepData: boolean;
  readonly #described = new Set<string>();
  /** Data fds so far, by device. */
  readonly #sessions = new Map<string, number>();
  readonly #regions = new Map<string, Region[]>();

  constructor(sink: TraceSink, paths: HostPaths, keepData: boolean) {
    this.#sink = sink;
    this.#paths = paths;
    this.#keepData = keepData;
  }

  /** Gives the file that the call made, if it made one. */
  ioctl(moment: Moment, seen: SeenIoctl): { fd: number; file: TracedFile } | null {
    const { fd, file, outcome } = seen;
    const failed = outcome.errno !== null;
    const decoded = decodeIoctl({ ...seen, kind: file.kind, failed });
    const made = failed ? null : this.#madeBy(seen, decoded.given);
    if (decoded.answer['offset'] !== undefined) this.#learnRegion(file.on, { ...decoded.given, ...decoded.answer });
    this.#sink.line({
      ...moment,
      call: 'ioctl',
      fd,
      on: file.on,
      what: decoded.what,
      request: seen.request,
      given: decoded.given,
      answer: decoded.answer,
      ...bytesOf(seen),
      ...resultOf(outcome),
      ...(made === null ? {} : { made: { fd: made.fd, on: made.file.on } }),
      ...this.#filledIn(seen),
    });
    return made;
  }

  access(moment: Moment, seen: SeenAccess): void {
    const { call, fd, file, offset, length, bytes, outcome } = seen;
    const where = offset === null ? '' : `${this.#place(file.on, offset)}, `;
    const keep = this.#keepData || (file.kind === 'device' && length <= SMALL);
    this.#sink.line({
      ...moment,
      call,
      fd,
      on: file.on,
      what: `${call}(${where}${length})`,
      ...(offset === null ? {} : { offset: `0x${offset.toString(16)}` }),
      length,
      ...resultOf(outcome),
      ...(bytes === null ? {} : { payload: payloadOf(bytes, outcome.result, keep) }),
    });
  }

  /** Whatever else happens to a file: open, close, dup, mmap, poll, arrival through a socket. */
  other(
    moment: Moment,
    seen: Pick<CallLine, 'call' | 'fd' | 'on' | 'what'> & { outcome: Outcome; rest?: Partial<CallLine> },
  ): void {
    const { call, fd, on, what, outcome, rest = {} } = seen;
    this.#sink.line({ ...moment, call, fd, on, what, ...rest, ...resultOf(outcome) });
  }

  /** An fd of a device was seen for the first time, however it was opened. */
  describe(file: TracedFile): void {
    const [kind, address = ''] = file.on.split(' ');
    if (kind !== 'device' || this.#described.has(address)) return;
    this.#described.add(address);
    try {
      const device = describeDevice(this.#paths, parseSysfsDevice(address));
      if (device !== null) this.#sink.line({ device });
    } catch {
      // a cdev that sysfs does not know
    }
  }

  /** "region 7+0x4" where the device has told where its regions lie, else the plain offset. */
  #place(on: string, offset: bigint): string {
    const region = this.#regions.get(on)?.find(({ start, size }) => offset >= start && offset < start + size);
    return region === undefined
      ? `0x${offset.toString(16)}`
      : `region ${region.index}+0x${(offset - region.start).toString(16)}`;
  }

  placeOf(file: TracedFile, offset: bigint): string {
    return this.#place(file.on, offset);
  }

  #learnRegion(on: string, values: Values): void {
    const { index, offset, size } = values;
    if (typeof index !== 'number' || typeof offset !== 'string' || typeof size !== 'string') return;
    const known = this.#regions.get(on) ?? [];
    const others = known.filter((each) => each.index !== index);
    this.#regions.set(on, [...others, { index, start: BigInt(offset), size: BigInt(size) }]);
  }

  #madeBy(seen: SeenIoctl, given: Values): { fd: number; file: TracedFile } | null {
    const makes = makesOf(seen.file.kind, seen.request, seen.before);
    if (makes === null) return null;
    const fd = makes === 'result' ? seen.outcome.result : fdAt(seen.after, makes);
    if (fd < 0) return null;
    if (isFeatureCall(seen.file.kind, seen.request)) return { fd, file: this.#session(seen.file) };
    const name = requestOf(seen.file.kind, seen.request)?.name;
    if (name !== 'VFIO_GROUP_GET_DEVICE_FD') return { fd, file: { kind: 'other', on: `fd of ${name}` } };
    const file: TracedFile = { kind: 'device', on: `device ${given['device']}` };
    this.describe(file);
    return { fd, file };
  }

  #session(device: TracedFile): TracedFile {
    const count = (this.#sessions.get(device.on) ?? 0) + 1;
    this.#sessions.set(device.on, count);
    return { kind: 'data', on: `data ${count} of ${device.on.replace(/^device /, '')}` };
  }

  /** What the kernel wrote behind pointers. A bitmap is state of a guest, like any other payload. */
  #filledIn(seen: SeenIoctl): Pick<CallLine, 'bitmap' | 'lists'> {
    const filled = seen.memory.filter(({ when }) => when === 'after');
    const rows = pointersOf(seen).filter((row) => row.when === 'after');
    const lists: Record<number, string> = {};
    let bitmap: Uint8Array | null = null;
    for (const row of rows) {
      const bytes = filled.find(({ at }) => at === row.at)?.bytes ?? null;
      if (bytes === null) continue;
      if (row.name === 'bitmap') bitmap = bytes;
      else lists[row.at] = Buffer.from(bytes).toString('hex');
    }
    return {
      ...(Object.keys(lists).length === 0 ? {} : { lists }),
      ...(bitmap === null ? {} : { bitmap: payloadOf(bitmap, bitmap.length, this.#keepData) }),
    };
  }
}

function pointersOf({ file, request, before }: SeenIoctl): readonly Pointer[] {
  if (!isFeatureCall(file.kind, request)) return requestOf(file.kind, request)?.pointers ?? [];
  return featureOf(before)?.pointers ?? [];
}

/** Where the call leaves a new fd: its result, an offset in the argument, or nowhere. */
export function makesOf(kind: FdKind, request: number, argument: Uint8Array | number | null): 'result' | number | null {
  if (isFeatureCall(kind, request)) return featureOf(argument)?.makes ?? null;
  return requestOf(kind, request)?.makes ?? null;
}

function featureOf(argument: Uint8Array | number | null): Feature | null {
  if (!(argument instanceof Uint8Array) || argument.length < 8) return null;
  const number = viewOf(argument).getUint32(4, true) & 0xffff;
  return FEATURES.find((each) => each.feature === number) ?? null;
}

function fdAt(bytes: Uint8Array | null, at: number): number {
  return bytes === null || bytes.length < at + 4 ? -1 : viewOf(bytes).getInt32(at, true);
}

function bytesOf({ before, after }: SeenIoctl): Pick<CallLine, 'before' | 'after'> {
  if (!(before instanceof Uint8Array)) return {};
  const first = Buffer.from(before).toString('hex');
  const second = after === null ? first : Buffer.from(after).toString('hex');
  return { before: first, ...(second === first ? {} : { after: second }) };
}

function resultOf({ result, errno }: Outcome): Pick<CallLine, 'result' | 'errno'> {
  return errno === null ? { result } : { result: -1, errno };
}
