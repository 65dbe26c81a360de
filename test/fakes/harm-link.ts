// A link that does harm on command: relays one connection, looks for a marker in the stream or on the way back, and there holds, changes or
// ends it. Nothing of the product is changed for it. Used by test/kvm/migration-faults.test.ts and, in a lab host, by programs/harm-link.ts.
import { createConnection, createServer, type Socket } from 'node:net';

export interface Harm {
  /** Bytes to look for, in the stream or on the return path, and which occurrence of them. */
  readonly marker: Uint8Array;
  readonly direction: 'forward' | 'back';
  readonly occurrence: number;
  /** How many bytes behind the marker; absent: at the marker itself. */
  readonly after?: number;
  /** Called once, when that place is about to pass; what it returns becomes of it. */
  readonly strike: (link: Link) => Fate;
}

/** hold: nothing more passes either way, not even an end; stall: no more bytes this way, but an end passes; flip: one bit changes;
 *  truncate: the reader sees the end while the other direction stays open. */
export type Fate = 'hold' | 'stall' | 'flip' | 'truncate';

/** As node:net has it: a path, or a port. */
export type Address = string | { readonly host: string; readonly port: number };

/** One connection relayed between `path` and `target`. */
export class Link {
  readonly #sockets: Socket[] = [];
  readonly #harm: Harm | null;
  #held = false;
  struck = false;

  private constructor(harm: Harm | null) {
    this.#harm = harm;
  }

  static async open(near: Address, target: Address, harm: Harm | null): Promise<Link> {
    const link = new Link(harm);
    const server = createServer((source) => {
      server.close();
      const destination = connectTo(target);
      link.#sockets.push(source, destination);
      link.#relay(source, destination, 'forward');
      link.#relay(destination, source, 'back');
    });
    await new Promise<void>((resolve) => server.listen(typeof near === 'string' ? { path: near } : near, resolve));
    return link;
  }

  #relay(from: Socket, to: Socket, direction: Harm['direction']): void {
    const harm = this.#harm?.direction === direction ? this.#harm : null;
    const search = harm === null ? null : new Search(harm);
    let stopped = false;
    let cutOff = false;
    // A peer that waits for an answer to what is kept back would wait for ever.
    let flush: NodeJS.Timeout | null = null;
    from.on('data', (chunk) => {
      if (flush !== null) clearTimeout(flush);
      if (this.#held || stopped) return;
      if (harm === null || search === null || this.struck) return pass(from, to, chunk);
      const { bytes, at } = search.look(chunk);
      if (at === null) {
        to.write(bytes);
        flush = setTimeout(() => to.write(search.rest()), 20);
        return;
      }
      this.struck = true;
      const fate = harm.strike(this);
      const before = bytes.subarray(0, at);
      if (fate === 'flip') to.write(flipped(bytes, harm.after === undefined ? at + harm.marker.length - 1 : at));
      else if (fate === 'truncate') to.end(before);
      else to.write(before);
      this.#held = fate === 'hold';
      stopped = fate === 'stall' || fate === 'truncate';
      cutOff = fate === 'truncate';
    });
    from.on('end', () => {
      if (this.#held || stopped) return;
      const rest = search?.rest();
      if (rest === undefined) to.end();
      else to.end(rest);
    });
    from.on('error', () => undefined);
    from.on('close', () => {
      if (!this.#held && !cutOff) to.destroy();
    });
  }

  cut(): void {
    for (const socket of this.#sockets) socket.destroy();
  }
  close(): void {
    this.cut();
  }
}

/** Looks for the place in what passes. */
class Search {
  readonly #harm: Harm;
  /** What came before and may be the beginning of the marker: kept back, so that a marker across two chunks is whole when it is found. */
  #tail = Buffer.alloc(0);
  #seen = 0;
  /** Bytes to go when the marker has been found. */
  #toGo: number | null = null;

  constructor(harm: Harm) {
    this.#harm = harm;
  }

  /** What may pass, and where in it the place is; null: not in it. */
  look(chunk: Buffer): { readonly bytes: Buffer; readonly at: number | null } {
    const bytes = Buffer.concat([this.#tail, chunk]);
    this.#tail = Buffer.alloc(0);
    this.#toGo ??= this.#find(bytes);
    if (this.#toGo !== null && this.#toGo < bytes.length) return { bytes, at: this.#toGo };
    if (this.#toGo !== null) {
      this.#toGo -= bytes.length;
      return { bytes, at: null };
    }
    const passing = bytes.length - partOfMarker(bytes, this.#harm.marker);
    this.#tail = bytes.subarray(passing);
    return { bytes: bytes.subarray(0, passing), at: null };
  }

  rest(): Buffer {
    const rest = this.#tail;
    this.#tail = Buffer.alloc(0);
    return rest;
  }

  #find(bytes: Buffer): number | null {
    const { marker, occurrence, after } = this.#harm;
    for (let at = bytes.indexOf(marker); at >= 0; at = bytes.indexOf(marker, at + 1)) {
      this.#seen += 1;
      if (this.#seen >= occurrence) return after === undefined ? at : at + marker.length + after;
    }
    return null;
  }
}

function pass(from: Socket, to: Socket, chunk: Buffer): void {
  if (to.write(chunk)) return;
  from.pause();
  to.once('drain', () => from.resume());
}

function flipped(bytes: Buffer, at: number): Buffer {
  const changed = Buffer.from(bytes);
  changed[at]! ^= 0x20;
  return changed;
}

function connectTo(target: Address): Socket {
  return typeof target === 'string' ? createConnection(target) : createConnection(target);
}

/** How many bytes at the end of `bytes` may be the beginning of `marker`. */
function partOfMarker(bytes: Buffer, marker: Uint8Array): number {
  for (let length = Math.min(marker.length - 1, bytes.length); length > 0; length -= 1)
    if (bytes.subarray(bytes.length - length).equals(marker.subarray(0, length))) return length;
  return 0;
}
