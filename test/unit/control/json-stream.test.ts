// Rule: QMP input is a stream of JSON values, not of lines (qemu-compat.md D, framing).
import { describe, expect, it } from 'vitest';
import { JsonStream } from '../../../control/json-stream.ts';

const bytes = (text: string) => Buffer.from(text);

describe('JsonStream', () => {
  it('needs no newline and takes concatenated and split values', () => {
    const stream = new JsonStream();
    expect(stream.push(bytes('{"a":1}{"b":[2,'))).toEqual([{ value: { a: 1 } }]);
    expect(stream.push(bytes('3]}'))).toEqual([{ value: { b: [2, 3] } }]);
  });

  it('takes single-quoted strings and escapes', () => {
    expect(new JsonStream().push(bytes("{'a':'x\\'y\\u0041}'}"))).toEqual([{ value: { a: "x'yA}" } }]);
  });

  it('refuses duplicate keys with QEMU’s words', () => {
    expect(new JsonStream().push(bytes('{"a":1,"a":2}'))).toEqual([{ error: 'JSON parse error, duplicate key' }]);
  });

  it('goes on after bad input', () => {
    const items = new JsonStream().push(bytes('{"a":tru} {"b":2}'));
    expect(items).toEqual([{ error: 'JSON parse error, expecting value' }, { value: { b: 2 } }]);
  });

  it('byte 0xff resets the parser', () => {
    const stream = new JsonStream();
    const items = stream.push(Buffer.concat([bytes('{"a":'), Buffer.from([0xff]), bytes('{"b":2}')]));
    expect(items).toEqual([{ error: 'JSON parse error, expecting value' }, { value: { b: 2 } }]);
  });

  it('agrees with JSON.parse on random values, cut at random places', () => {
    const seed = 7;
    let state = seed;
    const next = (n: number) => {
      state = (state * 1103515245 + 12345) & 0x7fffffff;
      return state % n;
    };
    const make = (depth: number): unknown => {
      const kind = next(depth > 3 ? 4 : 6);
      if (kind === 0) return next(1000) - 500;
      if (kind === 1) return next(2) === 0;
      if (kind === 2) return null;
      if (kind === 3) return `s\\"'{}[]\n${next(100)}`;
      if (kind === 4) return Array.from({ length: next(4) }, () => make(depth + 1));
      return Object.fromEntries(Array.from({ length: next(4) }, (_, i) => [`k${i}`, make(depth + 1)]));
    };
    for (let round = 0; round < 300; round++) {
      const value = { v: make(0) };
      const text = bytes(JSON.stringify(value));
      const cut = next(text.length);
      const stream = new JsonStream();
      const items = [...stream.push(text.subarray(0, cut)), ...stream.push(text.subarray(cut))];
      expect(items, `seed ${seed} round ${round}`).toEqual([{ value }]);
    }
  });

  it('refuses endless nesting instead of overflowing the stack', () => {
    const items = new JsonStream().push(bytes('['.repeat(3000)));
    expect(items.length).toBeGreaterThan(0);
    expect(items.every((item) => 'error' in item)).toBe(true);
  });
});
