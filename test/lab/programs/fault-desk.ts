// Runs in a lab host as long as its test file: test/fakes/harm-link.ts on TCP between a source and a `ferry receive` of this host, and questions to
// the ferries here by QMP. One program for all of them, for each start of Node costs a lab host a second. A line of stdin is an Order, a line of
// stdout a Note, both as JSON.
import { createInterface } from 'node:readline';
import { QmpClient } from '../../../control/qmp-client.ts';
import { QmpError } from '../../../control/qmp-schema.ts';
import { type Fate, Link } from '../../fakes/harm-link.ts';

export interface HarmOrder {
  readonly port: number;
  /** The port of `ferry receive` here. */
  readonly target: number;
  /** Hexadecimal. */
  readonly marker: string;
  readonly direction: 'forward' | 'back';
  readonly occurrence: number;
  readonly after?: number;
  readonly fate: Fate;
}

export interface Question {
  /** Of the control socket. */
  readonly path: string;
  readonly command: { readonly execute: string; readonly arguments?: object };
}

/** `id` names a link, or a question, in what is said of it. */
export type Order =
  | { readonly id: number; readonly open: HarmOrder }
  | { readonly id: number; readonly cut: true }
  | { readonly id: number; readonly ask: Question };

export interface Note {
  readonly id: number;
  readonly said: 'listening' | 'struck' | 'answer';
  /** Of a question: what QMP said. */
  readonly answer?: unknown;
}

const links = new Map<number, Link>();
const say = (note: Note) => process.stdout.write(`${JSON.stringify(note)}\n`);

async function open(id: number, { port, target, marker, fate, ...place }: HarmOrder): Promise<void> {
  const strike = () => {
    say({ id, said: 'struck' });
    return fate;
  };
  const harm = { ...place, marker: Buffer.from(marker, 'hex'), strike };
  links.set(id, await Link.open({ host: '0.0.0.0', port }, { host: '127.0.0.1', port: target }, harm));
  say({ id, said: 'listening' });
}

async function ask(id: number, { path, command }: Question): Promise<void> {
  const client = await QmpClient.connect(path);
  try {
    say({ id, said: 'answer', answer: { return: await client.execute(command.execute, command.arguments) } });
  } catch (error) {
    if (!(error instanceof QmpError)) throw error;
    say({ id, said: 'answer', answer: { error: { desc: error.message } } });
  } finally {
    client.close();
  }
}

createInterface({ input: process.stdin }).on('line', async (line) => {
  const order = JSON.parse(line) as Order;
  if ('open' in order) await open(order.id, order.open);
  else if ('ask' in order) await ask(order.id, order.ask);
  else {
    links.get(order.id)?.cut();
    links.delete(order.id);
  }
});
