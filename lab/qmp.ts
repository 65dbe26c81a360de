// A small QMP client for the QEMU that runs a lab host: set_link for faults, screendump, quit. Called by lab/host.ts and lab/link.ts.
// docs/interop/qmp-spec.txt. One request at a time; events are not used here.
import { connect, type Socket } from 'node:net';
import { createInterface } from 'node:readline';
import { VmmError } from '../native/errno.ts';

interface Reply {
  readonly return?: unknown;
  readonly error?: { readonly desc: string };
}

export class Qmp {
  readonly #socket: Socket;
  #waiting: { resolve: (reply: Reply) => void; reject: (error: Error) => void } | null = null;
  #greeted: () => void = () => {};
  #last: Promise<unknown> = Promise.resolve();
  #closed: Error | null = null;

  private constructor(socket: Socket) {
    this.#socket = socket;
    createInterface({ input: socket }).on('line', (line) => this.#line(line));
    socket.on('error', (error) => (this.#closed = error));
    socket.on('close', () => {
      this.#closed ??= new Error('closed');
      this.#waiting?.reject(this.#closed);
      this.#waiting = null;
      this.#greeted();
    });
  }

  static async open(path: string): Promise<Qmp> {
    const qmp = new Qmp(connect(path));
    await new Promise<void>((resolve) => (qmp.#greeted = resolve));
    await qmp.execute('qmp_capabilities', {});
    return qmp;
  }

  #line(line: string): void {
    const message = JSON.parse(line) as Reply & { QMP?: unknown };
    if (message.QMP !== undefined) this.#greeted();
    if (message.return === undefined && message.error === undefined) return;
    this.#waiting?.resolve(message);
    this.#waiting = null;
  }

  /** Rejects with what QEMU says. */
  execute(command: string, args: Readonly<Record<string, unknown>>): Promise<unknown> {
    const turn = this.#last.then(async () => {
      const reply = await new Promise<Reply>((resolve, reject) => {
        if (this.#closed !== null) return reject(this.#closed);
        this.#waiting = { resolve, reject };
        this.#socket.write(`${JSON.stringify({ execute: command, arguments: args })}\n`);
      }).catch((cause: Error) => {
        throw new VmmError('ELAB', `the lab host's QEMU did not answer ${command}`, { cause, exitCode: 1 });
      });
      if (reply.error !== undefined)
        throw new VmmError('ELAB', `the lab host's QEMU refused ${command}: ${reply.error.desc}`, { exitCode: 1 });
      return reply.return;
    });
    this.#last = turn.catch(() => {});
    return turn;
  }

  close(): void {
    this.#socket.destroy();
  }
}
