// QEMU's option syntax, `word,key=value,...` or a JSON object, as keys and values that nobody has judged yet. Called by device-syntax.ts and
// object-syntax.ts; pure. Every refusal is one VmmError line in QEMU's words where it has some (facts: qemu-compat, section D).
import { VmmError } from '../native/errno.ts';

export type KeyValues = Map<string, string | number | boolean>;

export interface KeyValueSyntax {
  /** For messages: --device. */
  readonly option: string;
  /** The key that the first word stands for: driver. */
  readonly first: string;
  /** Of the errors. */
  readonly code: string;
}

export function parseKeyValues(text: string, syntax: KeyValueSyntax): KeyValues {
  return text.trimStart().startsWith('{') ? parseJson(text, syntax) : parsePairs(text, syntax);
}

/** A comma in a value is written twice; a word without '=' is the first key's value (in front) or a switch that is on. */
function parsePairs(text: string, syntax: KeyValueSyntax): KeyValues {
  const { option, first, code } = syntax;
  const raw: KeyValues = new Map();
  const parts = text.split(/(?<!,),(?!,)/).map((part) => part.replaceAll(',,', ','));
  for (const [index, part] of parts.entries()) {
    const equals = part.indexOf('=');
    const key = equals < 0 ? (index === 0 ? first : part) : part.slice(0, equals);
    const value = equals < 0 ? (index === 0 ? part : true) : part.slice(equals + 1);
    if (key === '') throw new VmmError(code, `${option} ${text}: a part is empty; write ${first},key=value,...`);
    put(raw, { key, value, text }, syntax);
  }
  return raw;
}

function parseJson(text: string, syntax: KeyValueSyntax): KeyValues {
  const { option, first, code } = syntax;
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new VmmError(code, `${option} ${text}: this is not JSON; write {"${first}": "...", "key": value}`, {
      cause,
    });
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new VmmError(code, `${option} ${text}: this is no JSON object; write {"${first}": "...", "key": value}`);
  }
  const raw: KeyValues = new Map();
  for (const [key, member] of Object.entries(value)) {
    if (typeof member !== 'string' && typeof member !== 'number' && typeof member !== 'boolean') {
      throw new VmmError(code, `${option}: Parameter '${key}' must be a string, a number or a boolean`);
    }
    put(raw, { key, value: member, text }, syntax);
  }
  return raw;
}

interface Part {
  readonly key: string;
  readonly value: string | number | boolean;
  readonly text: string;
}

function put(raw: KeyValues, { key, value, text }: Part, { option, code }: KeyValueSyntax): void {
  if (raw.has(key)) throw new VmmError(code, `${option} ${text}: '${key}' is given twice; leave one`);
  raw.set(key, value);
}
