// The outer end of programs/fault-desk.ts, which runs in a lab host as long as a test file: links that do harm, and questions by QMP. Used by
// fault-bench.ts.
import { createInterface } from 'node:readline';
import type { RemoteProcess } from '../../lab/client.ts';
import type { LabHost } from '../../lab/host.ts';
import { bundleProgram } from './programs/bundle.ts';
import type { HarmOrder, Note, Order, Question } from './programs/fault-desk.ts';
import { soon } from './soon.ts';

export interface OpenLink {
  readonly struck: Promise<void>;
  cut(): void;
  close(): void;
}

type Said = Note['said'];

export class FaultDesk {
  readonly #program: RemoteProcess;
  readonly #waiting = new Map<string, (answer: unknown) => void>();
  #orders = 0;
  #stderr = '';

  private constructor(program: RemoteProcess) {
    this.#program = program;
    program.stderr.on('data', (bytes: Buffer) => (this.#stderr += bytes.toString()));
    createInterface({ input: program.stdout }).on('line', (line) => {
      const { id, said, answer } = JSON.parse(line) as Note;
      this.#waiting.get(`${id} ${said}`)?.(answer);
    });
  }

  static async open(host: LabHost): Promise<FaultDesk> {
    const program = await bundleProgram('fault-desk', host.share);
    return new FaultDesk(host.spawn(['node', program]));
  }

  async link(order: HarmOrder): Promise<OpenLink> {
    const id = this.#orders++;
    const listening = this.#told(id, 'listening');
    const struck = this.#told(id, 'struck').then(() => undefined);
    struck.catch(() => undefined);
    this.#send({ id, open: order });
    await listening;
    const cut = () => this.#send({ id, cut: true });
    return { struck, cut, close: cut };
  }

  /** What QMP said: { return } or { error }. */
  async ask(ask: Question): Promise<Record<string, unknown>> {
    const id = this.#orders++;
    const answer = this.#told(id, 'answer');
    this.#send({ id, ask });
    return (await answer) as Record<string, unknown>;
  }

  #send(order: Order): void {
    this.#program.stdin.write(`${JSON.stringify(order)}\n`);
  }

  #told(id: number, said: Said): Promise<unknown> {
    const told = new Promise<unknown>((resolve, reject) => {
      this.#waiting.set(`${id} ${said}`, resolve);
      const over = () => reject(new Error(`the fault desk ended before "${said}": ${this.#stderr}`));
      this.#program.done.then(over, (error: Error) => reject(error));
    });
    return soon(`"${said}" of the fault desk`, told);
  }
}
