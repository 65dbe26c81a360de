// The frames between the lab's client and the agent in a lab host: u8 type, u32 big-endian length, payload. One connection is one command.
// Called by lab/client.ts (outer host) and lab/agent.ts (lab host). No half-close: a half-closed client could not be seen dying.

export const FRAME = {
  /** agent -> client: the first frame, at once. Until it has come nothing was run. */
  hello: 0,
  stdout: 1,
  stderr: 2,
  /** JSON ExitStatus; the last frame. */
  exit: 3,
  /** u32: so many bytes of stdin have been taken by the command. */
  credit: 4,
  /** client -> agent: JSON CommandRequest; the client's first frame. */
  request: 10,
  stdin: 11,
  stdinEnd: 12,
  /** A signal's name, for the command's process group. */
  signal: 13,
} as const;

/** The client keeps at most this many bytes of stdin on the way. */
export const STDIN_WINDOW = 1 << 20;
const MAX_FRAME = 16 << 20;
const HEADER = 5;

export interface CommandRequest {
  readonly secret: string;
  /** A program and its arguments, or a line for bash. */
  readonly argv: readonly string[] | null;
  readonly command: string | null;
  readonly cwd: string;
  readonly env: Readonly<Record<string, string>>;
}

export interface ExitStatus {
  readonly code: number | null;
  readonly signal: string | null;
  /** Why the command could not be run at all. */
  readonly error: string | null;
}

export function frame(type: number, payload: Uint8Array | string): Buffer {
  const body = typeof payload === 'string' ? Buffer.from(payload) : payload;
  const out = Buffer.allocUnsafe(HEADER + body.length);
  out[0] = type;
  out.writeUInt32BE(body.length, 1);
  out.set(body, HEADER);
  return out;
}

/** Cuts a byte stream into frames. */
export class FrameReader {
  #chunks: Buffer[] = [];
  #length = 0;

  /** Takes what arrived; calls `each` for every complete frame. Throws on a frame that is too long to be one of ours. */
  push(chunk: Buffer, each: (type: number, payload: Buffer) => void): void {
    this.#chunks.push(chunk);
    this.#length += chunk.length;
    while (this.#length >= HEADER) {
      const first = this.#first(HEADER);
      const length = first.readUInt32BE(1);
      if (length > MAX_FRAME) throw new Error(`a frame of ${length} bytes`);
      if (this.#length < HEADER + length) return;
      const whole = this.#first(HEADER + length);
      const rest = whole.subarray(HEADER + length);
      this.#chunks[0] = rest;
      this.#length -= HEADER + length;
      if (rest.length === 0) this.#chunks.shift();
      each(whole[0]!, whole.subarray(HEADER, HEADER + length));
    }
  }

  /** The first chunk, grown to at least `n` bytes; the caller knows that they are there. */
  #first(n: number): Buffer {
    if (this.#chunks[0]!.length < n) this.#chunks = [Buffer.concat(this.#chunks)];
    return this.#chunks[0]!;
  }
}
