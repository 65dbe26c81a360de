// One JSON value in QMP's dialect: double- or single-quoted strings, duplicate keys refused. Called by json-stream.ts.
// JSON.parse would drop duplicate keys silently and refuse single quotes (both are in QEMU's own tests).
import type { JsonItem } from './json-stream.ts';

class BadJson extends Error {}

export function parseJson(text: string): JsonItem {
  try {
    const cursor = new Cursor(text);
    const value = cursor.value();
    cursor.space();
    if (!cursor.atEnd()) throw new BadJson('JSON parse error, expecting value');
    return { value };
  } catch (error) {
    if (error instanceof BadJson) return { error: error.message };
    throw error;
  }
}

const ESCAPES: Readonly<Record<string, string>> = {
  b: '\b',
  f: '\f',
  n: '\n',
  r: '\r',
  t: '\t',
  '"': '"',
  "'": "'",
  '/': '/',
  '\\': '\\',
};
const WORDS = new Map<string, unknown>([
  ['true', true],
  ['false', false],
  ['null', null],
]);
const SCALAR = /[-+.\w]+/y;
const NUMBER = /^-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?$/;

class Cursor {
  readonly #text: string;
  #at = 0;
  constructor(text: string) {
    this.#text = text;
  }

  atEnd(): boolean {
    return this.#at >= this.#text.length;
  }

  space(): void {
    while (!this.atEnd() && /\s/.test(this.#text[this.#at] ?? '')) this.#at++;
  }

  value(): unknown {
    this.space();
    const char = this.#text[this.#at];
    if (char === '{') return this.#object();
    if (char === '[') return this.#array();
    if (char === '"' || char === "'") return this.#string();
    return this.#scalar();
  }

  #expect(char: string, what: string): void {
    this.space();
    if (this.#text[this.#at] !== char) throw new BadJson(`JSON parse error, ${what}`);
    this.#at++;
  }

  #ended(close: string, first: boolean): boolean {
    this.space();
    if (this.#text[this.#at] === close) {
      this.#at++;
      return true;
    }
    if (!first) this.#expect(',', 'expected separator');
    return false;
  }

  #object(): Record<string, unknown> {
    const result: Record<string, unknown> = Object.create(null);
    this.#at++;
    for (let first = true; !this.#ended('}', first); first = false) {
      this.space();
      const quote = this.#text[this.#at];
      if (quote !== '"' && quote !== "'") throw new BadJson('JSON parse error, key is not a string in object');
      const key = this.#string();
      this.#expect(':', 'missing : in object pair');
      if (key in result) throw new BadJson('JSON parse error, duplicate key');
      result[key] = this.value();
    }
    return result;
  }

  #array(): unknown[] {
    const result: unknown[] = [];
    this.#at++;
    for (let first = true; !this.#ended(']', first); first = false) result.push(this.value());
    return result;
  }

  #string(): string {
    const quote = this.#text[this.#at++];
    let result = '';
    for (;;) {
      const char = this.#text[this.#at++];
      if (char === undefined) throw new BadJson('JSON parse error, unterminated string');
      if (char === quote) return result;
      result += char === '\\' ? this.#escape() : char;
    }
  }

  #escape(): string {
    const char = this.#text[this.#at++] ?? '';
    if (char === 'u') {
      const hex = this.#text.slice(this.#at, this.#at + 4);
      if (!/^[0-9a-fA-F]{4}$/.test(hex)) throw new BadJson('JSON parse error, invalid hex escape in string');
      this.#at += 4;
      return String.fromCharCode(Number.parseInt(hex, 16));
    }
    const escaped = ESCAPES[char];
    if (escaped === undefined) throw new BadJson('JSON parse error, invalid escape in string');
    return escaped;
  }

  #scalar(): unknown {
    SCALAR.lastIndex = this.#at;
    const word = SCALAR.exec(this.#text)?.[0] ?? '';
    this.#at += word.length;
    if (WORDS.has(word)) return WORDS.get(word);
    if (NUMBER.test(word)) return Number(word);
    throw new BadJson('JSON parse error, expecting value');
  }
}
