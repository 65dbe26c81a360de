// What a UART has sent, on its way to the console: bytes are handed over in runs, a line's end in the next turn of the event loop, what is no
// whole line after 5 ms. A guest writes byte by byte, and each run costs this process and all that read its console a wake-up.
// Called by serial.ts only. JS thread.

const CAPACITY = 4096;
const LINE_FEED = 0x0a;
/** Nobody sees it at a prompt, and a line of 100 characters is there by then. */
const PART_MS = 5;

export class SerialOutput {
  readonly #sink: (bytes: Uint8Array) => void;
  readonly #buffer = new Uint8Array(CAPACITY);
  readonly #flush = () => this.flush();
  #length = 0;
  #line: NodeJS.Immediate | null = null;
  #part: NodeJS.Timeout | null = null;

  constructor(sink: (bytes: Uint8Array) => void) {
    this.#sink = sink;
  }

  put(byte: number): void {
    this.#buffer[this.#length++] = byte;
    if (this.#length === CAPACITY) this.flush();
    else if (byte === LINE_FEED) this.#line ??= setImmediate(this.#flush);
    else this.#part ??= setTimeout(this.#flush, PART_MS);
  }

  flush(): void {
    if (this.#line !== null) clearImmediate(this.#line);
    if (this.#part !== null) clearTimeout(this.#part);
    this.#line = this.#part = null;
    if (this.#length === 0) return;
    const bytes = this.#buffer.slice(0, this.#length);
    this.#length = 0;
    this.#sink(bytes);
  }
}
