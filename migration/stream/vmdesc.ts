// The description of the stream that QEMU puts behind EOF and scripts/analyze-migration.py walks the sections by. Filled by writer.ts.
// qemu-compat A7: it must be the last thing, hold no NUL, stay under 10 MiB, and no byte of the length before it may be 0x7b ('{').

export interface DescribedField {
  readonly name: string;
  readonly type: 'uint32' | 'buffer';
  readonly size: number;
}

export class VmDescription {
  readonly #devices: object[] = [];

  add(name: string, version: number, fields: readonly DescribedField[]): void {
    this.#devices.push({ name, instance_id: 0, vmsd_name: name, version, fields });
  }

  /** The JSON text, padded with blanks until its length may stand before it. */
  encode(): Uint8Array {
    const text = new TextEncoder().encode(JSON.stringify({ page_size: 4096, devices: this.#devices }));
    const length = paddedLength(text.length);
    const padded = new Uint8Array(length).fill(0x20);
    padded.set(text);
    return padded;
  }
}

/** The smallest length >= `length` none of whose four bytes is '{': the script looks for the first one behind the last NUL. */
export function paddedLength(length: number): number {
  let padded = length;
  while ([0, 8, 16, 24].some((shift) => ((padded >>> shift) & 0xff) === 0x7b)) padded += 1;
  return padded;
}
