// The agent in a lab host: runs commands for the outer host, each on a connection of its own. Started by images/lab/init; bundled into
// dist/lab-agent.cjs. It answers only to the secret of this host. When the client goes away, the command's process group is killed.
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import { timingSafeEqual } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createServer, type Socket } from 'node:net';
import { type CommandRequest, type ExitStatus, FRAME, FrameReader, frame } from './frames.ts';

const PORT = 7000;

function sameSecret(given: unknown, secret: Buffer): boolean {
  const bytes = Buffer.from(typeof given === 'string' ? given : '');
  return bytes.length === secret.length && timingSafeEqual(bytes, secret);
}

/** One connection: one command. */
class Session {
  readonly #socket: Socket;
  readonly #secret: Buffer;
  readonly #reader = new FrameReader();
  #child: ChildProcessWithoutNullStreams | null = null;
  #ended = false;

  constructor(socket: Socket, secret: Buffer) {
    this.#socket = socket;
    this.#secret = secret;
    socket.setNoDelay(true);
    socket.on('error', () => {});
    socket.on('data', (chunk) => this.#take(chunk));
    socket.on('end', () => this.#kill('SIGKILL'));
    socket.on('close', () => this.#kill('SIGKILL'));
    socket.write(frame(FRAME.hello, ''));
  }

  #take(chunk: Buffer): void {
    try {
      this.#reader.push(chunk, (type, payload) => this.#frame(type, payload));
    } catch (error) {
      this.#end({ code: null, signal: null, error: `agent: ${(error as Error).message}` });
    }
  }

  #frame(type: number, payload: Buffer): void {
    if (this.#ended) return;
    if (this.#child === null) {
      if (type !== FRAME.request) throw new Error('a command has to come first');
      this.#start(JSON.parse(payload.toString()) as CommandRequest);
    } else if (type === FRAME.stdin) this.#stdin(payload);
    else if (type === FRAME.stdinEnd) this.#child.stdin.end();
    else if (type === FRAME.signal) this.#kill(payload.toString() as NodeJS.Signals);
    else throw new Error(`unknown frame type ${type}`);
  }

  #start(request: CommandRequest): void {
    if (!sameSecret(request.secret, this.#secret)) throw new Error('wrong secret');
    const argv = request.argv ?? ['/bin/bash', '-c', request.command ?? ''];
    // A process group of its own, so that pipes and children of a shell line end with it.
    const child = spawn(argv[0] ?? '', argv.slice(1), {
      cwd: request.cwd,
      env: { ...process.env, ...request.env },
      detached: true,
    });
    this.#child = child;
    child.on('error', (error) => this.#end({ code: 127, signal: null, error: error.message }));
    child.stdin.on('error', () => {});
    this.#forward(child.stdout, FRAME.stdout);
    this.#forward(child.stderr, FRAME.stderr);
    child.on('close', (code, signal) => this.#end({ code, signal, error: null }));
  }

  #stdin(payload: Buffer): void {
    this.#child!.stdin.write(payload, () => {
      if (this.#ended) return;
      const credit = Buffer.alloc(4);
      credit.writeUInt32BE(payload.length);
      this.#socket.write(frame(FRAME.credit, credit));
    });
  }

  #forward(stream: NodeJS.ReadableStream, type: number): void {
    stream.on('data', (chunk: Buffer) => {
      if (this.#socket.write(frame(type, chunk))) return;
      stream.pause();
      this.#socket.once('drain', () => stream.resume());
    });
  }

  #kill(signal: NodeJS.Signals): void {
    const pid = this.#child?.pid;
    if (pid === undefined || this.#ended) return;
    try {
      process.kill(-pid, signal);
    } catch {
      // It ended just now; 'close' follows.
    }
  }

  #end(status: ExitStatus): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#socket.end(frame(FRAME.exit, JSON.stringify(status)));
  }
}

const secret = Buffer.from(readFileSync(process.argv[2] ?? '/hw/.lab/secret', 'latin1').trim());
createServer((socket) => new Session(socket, secret)).listen(PORT, '0.0.0.0', () => console.log('LAB AGENT READY'));
