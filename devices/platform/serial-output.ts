// What a UART has sent, on its way to the console: bytes are handed over in runs, at the latest in the next turn of the event loop.
// Called by serial.ts only. JS thread.

const CAPACITY = 4096;

export class SerialOutput {
  readonly #sink: (bytes: Uint8Array) => void;
  readonly #buffer = new Uint8Array(CAPACITY);
  readonly #flush = () => this.flush();
  #length = 0;
  #scheduled: NodeJS.Immediate | null = null;

  constructor(sink: (bytes: Uint8Array) => void) {
    this.#sink = sink;
  }

  put(byte: number): void {
    this.#buffer[this.#length++] = byte;
    if (this.#length === CAPACITY) this.flush();
    else this.#scheduled ??= setImmediate(this.#flush);
  }

  flush(): void {
    if (this.#scheduled !== null) clearImmediate(this.#scheduled);
    this.#scheduled = null;
    if (this.#length === 0) return;
    const bytes = this.#buffer.slice(0, this.#length);
    this.#length = 0;
    this.#sink(bytes);
  }
}
