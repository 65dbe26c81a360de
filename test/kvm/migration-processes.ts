// Two processes that move a guest between them: starts migration-node.ts and keeps what each side says with the outer clock. For
// migration-faults.test.ts; the link between them is harm-link.ts.
import { type ChildProcess, spawn } from 'node:child_process';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { buildSync } from 'esbuild';

const ROOT = resolve(import.meta.dirname, '../..');
const WAIT_MS = 40_000 * Number(process.env['FERRY_TEST_PATIENCE'] ?? 1);

/** The bundled node: TypeScript runs in a child only after esbuild has had it. */
export function bundleNode(directory: string): string {
  const outfile = join(directory, 'migration-node.mjs');
  buildSync({
    entryPoints: [join(import.meta.dirname, 'migration-node.ts')],
    outfile,
    bundle: true,
    platform: 'node',
    format: 'esm',
    target: 'node20',
    external: ['koffi', 'msgpackr', 'pino'],
    logLevel: 'error',
    banner: {
      js: 'import { createRequire as ferryRequire } from "node:module"; const require = ferryRequire(import.meta.url);',
    },
  });
  return outfile;
}

type Event = Record<string, unknown>;

export class NodeProcess {
  readonly child: ChildProcess;
  readonly events: Event[] = [];
  text = '';
  /** performance.now() of the last byte of console. */
  spokeAt = 0;
  #listeners: (() => void)[] = [];
  exited = false;

  constructor(script: string) {
    this.child = spawn(process.execPath, [script], {
      cwd: ROOT,
      env: { ...process.env, FERRY_ADDON: process.env['FERRY_ADDON'] ?? join(ROOT, 'build/Release/kvm_node.node') },
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    this.child.stdin!.on('error', () => undefined);
    this.child.on('exit', () => {
      this.exited = true;
      this.#turn();
    });
    createInterface({ input: this.child.stdout! }).on('line', (line) => {
      const event = JSON.parse(line) as Event;
      if (typeof event['console'] === 'string') {
        this.text += event['console'];
        this.spokeAt = performance.now();
      } else this.events.push(event);
      this.#turn();
    });
  }

  #turn(): void {
    for (const listener of [...this.#listeners]) listener();
  }

  send(command: object): void {
    this.child.stdin!.write(`${JSON.stringify(command)}\n`);
  }

  /** Resolves when `look` gives something; rejects when the process ends or time is up. */
  until<T>(what: string, look: () => T | null | undefined | false): Promise<T> {
    return new Promise((resolve, reject) => {
      const done = (settle: () => void): void => {
        clearTimeout(timer);
        this.#listeners = this.#listeners.filter((other) => other !== listener);
        settle();
      };
      const listener = (): void => {
        const found = look();
        if (found) done(() => resolve(found));
        else if (this.exited) done(() => reject(new Error(`the process ended before ${what}`)));
      };
      const timer = setTimeout(
        () =>
          done(() =>
            reject(new Error(`waited in vain for ${what}; ${JSON.stringify(this.events)} ${this.text.slice(-300)}`)),
          ),
        WAIT_MS,
      );
      this.#listeners.push(listener);
      listener();
    });
  }

  /** The next event of that name from position `from` on. */
  event(name: string, from = 0): Promise<Event> {
    return this.until(name, () => {
      const failed = this.events.slice(from).find((event) => event['event'] === 'error');
      if (failed !== undefined && name !== 'error') throw new Error(String(failed['error']));
      return this.events.slice(from).find((event) => event['event'] === name);
    });
  }

  kill(): void {
    this.child.kill('SIGKILL');
  }
}
