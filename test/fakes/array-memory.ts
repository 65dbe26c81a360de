// Guest memory out of plain ArrayBuffers, for tests of what writes into guest RAM: no addon, no KVM. The address map and the 1 GiB
// windows are the real ones; a window's buffer is made when it is first touched.
import type { GuestMemory, GuestRam } from '../../devices/contract.ts';
import { ramSpans } from '../../vmm/layout.ts';

const GIB = 2 ** 30;

export function arrayMemory(size: number): GuestMemory {
  const windows = new Map<number, ArrayBuffer>();
  const ram = {
    size,
    window(index: number): ArrayBuffer {
      const made = windows.get(index) ?? new ArrayBuffer(Math.min(GIB, size - index * GIB));
      windows.set(index, made);
      return made;
    },
  } as unknown as GuestRam;
  const ranges = ramSpans(size).map((s) => ({
    gpa: s.gpa,
    size: s.size,
    slice: { ram, offset: s.offset, size: s.size },
  }));
  const view = (gpa: number, length: number): Uint8Array | null => {
    const range = ranges.find((r) => gpa >= r.gpa && gpa + length <= r.gpa + r.size);
    if (range === undefined) return null;
    const offset = range.slice.offset + gpa - range.gpa;
    return new Uint8Array(ram.window(Math.floor(offset / GIB)), offset % GIB, length);
  };
  return {
    ranges,
    read(gpa, into) {
      const bytes = view(gpa, into.length);
      if (bytes !== null) into.set(bytes);
      return bytes !== null;
    },
    write(gpa, from) {
      const bytes = view(gpa, from.length);
      bytes?.set(from);
      return bytes !== null;
    },
  };
}
