// How a state becomes bytes in a section and back: one length-prefixed msgpackr buffer, plain data only, its size capped. What comes from
// a peer is checked to be plain before anyone sees it. Called by source, destination and the sections; docs/stream.md, "States".
import { Packr } from 'msgpackr';
import { StreamError } from '../../native/errno.ts';

/** A cap per section: the largest honest state (16 vCPUs with xsave areas) is some 200 KiB. */
export const PACKED_MAX = 8 << 20;
const DEPTH_MAX = 32;

/** useRecords: false keeps every buffer readable by itself (any msgpack library); Map and Set are no plain data. */
const packr = new Packr({ useRecords: false, moreTypes: false });

export function packState(what: string, state: unknown): Uint8Array {
  assertPlain(what, state, 0);
  const bytes = new Uint8Array(packr.pack(state));
  if (bytes.length > PACKED_MAX)
    throw new StreamError(`${what} takes ${bytes.length} bytes; the stream allows ${PACKED_MAX}`);
  return bytes;
}

export function unpackState(what: string, bytes: Uint8Array): unknown {
  let state: unknown;
  try {
    state = packr.unpack(bytes);
  } catch (cause) {
    throw new StreamError(`${what} cannot be decoded`, { cause });
  }
  assertPlain(what, state, 0);
  return state;
}

/** Throws StreamError unless it is null, a boolean, number, bigint, string, Uint8Array, or an array or record of these. */
function assertPlain(what: string, value: unknown, depth: number): void {
  if (depth > DEPTH_MAX) throw new StreamError(`${what} is nested more than ${DEPTH_MAX} deep`);
  if (value === null) return;
  switch (typeof value) {
    case 'boolean':
    case 'number':
    case 'bigint':
    case 'string':
      return;
    case 'object':
      break;
    default:
      throw new StreamError(`${what} holds a ${typeof value}, which is no plain data`);
  }
  if (value instanceof Uint8Array) return;
  if (Array.isArray(value)) {
    for (const item of value) assertPlain(what, item, depth + 1);
    return;
  }
  const prototype: unknown = Object.getPrototypeOf(value);
  if (prototype !== Object.prototype && prototype !== null)
    throw new StreamError(`${what} holds an object that is no plain record`);
  for (const item of Object.values(value)) assertPlain(what, item, depth + 1);
}
