// Runs commands in a lab host: the outer end of lab/agent.ts. Called by lab/host.ts and `ferry lab exec`. Streams both ways with
// backpressure on stdin; when the connection or the host dies, the command's promise rejects, it never hangs.
import { connect, type Socket } from 'node:net';
import { PassThrough, type Readable, Writable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { VmmError } from '../native/errno.ts';
import { type CommandRequest, type ExitStatus, FRAME, FrameReader, frame, STDIN_WINDOW } from './frames.ts';

export interface AgentAddress {
  readonly port: number;
  readonly secret: string;
}

export interface CommandOptions {
  readonly cwd?: string;
  readonly env?: Readonly<Record<string, string>>;
}

/** A line for bash, or a program with its arguments. */
export type Command = string | readonly string[];

// QEMU's user network listens with a backlog of one: connections that come together while QEMU is busy are reset, or left without an
// answer for ever, before QEMU has seen them (measured). Nothing has been run before the agent's hello, so connecting again is safe.
// The hello takes 60 ms when idle; the wait for it doubles each time.
const CONNECT_ATTEMPTS = 12;
const CONNECT_PAUSE_MS = 50;
const FIRST_HELLO_MS = 300;
const LAST_HELLO_MS = 20_000;

/** A command that runs in a lab host. */
export class RemoteProcess {
  readonly stdout: Readable;
  readonly stderr: Readable;
  readonly stdin: Writable;
  /** Resolves when the command has ended and all its output has been handed over; rejects when the host or the connection is gone. */
  readonly done: Promise<ExitStatus>;
  readonly #port: number;
  readonly #request: Buffer;
  #socket: Socket;
  #begun = false;
  #dropped = false;
  #queued: Buffer[] = [];
  #credit = STDIN_WINDOW;
  #waiting: (() => void) | null = null;

  constructor(address: AgentAddress, request: CommandRequest) {
    this.#port = address.port;
    this.#request = frame(FRAME.request, JSON.stringify(request));
    const stdout = new PassThrough();
    const stderr = new PassThrough();
    this.stdout = stdout;
    this.stderr = stderr;
    this.stdin = new Writable({
      highWaterMark: STDIN_WINDOW,
      write: (chunk: Buffer, _encoding, done) => this.#send(chunk, done),
      final: (done) => {
        this.#write(frame(FRAME.stdinEnd, ''));
        done();
      },
    });
    this.stdin.on('error', () => {});
    this.#socket = this.#connect();
    this.done = this.#watch(stdout, stderr);
    // Whoever does not ask how it ended is not to be ended by it.
    this.done.catch(() => {});
  }

  #connect(): Socket {
    return connect({ host: '127.0.0.1', port: this.#port }).setNoDelay(true);
  }

  /** Before the hello, frames wait. */
  #write(bytes: Buffer): void {
    if (this.#begun) this.#socket.write(bytes);
    else this.#queued.push(bytes);
  }

  #begin(): void {
    this.#begun = true;
    this.#socket.write(this.#request);
    for (const bytes of this.#queued) this.#socket.write(bytes);
    this.#queued = [];
  }

  /** One connection to its end: how the command ended, or why that is not known. */
  #serve(stdout: PassThrough, stderr: PassThrough, helloMs: number): Promise<ExitStatus | Error> {
    const socket = this.#socket;
    const reader = new FrameReader();
    let status: ExitStatus | null = null;
    let failure: Error | null = null;
    const timer = setTimeout(() => socket.destroy(new Error('no answer')), helloMs);
    const take = (type: number, payload: Buffer) => {
      clearTimeout(timer);
      if (type === FRAME.hello) this.#begin();
      else if (type === FRAME.stdout) stdout.write(payload);
      else if (type === FRAME.stderr) stderr.write(payload);
      else if (type === FRAME.credit) this.#earn(payload.readUInt32BE(0));
      else if (type === FRAME.exit) status = JSON.parse(payload.toString()) as ExitStatus;
    };
    return new Promise((resolve) => {
      socket.on('data', (chunk: Buffer) => {
        try {
          reader.push(chunk, take);
        } catch (error) {
          socket.destroy(error as Error);
        }
      });
      socket.on('error', (error) => (failure = error));
      socket.on('close', () => {
        clearTimeout(timer);
        resolve(status ?? failure ?? new Error('closed'));
      });
    });
  }

  async #watch(stdout: PassThrough, stderr: PassThrough): Promise<ExitStatus> {
    try {
      for (let attempt = 1; ; attempt++) {
        const helloMs = Math.min(FIRST_HELLO_MS * 2 ** (attempt - 1), LAST_HELLO_MS);
        const result = await this.#serve(stdout, stderr, helloMs);
        if (!(result instanceof Error)) return result;
        if (this.#begun || this.#dropped || attempt === CONNECT_ATTEMPTS)
          throw new VmmError('ELAB', `the connection to the lab host was lost (${result.message})`, { exitCode: 1 });
        await sleep(CONNECT_PAUSE_MS);
        this.#socket = this.#connect();
      }
    } finally {
      stdout.end();
      stderr.end();
      this.stdin.destroy();
    }
  }

  #send(chunk: Buffer, done: () => void): void {
    let offset = 0;
    const step = () => {
      while (offset < chunk.length && this.#credit > 0) {
        const part = chunk.subarray(offset, offset + Math.min(this.#credit, 65536));
        this.#credit -= part.length;
        offset += part.length;
        this.#write(frame(FRAME.stdin, part));
      }
      if (offset >= chunk.length) done();
      else this.#waiting = step;
    };
    step();
  }

  #earn(bytes: number): void {
    this.#credit += bytes;
    const waiting = this.#waiting;
    this.#waiting = null;
    waiting?.();
  }

  /** A signal to the command's process group. */
  kill(signal: NodeJS.Signals = 'SIGTERM'): void {
    if (!this.#socket.destroyed) this.#write(frame(FRAME.signal, signal));
  }

  /** Drops the connection: the agent kills the command's process group with SIGKILL. */
  disconnect(): void {
    this.#dropped = true;
    this.#socket.destroy();
  }
}

/** Starts a command. */
export function startCommand(address: AgentAddress, command: Command, options: CommandOptions = {}): RemoteProcess {
  const line = typeof command === 'string';
  return new RemoteProcess(address, {
    secret: address.secret,
    argv: line ? null : command,
    command: line ? command : null,
    cwd: options.cwd ?? '/',
    env: options.env ?? {},
  });
}
