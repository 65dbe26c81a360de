// Writes a trace: JSON lines into a file, in large pieces and off the JS thread, so that a call that is recorded never waits for a disk; or
// readable lines to a stream. Made by cli; used by tracing-door.ts and foreign.ts. What was not written yet is written by close().
import { createHash } from 'node:crypto';
import { close, closeSync, fstatSync, openSync, write, writeSync } from 'node:fs';
import { release } from 'node:os';
import { VmmError } from '../../../native/errno.ts';
import { type Payload, TRACE_VERSION, type TraceHeader, type TraceLine } from './trace-file.ts';

const PIECE = 64 * 1024;
const FLUSH_MS = 200;

export interface TraceSink {
  line(line: TraceLine): void;
}

export interface TraceOptions {
  readonly program: readonly string[];
  readonly data: boolean;
  readonly notes: readonly string[];
}

export function headerFor(options: TraceOptions): TraceHeader {
  return {
    trace: 'ferry-vfio',
    version: TRACE_VERSION,
    program: options.program,
    kernel: release(),
    began: new Date().toISOString(),
    data: options.data,
    notes: options.notes,
  };
}

export class TraceWriter implements TraceSink {
  readonly #path: string;
  readonly #fd: number;
  /** Only then may two writes be under way: each has its own place in the file. */
  readonly #isFile: boolean;
  #place = 0;
  #lines: string[] = [];
  #bytes = 0;
  /** What is being written, by its place. */
  readonly #underway = new Map<number, Buffer>();
  #closed = false;
  #failed: Error | null = null;
  #timer: NodeJS.Timeout | null = null;
  readonly #atExit = () => this.close();

  constructor(path: string, options: TraceOptions) {
    this.#path = path;
    try {
      // Addresses, register values and, with data, device state: nobody else's business.
      this.#fd = openSync(path, 'w', 0o600);
    } catch (cause) {
      const code = cause instanceof Error && 'code' in cause ? String(cause.code) : String(cause);
      throw new VmmError(
        'trace',
        `the trace ${path} cannot be written (${code}): name a file in a directory of yours`,
        {
          cause,
        },
      );
    }
    this.#isFile = fstatSync(this.#fd).isFile();
    // process.exit() in the middle of a failure must not lose the calls that led to it.
    process.on('exit', this.#atExit);
    this.line(headerFor(options));
  }

  /** Why the file is not complete; null: it is, so far. */
  get failed(): Error | null {
    return this.#failed;
  }

  line(line: TraceLine): void {
    if (this.#closed) return;
    const text = `${JSON.stringify(line)}\n`;
    this.#lines.push(text);
    this.#bytes += text.length;
    if (this.#bytes >= PIECE) this.#flush();
    else if (this.#timer === null) this.#timer = setTimeout(() => this.#flush(), FLUSH_MS).unref();
  }

  #take(): Buffer {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
    const piece = Buffer.from(this.#lines.join(''));
    this.#lines = [];
    this.#bytes = 0;
    return piece;
  }

  #flush(): void {
    const piece = this.#take();
    if (!this.#isFile) {
      this.#writeNow(piece, null);
      return;
    }
    const place = this.#place;
    this.#place += piece.length;
    this.#underway.set(place, piece);
    this.#writeRest(piece, 0, place);
  }

  #writeRest(piece: Buffer, done: number, place: number): void {
    write(this.#fd, piece, done, piece.length - done, place + done, (error, written) => {
      if (error === null && done + written < piece.length) {
        this.#writeRest(piece, done + written, place);
        return;
      }
      if (error !== null) this.#fail(error);
      this.#underway.delete(place);
      if (this.#closed && this.#underway.size === 0) close(this.#fd, () => {});
    });
  }

  #writeNow(piece: Buffer, place: number | null): void {
    try {
      for (let done = 0; done < piece.length; ) {
        done += writeSync(this.#fd, piece, done, piece.length - done, place === null ? null : place + done);
      }
    } catch (error) {
      this.#fail(error as Error);
    }
  }

  /** A full disk must not end the guest: the trace ends instead, and says so once. */
  #fail(error: Error): void {
    if (this.#failed === null)
      process.stderr.write(`ferry: the trace ${this.#path} is not complete: ${error.message}\n`);
    this.#failed ??= error;
  }

  /** Synchronous, so that it may be the last thing that a process does. Idempotent. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    process.off('exit', this.#atExit);
    // A process that ends takes its threads' writes with it. Each piece has its place, so writing it twice does no harm.
    for (const [place, piece] of this.#underway) this.#writeNow(piece, place);
    this.#writeNow(this.#take(), this.#isFile ? this.#place : null);
    if (this.#underway.size === 0) closeSync(this.#fd);
  }
}

export function payloadOf(bytes: Uint8Array, length: number, keep: boolean): Payload {
  return {
    length,
    hash: createHash('sha256').update(bytes).digest('hex').slice(0, 16),
    ...(bytes.length < length ? { seen: bytes.length } : {}),
    ...(keep ? { data: Buffer.from(bytes).toString('base64') } : {}),
  };
}
