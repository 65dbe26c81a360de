// Traces another program: the native tracer says what its system calls did to VFIO and iommufd fds, this makes lines of it. Called by
// cli/vfio-trace.ts. JS thread; the program does not wait for it unless it is far behind.
import type { KvmNode, TracedCall, TraceRules } from '../../../native/addon.ts';
import { errnoName } from '../../../native/errno.ts';
import type { HostPaths } from '../kernel-door.ts';
import { CallRecorder, type Moment, type Outcome } from './call-recorder.ts';
import { requestOf } from './decode.ts';
import { flags, viewOf } from './fields.ts';
import { type CallLine, INTERRUPTED } from './trace-file.ts';
import type { TraceSink } from './trace-writer.ts';
import { fileOfPath, signalName, type TracedFile } from './traced-file.ts';
import { kindByNumber, tracerRules } from './tracer-rules.ts';

export const FOREIGN_TRACE_NOTES = [
  'accesses to mapped BARs are not visible',
  'calls through io_uring, splice and sendfile, and those of 32-bit programs, are not visible',
];

/** linux/errno.h: ERESTARTSYS and its like never reach a program. */
const RESTART = { first: 512, last: 516 };
const MOVED: Readonly<Record<string, string>> = {
  readv: 'read',
  writev: 'write',
  preadv: 'pread',
  preadv2: 'pread',
  pwritev: 'pwrite',
  pwritev2: 'pwrite',
};
const TRANSFERS = new Set(['read', 'write', 'pread', 'pwrite', ...Object.keys(MOVED)]);
/** poll(2) */
const POLL_EVENTS = { POLLIN: 1, POLLPRI: 2, POLLOUT: 4, POLLERR: 8, POLLHUP: 16, POLLNVAL: 32 };
/** mmap(2) */
const PROT = { READ: 1, WRITE: 2, EXEC: 4 };

export interface ForeignTrace {
  readonly sink: TraceSink;
  readonly paths: HostPaths;
  readonly data: boolean;
  /** null: those for VFIO. A test looks for other files. */
  readonly rules: TraceRules | null;
  /** Called once, when the program runs. */
  readonly started: (pid: number) => void;
}

/** Resolves when the program and all that it started have ended. Throws SysError when it cannot be started. */
export async function traceForeign(
  native: Pick<KvmNode, 'traceProgram'>,
  command: readonly string[],
  trace: ForeignTrace,
): Promise<{ code: number | null; signal: number | null }> {
  const tracer = native.traceProgram(command, trace.rules ?? tracerRules(trace.paths));
  trace.started(tracer.pid);
  const lines = new ForeignLines(trace);
  for (;;) {
    const { calls, ended } = await tracer.next();
    for (const call of calls) lines.seen(call);
    if (ended !== null) return ended;
  }
}

export class ForeignLines {
  readonly #sink: TraceSink;
  readonly #paths: HostPaths;
  readonly #recorder: CallRecorder;
  readonly #files = new Map<number, TracedFile>();

  constructor(trace: Pick<ForeignTrace, 'sink' | 'paths' | 'data'>) {
    this.#sink = trace.sink;
    this.#paths = trace.paths;
    this.#recorder = new CallRecorder(trace.sink, trace.paths, trace.data);
  }

  seen(call: TracedCall): void {
    const moment: Moment = { at: micros(call.at), us: micros(call.seconds), pid: call.pid, tid: call.tid };
    const outcome = outcomeOf(call);
    if (call.call === 'end') this.#ended(call);
    else if (call.call === 'ioctl') this.#ioctl(moment, call, outcome);
    else if (TRANSFERS.has(call.call)) this.#transfer(moment, call, outcome);
    else this.#other(moment, call, outcome);
  }

  #ended({ at, pid, result }: TracedCall): void {
    const how = result < 0 ? { code: null, signal: signalName(-result) } : { code: result, signal: null };
    this.#sink.line({ end: { at: micros(at), pid, ...how } });
  }

  #ioctl(moment: Moment, call: TracedCall, outcome: Outcome): void {
    const file = this.#fileOf(call);
    const request = Number(call.args[1] ?? 0n) >>> 0;
    const made = this.#recorder.ioctl(moment, {
      fd: call.fd,
      file,
      request,
      before: argumentOf(file, request, call),
      after: call.after,
      memory: call.memory,
      labels: new Map(),
      outcome,
    });
    if (call.made !== null) {
      this.#files.set(call.made.file, made?.file ?? { kind: kindByNumber(call.made.kind), on: `fd ${call.made.fd}` });
    }
  }

  #transfer(moment: Moment, call: TracedCall, outcome: Outcome): void {
    const name = MOVED[call.call] ?? call.call;
    const isVector = name !== call.call;
    this.#recorder.access(moment, {
      call: name,
      fd: call.fd,
      file: this.#fileOf(call),
      offset: name.startsWith('p') ? (call.args[3] ?? 0n) : null,
      length: isVector ? Math.max(0, call.result) : Number(call.args[2] ?? 0n),
      bytes: outcome.errno === null ? call.payload : null,
      outcome,
    });
  }

  #other(moment: Moment, call: TracedCall, outcome: Outcome): void {
    const file = this.#fileOf(call);
    if (call.path !== '') this.#recorder.describe(file);
    const made = call.made === null ? {} : { made: { fd: call.made.fd, on: file.on } };
    this.#recorder.other(moment, {
      call: call.call,
      fd: call.fd,
      on: file.on,
      what: this.#words(call, file),
      outcome,
      rest: { ...made, ...mapped(call), ...polled(call) },
    });
  }

  #words(call: TracedCall, file: TracedFile): string {
    if (call.call === 'mmap') {
      const prot = flags(PROT).read(new DataView(new Uint32Array([Number(call.args[2] ?? 0n)]).buffer), 0);
      const place = this.#recorder.placeOf(file, call.args[5] ?? 0n);
      return `mmap(${place}, 0x${(call.args[1] ?? 0n).toString(16)}, ${prot})`;
    }
    return call.path === '' ? call.call : `${call.call}(${call.path})`;
  }

  /** What arrives through a socket is known already, if its sender was traced too. */
  #fileOf(call: TracedCall): TracedFile {
    const known = this.#files.get(call.file);
    if (known !== undefined) return known;
    const named = call.path === '' ? null : fileOfPath(this.#paths, call.path);
    const file = named ?? { kind: kindByNumber(call.kind), on: call.path === '' ? `fd ${call.fd}` : call.path };
    if (call.file !== 0) this.#files.set(call.file, file);
    return file;
  }
}

function micros(seconds: number): number {
  return Math.round(seconds * 1e6);
}

function outcomeOf({ result, answered, call }: TracedCall): Outcome {
  if (call === 'end' || (result >= 0 && answered)) return { result, errno: null };
  const interrupted = !answered || (-result >= RESTART.first && -result <= RESTART.last);
  return { result: -1, errno: interrupted ? INTERRUPTED : errnoName(-result) };
}

/** A number stays one; a text ends where the program ended it, not where reading it did. */
function argumentOf(file: TracedFile, request: number, call: TracedCall): Uint8Array | number | null {
  const argument = requestOf(file.kind, request)?.argument.kind;
  if (call.before === null || argument === 'none' || argument === 'number') {
    const number = call.args[2] ?? 0n;
    return argument === 'number' ? Number(number) : call.before;
  }
  const end = argument === 'text' ? call.before.indexOf(0) : -1;
  return end === -1 ? call.before : call.before.subarray(0, end + 1);
}

function mapped(call: TracedCall): Partial<CallLine> {
  if (call.call !== 'mmap') return {};
  return { offset: `0x${(call.args[5] ?? 0n).toString(16)}`, length: Number(call.args[1] ?? 0n) };
}

/** struct pollfd: fd, events, revents */
function polled(call: TracedCall): Partial<CallLine> {
  if (call.call !== 'poll' || call.after === null) return {};
  const view = viewOf(call.after);
  const words = flags(POLL_EVENTS);
  const word = (at: number) => words.read(new DataView(new Uint32Array([view.getUint16(at, true)]).buffer), 0);
  return { given: { events: word(4) }, answer: { revents: word(6) } };
}
