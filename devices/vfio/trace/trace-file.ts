// The file that a trace is: JSON lines, the first a header. Written by trace-writer.ts, read back here for `--show` and for replay.
// A reader takes what it does not know as it is, so that an older Ferry can read a newer trace of the same version.
import { readFileSync } from 'node:fs';
import { VmmError } from '../../../native/errno.ts';
import type { HostPciDevice } from '../host-pci.ts';
import type { Values } from './fields.ts';
import { faultOf } from './trace-check.ts';

export const TRACE_VERSION = 1;

/** In the place of an errno: a signal came in between and the program asked again, or died. */
export const INTERRUPTED = 'interrupted';

export interface TraceHeader {
  readonly trace: 'ferry-vfio';
  readonly version: number;
  readonly program: readonly string[];
  readonly kernel: string;
  /** ISO 8601; the times of the calls are microseconds since then. */
  readonly began: string;
  /** Payloads are kept, not only their length and hash. */
  readonly data: boolean;
  /** What this trace cannot show, in sentences. */
  readonly notes: readonly string[];
}

/** What sysfs said of a device when it was opened: replay builds it up again. */
export interface TracedDevice extends HostPciDevice {
  /** Its name under /dev/vfio/devices; null: this kernel has none. */
  readonly cdev: string | null;
  /** The host had /dev/iommu. */
  readonly iommufd: boolean;
}

export interface DeviceLine {
  readonly device: TracedDevice;
}

/** Bytes that a call moved: read or written data, a bitmap. */
export interface Payload {
  readonly length: number;
  /** The first 16 hex digits of SHA-256 over what was seen of it. */
  readonly hash: string;
  /** Fewer than `length` bytes were looked at. */
  readonly seen?: number;
  /** base64 */
  readonly data?: string;
}

export interface CallLine {
  /** Start and duration in microseconds. */
  readonly at: number;
  readonly us: number;
  /** Of another program. */
  readonly pid?: number;
  readonly tid?: number;
  /** The system call. */
  readonly call: string;
  readonly fd: number;
  /** Which file it is, the same word for as long as the file lives: 'container', 'device 0000:65:00.0', 'data 1 of 0000:65:00.0'. */
  readonly on: string;
  /** The call in words, for people and for matching. */
  readonly what: string;
  readonly request?: number;
  readonly given?: Values;
  readonly answer?: Values;
  /** Hex: the ioctl's argument before and, where it differs, after. */
  readonly before?: string;
  readonly after?: string;
  readonly offset?: string;
  readonly length?: number;
  /** Its result; -1 with `errno`. */
  readonly result: number;
  readonly errno?: string;
  /** A new fd that came out of it. */
  readonly made?: { readonly fd: number; readonly on: string };
  readonly payload?: Payload;
  /** Memory that the argument pointed to and that the kernel filled in: small lists as hex, by the pointer's place; a bitmap. */
  readonly lists?: Readonly<Record<number, string>>;
  readonly bitmap?: Payload;
}

export interface EndLine {
  readonly end: {
    readonly at: number;
    readonly pid: number;
    readonly code: number | null;
    readonly signal: string | null;
  };
}

export type TraceLine = TraceHeader | DeviceLine | CallLine | EndLine;

export interface NumberedCall {
  /** Of the file, from 1. */
  readonly line: number;
  readonly call: CallLine;
}

export interface Trace {
  readonly header: TraceHeader;
  readonly devices: readonly TracedDevice[];
  readonly calls: readonly NumberedCall[];
  readonly ends: readonly EndLine['end'][];
  /** The last line was cut off: the program was killed while it wrote. */
  readonly cut: boolean;
}

/** Throws VmmError naming the file and the line. */
export function readTrace(path: string): Trace {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (cause) {
    const code = cause instanceof Error && 'code' in cause ? String(cause.code) : String(cause);
    throw new VmmError(
      'trace',
      `the trace ${path} cannot be read (${code}): give a file that ferry vfio trace -o wrote`,
      {
        cause,
      },
    );
  }
  return parseTrace(path, text);
}

export function parseTrace(path: string, text: string): Trace {
  const lines = text.split('\n');
  const last = lines.pop() ?? '';
  const devices = new Map<string, TracedDevice>();
  const calls: NumberedCall[] = [];
  const ends: EndLine['end'][] = [];
  const header = headerOf(path, lines[0] ?? last);
  lines.slice(1).forEach((each, i) => {
    const line = i + 2;
    const parsed = parseLine(path, line, each);
    if ('device' in parsed) devices.set(parsed.device.bdf, parsed.device);
    else if ('end' in parsed) ends.push(parsed.end);
    else if ('call' in parsed) calls.push({ line, call: parsed });
  });
  return { header, devices: [...devices.values()], calls, ends, cut: last !== '' };
}

function headerOf(path: string, text: string): TraceHeader {
  let found: Partial<TraceHeader> = {};
  try {
    found = (JSON.parse(text) as Partial<TraceHeader> | null) ?? {};
  } catch {
    // said below
  }
  if (found.trace !== 'ferry-vfio') {
    throw new VmmError('trace', `${path} is no trace of ferry: its first line has no "trace":"ferry-vfio"`);
  }
  const isList = (list: unknown) => Array.isArray(list) && list.every((each) => typeof each === 'string');
  if (!isList(found.program) || !isList(found.notes)) {
    throw new VmmError('trace', `${path} line 1 has no program or no notes: the file is damaged; record it again`);
  }
  if (found.version !== TRACE_VERSION) {
    throw new VmmError(
      'trace',
      `${path} is a trace of version ${found.version}, this ferry reads version ${TRACE_VERSION}: use the ferry that wrote it`,
    );
  }
  return found as TraceHeader;
}

function parseLine(path: string, line: number, text: string): DeviceLine | EndLine | CallLine | { other: true } {
  let found: unknown;
  try {
    found = JSON.parse(text);
  } catch {
    throw new VmmError('trace', `${path} line ${line} is not JSON: the file is damaged; record it again`);
  }
  if (typeof found !== 'object' || found === null) return { other: true };
  const fault = faultOf(found);
  if (fault !== null) {
    throw new VmmError('trace', `${path} line ${line} ${fault}: the file is damaged; record it again`);
  }
  const isKnown = 'device' in found || 'call' in found || 'end' in found;
  return isKnown ? (found as DeviceLine | EndLine | CallLine) : { other: true };
}
