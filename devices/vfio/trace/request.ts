// What a row of the request tables is. The tables are data (device-requests.ts, container-requests.ts, iommufd-requests.ts); decode.ts reads
// them, pointers.ts gives the tracer of foreign programs what it has to read beyond the argument.
import type { Struct, Value, Values } from './fields.ts';

/** What an fd is, as far as it decides what an ioctl number means: 0x3b70 is one thing on a container and another on a device. */
export type FdKind = 'container' | 'group' | 'device' | 'data' | 'iommufd' | 'other';

/** Memory that the argument points to, and how long it is. `at`, `count`, ... are offsets in the argument. linux/vfio.h, linux/iommufd.h */
export interface Pointer {
  readonly at: number;
  readonly name: string;
  readonly length:
    | { readonly kind: 'count'; readonly count: number; readonly element: Struct }
    | { readonly kind: 'size32' | 'size64'; readonly size: number }
    /** A bit a page: length and page size are u64. */
    | { readonly kind: 'bitmap'; readonly bytes: number; readonly page: number };
  readonly when: 'before' | 'after';
  /** Bits of the argument's flags (at byte 4) that must all be set. */
  readonly flags: number;
}

export type Argument =
  | { readonly kind: 'none' }
  /** By value; words: names for it. */
  | { readonly kind: 'number'; readonly name: string; readonly words: Readonly<Record<string, number>> }
  /** Pointer to an int. */
  | { readonly kind: 'int'; readonly name: string }
  | { readonly kind: 'text'; readonly name: string }
  /** `given`: the fields that the caller fills in; the others are answers. `key`: those that tell one call from another. */
  | {
      readonly kind: 'struct';
      readonly struct: Struct;
      readonly given: readonly string[];
      readonly key: readonly string[];
    };

export interface Request {
  readonly name: string;
  readonly request: number;
  readonly argument: Argument;
  readonly pointers: readonly Pointer[];
  /** Where a new fd comes back: the call's result, or an offset in the argument. */
  readonly makes: 'result' | number | null;
}

/** A sub-feature of VFIO_DEVICE_FEATURE: its struct lies behind the 8-byte header. */
export interface Feature {
  readonly name: string;
  readonly feature: number;
  readonly struct: Struct | null;
  /** Fields that the caller fills in, with the flag (GET or SET) of this word; the other way all are answers. */
  readonly givenBy: 'get' | 'set';
  readonly given: readonly string[];
  readonly key: readonly string[];
  readonly pointers: readonly Pointer[];
  readonly makes: number | null;
}

type Extras = { readonly pointers?: readonly Pointer[]; readonly makes?: 'result' | number };

export function call(name: string, request: number, argument: Argument, extras: Extras = {}): Request {
  return { name, request, argument, pointers: extras.pointers ?? [], makes: extras.makes ?? null };
}

export function withStruct(struct: Struct, given: readonly string[], key: readonly string[] = []): Argument {
  return { kind: 'struct', struct, given, key };
}

export const NONE: Argument = { kind: 'none' };

/** "index=2" for the key of a call. */
export function keyText(values: Values, key: readonly string[]): string {
  return key
    .filter((name) => values[name] !== undefined)
    .map((name) => `${name}=${textOf(values[name] as Value)}`)
    .join(' ');
}

export function textOf(value: Value): string {
  return typeof value === 'object' ? JSON.stringify(value) : String(value);
}
