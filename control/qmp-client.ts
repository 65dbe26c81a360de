// A small QMP client: what `ferry migrate` and `ferry status` speak to a running Ferry (or QEMU). Answers come in the order of the commands, of
// which several may be under way: Ctrl-C cancels while a query waits for its answer.
import { connect, type Socket } from 'node:net';
import { VmmError } from '../native/errno.ts';
import type { QmpEvent } from './events.ts';
import { JsonStream } from './json-stream.ts';
import { QmpError, type QmpErrorClass } from './qmp-schema.ts';

interface Pending {
  resolve(reply: Reply): void;
  reject(error: Error): void;
}

interface Reply {
  readonly return?: unknown;
  readonly error?: { readonly class: QmpErrorClass; readonly desc: string };
  readonly event?: string;
  readonly QMP?: object;
}

export class QmpClient {
  readonly #socket: Socket;
  readonly #stream = new JsonStream();
  readonly #pending: Pending[] = [];
  #onEvent: (event: QmpEvent) => void = () => {};
  #closed = false;

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.on('data', (bytes) => {
      for (const item of this.#stream.push(bytes)) if ('value' in item) this.#take(item.value as Reply);
    });
    const lost = () => {
      this.#closed = true;
      const ended = new VmmError('control', 'the control socket was closed: the process has ended', { exitCode: 1 });
      for (const { reject } of this.#pending.splice(0)) reject(ended);
    };
    socket.on('close', lost);
    socket.on('error', () => socket.destroy());
  }

  /** Connects and negotiates. Throws VmmError with a remedy. */
  static async connect(path: string): Promise<QmpClient> {
    const socket = connect(path);
    await new Promise<void>((resolve, reject) => {
      socket.once('connect', resolve);
      socket.once('error', (error: NodeJS.ErrnoException) => {
        const found = error.code === 'ENOENT' ? 'there is no such socket' : (error.code ?? error.message);
        reject(
          new VmmError(
            'control',
            `cannot reach unix:${path}: ${found}; is a guest running with --control unix:${path}?`,
            {
              cause: error,
            },
          ),
        );
      });
    });
    const client = new QmpClient(socket);
    await client.#next();
    await client.execute('qmp_capabilities');
    return client;
  }

  get closed(): boolean {
    return this.#closed;
  }

  onEvent(listener: (event: QmpEvent) => void): void {
    this.#onEvent = listener;
  }

  async execute(command: string, args?: object): Promise<unknown> {
    const reply = this.#next();
    this.#socket.write(
      JSON.stringify(args === undefined ? { execute: command } : { execute: command, arguments: args }),
    );
    const { error, return: result } = await reply;
    if (error !== undefined) throw new QmpError(error.class, error.desc);
    return result;
  }

  #next(): Promise<Reply> {
    if (this.#closed) return Promise.reject(new VmmError('control', 'the control socket is closed', { exitCode: 1 }));
    return new Promise((resolve, reject) => {
      this.#pending.push({ resolve, reject });
    });
  }

  #take(message: Reply): void {
    if (message.event !== undefined) this.#onEvent(message as QmpEvent);
    else this.#pending.shift()?.resolve(message);
  }

  close(): void {
    this.#socket.destroy();
  }
}
