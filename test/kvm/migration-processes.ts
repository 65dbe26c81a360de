// Two processes and a link between them that does harm on command: starts migration-node.ts, keeps what each side says with the outer clock,
// and relays the stream, looking for a marker at which something breaks. For migration-faults.test.ts.
import { type ChildProcess, spawn } from 'node:child_process';
import { createConnection, createServer, type Socket } from 'node:net';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { buildSync } from 'esbuild';

const ROOT = resolve(import.meta.dirname, '../..');
const WAIT_MS = 40_000;

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

export interface Harm {
  /** Bytes to look for, in the stream or on the return path, and which occurrence of them. */
  readonly marker: Uint8Array;
  readonly direction: 'forward' | 'back';
  readonly occurrence: number;
  /** Called once, when the marker is about to pass; what it returns becomes of the marker and all after it:
   *  nothing more passes either way, one bit changes, or the destination sees the end while the way back stays open. */
  readonly strike: (link: Link) => 'hold' | 'flip' | 'truncate';
}

/** One connection relayed between `path` and `target`. */
export class Link {
  readonly #sockets: Socket[] = [];
  readonly #harm: Harm | null;
  #held = false;
  struck = false;

  private constructor(harm: Harm | null) {
    this.#harm = harm;
  }

  static async open(path: string, target: string, harm: Harm | null): Promise<Link> {
    const link = new Link(harm);
    const server = createServer((source) => {
      server.close();
      const destination = createConnection(target);
      link.#sockets.push(source, destination);
      link.#relay(source, destination, 'forward');
      link.#relay(destination, source, 'back');
    });
    await new Promise<void>((resolve) => server.listen(path, resolve));
    return link;
  }

  #relay(from: Socket, to: Socket, direction: Harm['direction']): void {
    let tail = Buffer.alloc(0);
    let seen = 0;
    let truncated = false;
    // A peer that waits for an answer to what is kept back would wait for ever.
    let flush: NodeJS.Timeout | null = null;
    const harm = this.#harm?.direction === direction ? this.#harm : null;
    from.on('data', (chunk) => {
      if (flush !== null) clearTimeout(flush);
      if (this.#held || truncated) return;
      if (harm === null || this.struck) {
        if (!to.write(chunk)) {
          from.pause();
          to.once('drain', () => from.resume());
        }
        return;
      }
      // The tail of what came before is kept back, so that a marker across two chunks is still whole when it is found.
      let bytes = Buffer.concat([tail, chunk]);
      tail = Buffer.alloc(0);
      let at = -1;
      for (let next = bytes.indexOf(harm.marker); next >= 0; next = bytes.indexOf(harm.marker, next + 1)) {
        seen += 1;
        if (seen < harm.occurrence) continue;
        at = next;
        break;
      }
      if (at < 0) {
        const keep = partOfMarker(bytes, harm.marker);
        to.write(bytes.subarray(0, bytes.length - keep));
        tail = bytes.subarray(bytes.length - keep);
        flush = setTimeout(() => {
          to.write(tail);
          tail = Buffer.alloc(0);
        }, 20);
        return;
      }
      this.struck = true;
      const fate = harm.strike(this);
      if (fate === 'hold') {
        to.write(bytes.subarray(0, at));
        this.#held = true;
        return;
      }
      if (fate === 'truncate') {
        to.end(bytes.subarray(0, at));
        truncated = true;
        return;
      }
      if (fate === 'flip') {
        bytes = Buffer.from(bytes);
        bytes[at + harm.marker.length - 1]! ^= 0x20;
      }
      to.write(bytes);
    });
    from.on('end', () => {
      if (!this.#held && !truncated) to.end(tail);
    });
    from.on('error', () => to.destroy());
    from.on('close', () => {
      if (!this.#held && !truncated) to.destroy();
    });
  }

  cut(): void {
    for (const socket of this.#sockets) socket.destroy();
  }
  close(): void {
    this.cut();
  }
}

/** How many bytes at the end of `bytes` may be the beginning of `marker`. */
function partOfMarker(bytes: Buffer, marker: Uint8Array): number {
  for (let length = Math.min(marker.length - 1, bytes.length); length > 0; length -= 1)
    if (bytes.subarray(bytes.length - length).equals(marker.subarray(0, length))) return length;
  return 0;
}
