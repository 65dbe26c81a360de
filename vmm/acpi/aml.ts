// A tiny assembler for ACPI Machine Language: each function returns the bytes of one construct, so that dsdt.ts reads like ASL.
// Called by dsdt.ts only. Spec: ACPI 6.4, chapter 20 (AML) and 6.4 (resource data types).

export type Aml = readonly number[];

const le = (value: number, bytes: number): number[] =>
  Array.from({ length: bytes }, (_, i) => Math.floor(value / 256 ** i) % 256);

/** NamePath of one or more four-letter segments, e.g. '\\_SB_.PCI0'. 20.2.2 */
function nameString(path: string): number[] {
  const rooted = path.startsWith('\\');
  const segments = (rooted ? path.slice(1) : path).split('.').filter((s) => s !== '');
  const letters = segments.flatMap((s) => [...s.padEnd(4, '_')].map((c) => c.charCodeAt(0)));
  const prefix =
    segments.length === 0
      ? [0x00]
      : segments.length === 1
        ? []
        : segments.length === 2
          ? [0x2e]
          : [0x2f, segments.length];
  return [...(rooted ? [0x5c] : []), ...prefix, ...letters];
}

/** PkgLength counts itself, in 1 to 4 bytes. 20.2.4 */
function packaged(body: Aml): number[] {
  for (let extra = 0; extra < 4; extra++) {
    const total = body.length + 1 + extra;
    if (extra === 0 && total < 0x40) return [total, ...body];
    if (extra > 0 && total < 2 ** (4 + 8 * extra))
      return [(extra << 6) | (total & 0xf), ...le(Math.floor(total / 16), extra), ...body];
  }
  throw new RangeError(`AML package of ${body.length} bytes`);
}

export function integer(value: number): Aml {
  if (value === 0) return [0x00];
  if (value === 1) return [0x01];
  if (value < 0x100) return [0x0a, value];
  if (value < 0x1_0000) return [0x0b, ...le(value, 2)];
  return value < 0x1_0000_0000 ? [0x0c, ...le(value, 4)] : [0x0e, ...le(value, 8)];
}

export function string(text: string): Aml {
  return [0x0d, ...new TextEncoder().encode(text), 0];
}

/** EISAID("PNP0A08"): three letters of five bits, four hex digits, big-endian. 6.1.5 */
export function eisaId(id: string): Aml {
  const letter = (i: number): number => id.charCodeAt(i) - 0x40;
  const vendor = (letter(0) << 10) | (letter(1) << 5) | letter(2);
  const product = Number.parseInt(id.slice(3), 16);
  return [0x0c, vendor >> 8, vendor & 0xff, product >> 8, product & 0xff];
}

export const name = (path: string, value: Aml): Aml => [0x08, ...nameString(path), ...value];
export const scope = (path: string, ...body: Aml[]): Aml => [0x10, ...packaged([...nameString(path), ...body.flat()])];
export const device = (path: string, ...body: Aml[]): Aml => [
  0x5b,
  0x82,
  ...packaged([...nameString(path), ...body.flat()]),
];
export const list = (...elements: Aml[]): Aml => [0x12, ...packaged([elements.length, ...elements.flat()])];

function buffer(bytes: Aml): Aml {
  return [0x11, ...packaged([...integer(bytes.length), ...bytes])];
}

/** Resource descriptors with their end tag; a checksum of zero means "not checked". 6.4.2.9 */
export const resources = (...descriptors: Aml[]): Aml => buffer([...descriptors.flat(), 0x79, 0x00]);

/** Decodes 16 address bits. 6.4.2.5 */
export const ioPorts = (base: number, length: number): Aml => [
  0x47,
  0x01,
  ...le(base, 2),
  ...le(base, 2),
  0x01,
  length,
];
/** Edge, active high. 6.4.2.1 */
export const isaIrq = (irq: number): Aml => [0x22, ...le(1 << irq, 2)];

const MEMORY = 0;
const IO = 1;
const BUS = 2;
/** Minimum and maximum are fixed, decoded positively, produced for the children. 6.4.3.5 */
const FIXED_PRODUCER = 0x0c;
const MEMORY_READ_WRITE = 0x01;
const IO_ENTIRE_RANGE = 0x03;

function addressSpace(
  tag: number,
  width: 2 | 4 | 8,
  kind: { type: number; flags: number },
  range: { start: number; end: number },
): Aml {
  const fields = [0, range.start, range.end - 1, 0, range.end - range.start].flatMap((v) => le(v, width));
  return [tag, ...le(3 + fields.length, 2), kind.type, FIXED_PRODUCER, kind.flags, ...fields];
}

export interface Span {
  readonly start: number;
  /** First address after it. */
  readonly end: number;
}
export const busNumbers = (range: Span): Aml => addressSpace(0x88, 2, { type: BUS, flags: 0 }, range);
export const ioWindow = (range: Span): Aml => addressSpace(0x88, 2, { type: IO, flags: IO_ENTIRE_RANGE }, range);
export const memoryWindow32 = (range: Span): Aml =>
  addressSpace(0x87, 4, { type: MEMORY, flags: MEMORY_READ_WRITE }, range);
export const memoryWindow64 = (range: Span): Aml =>
  addressSpace(0x8a, 8, { type: MEMORY, flags: MEMORY_READ_WRITE }, range);
