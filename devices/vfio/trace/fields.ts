// How one field, and one struct of fields, of an ioctl argument is read into a plain value for a trace. Used by the tables
// device-requests.ts, container-requests.ts and iommufd-requests.ts. Pure; little-endian, as every host of ours is.
// A number that a reader would compare with a size or an address is shown as hex text, since JSON has no 64-bit numbers either.

export type Value = number | string | readonly Value[] | { readonly [name: string]: Value };
export type Values = { readonly [name: string]: Value };

export interface Field {
  readonly bytes: number;
  read(view: DataView, at: number): Value;
}

const hex = (value: bigint | number) => `0x${value.toString(16)}`;

export const u8: Field = { bytes: 1, read: (view, at) => view.getUint8(at) };
export const u16: Field = { bytes: 2, read: (view, at) => view.getUint16(at, true) };
export const u32: Field = { bytes: 4, read: (view, at) => view.getUint32(at, true) };
export const s32: Field = { bytes: 4, read: (view, at) => view.getInt32(at, true) };
export const x32: Field = { bytes: 4, read: (view, at) => hex(view.getUint32(at, true)) };
export const x64: Field = { bytes: 8, read: (view, at) => hex(view.getBigUint64(at, true)) };

/** Names joined by '|'; bits without a name follow as hex. `mask` bits are left out (they hold something else). */
export function flags(names: Readonly<Record<string, number>>, bytes: 4 | 8 = 4, mask = 0): Field {
  return {
    bytes,
    read(view, at) {
      let left = bytes === 4 ? BigInt(view.getUint32(at, true)) : view.getBigUint64(at, true);
      left &= ~BigInt(mask);
      const found: string[] = [];
      for (const [name, bit] of Object.entries(names)) {
        if ((left & BigInt(bit)) === 0n) continue;
        found.push(name);
        left &= ~BigInt(bit);
      }
      if (left !== 0n) found.push(hex(left));
      return found.length === 0 ? '0' : found.join('|');
    },
  };
}

/** One of several words; a number that has none is shown as it is. */
export function oneOf(words: Readonly<Record<string, number>>, field: Field = u32): Field {
  return { bytes: field.bytes, read: (view, at) => wordFor(words, field.read(view, at)) };
}

export function wordFor(words: Readonly<Record<string, number>>, value: Value): Value {
  return Object.entries(words).find(([, number]) => number === value)?.[0] ?? value;
}

type Layout = { readonly size: number } & { readonly [field: string]: number | object };
type FieldsOf<L> = { readonly [K in Exclude<keyof L, 'size'>]?: Field };

export interface Struct {
  readonly size: number;
  readonly fields: readonly { readonly name: string; readonly at: number; readonly field: Field }[];
  /** What follows the fixed part: arrays, capabilities. `base`: where the struct starts. */
  readonly tail: ((view: DataView, base: number) => Values) | null;
}

/** `layout`: of native/abi. A field that is left out there is not shown; `size_at` is shown under its own name, size. */
export function struct<L extends Layout>(layout: L, fields: FieldsOf<L>, tail: Struct['tail'] = null): Struct {
  const placed = Object.entries(fields as Record<string, Field>).map(([name, field]) => ({
    name: name === 'size_at' ? 'size' : name,
    at: layout[name] as number,
    field,
  }));
  return { size: layout.size, fields: placed, tail };
}

/** Fields that the buffer does not reach are left out: a short argument is shown as far as it goes. */
export function readStruct(shape: Struct, view: DataView, base = 0): Values {
  const values: Record<string, Value> = {};
  for (const { name, at, field } of shape.fields) {
    if (base + at + field.bytes <= view.byteLength) values[name] = field.read(view, base + at);
  }
  return shape.tail === null ? values : { ...values, ...shape.tail(view, base) };
}

/** `count` structs (or fields) one after the other, as far as the buffer goes. */
export function listOf(element: Struct | Field, view: DataView, at: number, count: number): Value[] {
  const size = 'size' in element ? element.size : element.bytes;
  const fits = Math.max(0, Math.min(count, Math.floor((view.byteLength - at) / size)));
  return Array.from({ length: fits }, (_, i) => {
    const start = at + i * size;
    return 'size' in element ? readStruct(element, view, start) : element.read(view, start);
  });
}

export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
