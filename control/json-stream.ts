// Cuts QMP's input into JSON values: no newline needed, values may be split or concatenated, single-quoted strings are strings, byte 0xff
// resets (QEMU docs/interop/qmp-spec). Called by qmp-session.ts with the bytes of one client. Bad input yields an error item, never throws.
import { parseJson } from './json-value.ts';

export type JsonItem = { readonly value: unknown } | { readonly error: string };

const MAX_NESTING = 1024;
/** Bytes of one value; a client that sends more without closing its object is refused. */
const MAX_BYTES = 1 << 20;

const OPEN = new Set(['{', '[']);
const CLOSE = new Set(['}', ']']);

export class JsonStream {
  #text = '';
  #depth = 0;
  #quote: string | null = null;
  #escaped = false;
  readonly #decoder = new TextDecoder('utf-8');

  /** Items completed by these bytes, in order. */
  push(bytes: Uint8Array): JsonItem[] {
    const items: JsonItem[] = [];
    let start = 0;
    for (;;) {
      const reset = bytes.indexOf(0xff, start);
      const end = reset === -1 ? bytes.length : reset;
      for (const char of this.#decoder.decode(bytes.subarray(start, end), { stream: reset === -1 }))
        this.#take(char, items);
      if (reset === -1) return items;
      this.#clear();
      items.push({ error: 'JSON parse error, expecting value' });
      start = reset + 1;
    }
  }

  #take(char: string, items: JsonItem[]): void {
    if (this.#text === '' && /\s/.test(char)) return;
    this.#text += char;
    if (this.#text.length > MAX_BYTES || this.#depth > MAX_NESTING) {
      this.#clear();
      items.push({ error: 'JSON parse error, value too large or nested too deeply' });
      return;
    }
    if (this.#quote !== null) this.#inString(char);
    else if (char === '"' || char === "'") this.#quote = char;
    else if (OPEN.has(char)) this.#depth++;
    else if (CLOSE.has(char)) this.#depth--;
    if (this.#quote === null && this.#complete(char)) this.#finish(items);
  }

  #inString(char: string): void {
    if (this.#escaped) this.#escaped = false;
    else if (char === '\\') this.#escaped = true;
    else if (char === this.#quote) this.#quote = null;
  }

  /** Objects and arrays end with their bracket; a bare word or number outside of one is no QMP and ends with white space. */
  #complete(char: string): boolean {
    if (this.#depth > 0) return false;
    const opener = this.#text[0] ?? '';
    return OPEN.has(opener) || CLOSE.has(char) || opener === '"' || opener === "'" || /\s/.test(char);
  }

  #finish(items: JsonItem[]): void {
    const text = this.#text;
    this.#clear();
    items.push(parseJson(text));
  }

  #clear(): void {
    this.#text = '';
    this.#depth = 0;
    this.#quote = null;
    this.#escaped = false;
  }
}
