// A QMP session with a ferry in a lab host, over programs/qmp.ts there. One at a time for a ferry: `ferry migrate` needs the socket, too.
import type { RemoteProcess } from '../../lab/client.ts';
import { type Guest, MOVE_LIMIT_MS, type Pair } from './pair.ts';
import { bundleProgram } from './programs/bundle.ts';

export interface QmpEventLine {
  readonly event: string;
  readonly data?: unknown;
}

export class LabQmp {
  readonly events: QmpEventLine[] = [];
  readonly #process: RemoteProcess;
  readonly #answers: unknown[] = [];
  #text = '';
  #wake: () => void = () => {};

  private constructor(process: RemoteProcess) {
    this.#process = process;
    process.stdout.on('data', (bytes: Buffer) => this.#take(bytes.toString()));
  }

  static async open(pair: Pair, guest: Guest): Promise<LabQmp> {
    const { host } = pair.sides[guest.at];
    const program = await bundleProgram('qmp', host.share);
    const session = new LabQmp(host.spawn(['/usr/bin/node', program, guest.control.replace('unix:', '')]));
    await session.#answer();
    return session;
  }

  #take(text: string): void {
    const lines = (this.#text + text).split('\n');
    this.#text = lines.pop() ?? '';
    for (const line of lines) {
      const value = JSON.parse(line) as QmpEventLine | { return?: unknown; error?: string };
      if ('event' in value) this.events.push(value);
      else this.#answers.push(value.error ?? value.return);
    }
    this.#wake();
  }

  async #answer(): Promise<unknown> {
    const limit = Date.now() + MOVE_LIMIT_MS;
    while (this.#answers.length === 0) {
      if (Date.now() > limit) throw new Error('no answer of QMP');
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
        setTimeout(resolve, 1000);
      });
    }
    return this.#answers.shift();
  }

  execute(command: string): Promise<unknown> {
    this.#process.stdin.write(`${command}\n`);
    return this.#answer();
  }

  /** Asks again and again. */
  async until(command: string, ready: (answer: Record<string, unknown>) => boolean): Promise<Record<string, unknown>> {
    for (const limit = Date.now() + MOVE_LIMIT_MS; ; await new Promise((resolve) => setTimeout(resolve, 50))) {
      const answer = (await this.execute(command)) as Record<string, unknown>;
      if (ready(answer)) return answer;
      if (Date.now() > limit) throw new Error(`${command} still answers ${JSON.stringify(answer)}`);
    }
  }

  /** Resolves when the other side has closed, or we did. */
  async ended(): Promise<void> {
    await this.#process.done;
  }

  close(): Promise<void> {
    this.#process.stdin.end();
    return this.ended();
  }
}
