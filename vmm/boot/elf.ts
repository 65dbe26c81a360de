// Reads ELF headers of kernels: which parts are loaded where, the entry, and Xen's PVH note. Called by kernel-image.ts on bytes from the
// file; nothing here trusts an offset. Specs: ELF gABI; Xen public/elfnote.h for XEN_ELFNOTE_PHYS32_ENTRY.

export interface ElfSegment {
  readonly offset: number;
  readonly paddr: number;
  readonly fileSize: number;
  readonly memSize: number;
}

export interface ElfImage {
  readonly bits: 32 | 64;
  readonly entry: number;
  readonly segments: readonly ElfSegment[];
  /** PT_NOTE segments' places in the file. */
  readonly notes: readonly { readonly offset: number; readonly size: number }[];
  /** Lowest and highest physical address that is loaded. */
  readonly low: number;
  readonly high: number;
}

const PT_LOAD = 1;
const PT_NOTE = 4;
const EM_386 = 3;
const EM_X86_64 = 62;
const XEN_ELFNOTE_PHYS32_ENTRY = 18;
/** More program headers than this is no kernel. */
const PHNUM_MAX = 128;

export function isElf(bytes: Uint8Array): boolean {
  return bytes.length >= 64 && bytes[0] === 0x7f && bytes[1] === 0x45 && bytes[2] === 0x4c && bytes[3] === 0x46;
}

interface ProgramHeader extends ElfSegment {
  readonly type: number;
}

function programHeader(view: DataView, at: number, bits: 32 | 64): ProgramHeader {
  if (bits === 32) {
    return {
      type: view.getUint32(at, true),
      offset: view.getUint32(at + 4, true),
      paddr: view.getUint32(at + 12, true),
      fileSize: view.getUint32(at + 16, true),
      memSize: view.getUint32(at + 20, true),
    };
  }
  return {
    type: view.getUint32(at, true),
    offset: Number(view.getBigUint64(at + 8, true)),
    paddr: Number(view.getBigUint64(at + 24, true)),
    fileSize: Number(view.getBigUint64(at + 32, true)),
    memSize: Number(view.getBigUint64(at + 40, true)),
  };
}

/** `head`: the first bytes of the file, with the program headers in them. A string says why it is not a bootable ELF file. */
export function parseElf(head: Uint8Array, fileSize: number): ElfImage | string {
  if (!isElf(head)) return 'not an ELF file';
  const view = new DataView(head.buffer, head.byteOffset, head.byteLength);
  const bits = head[4] === 1 ? 32 : 64;
  const machine = view.getUint16(18, true);
  if (head[5] !== 1 || (machine !== EM_386 && machine !== EM_X86_64)) return 'an ELF file, but not for x86';
  const entry = bits === 32 ? view.getUint32(24, true) : Number(view.getBigUint64(24, true));
  const phoff = bits === 32 ? view.getUint32(28, true) : Number(view.getBigUint64(32, true));
  const phentsize = view.getUint16(bits === 32 ? 42 : 54, true);
  const phnum = view.getUint16(bits === 32 ? 44 : 56, true);
  if (phentsize < (bits === 32 ? 32 : 56) || phnum === 0 || phnum > PHNUM_MAX)
    return 'an ELF file without program headers';
  if (phoff + phnum * phentsize > head.length) return 'an ELF file whose program headers lie outside it';
  const headers = Array.from({ length: phnum }, (_, i) => programHeader(view, phoff + i * phentsize, bits));
  const segments = headers.filter((h) => h.type === PT_LOAD && h.memSize > 0);
  if (segments.length === 0) return 'an ELF file with nothing to load';
  for (const s of [...segments, ...headers.filter((h) => h.type === PT_NOTE)]) {
    if (s.offset + s.fileSize > fileSize) return 'an ELF file that was cut short';
    if (s.memSize < s.fileSize || s.paddr + s.memSize > Number.MAX_SAFE_INTEGER)
      return 'an ELF file with an impossible segment';
  }
  return {
    bits,
    entry,
    segments,
    notes: headers.filter((h) => h.type === PT_NOTE).map((h) => ({ offset: h.offset, size: h.fileSize })),
    low: Math.min(...segments.map((s) => s.paddr)),
    high: Math.max(...segments.map((s) => s.paddr + s.memSize)),
  };
}

/** The 32-bit entry point that Xen's note names, or null. `notes`: the bytes of one PT_NOTE segment. */
export function pvhEntry(notes: Uint8Array): number | null {
  const view = new DataView(notes.buffer, notes.byteOffset, notes.byteLength);
  for (let at = 0; at + 12 <= notes.length; ) {
    const nameSize = view.getUint32(at, true);
    const descSize = view.getUint32(at + 4, true);
    const type = view.getUint32(at + 8, true);
    const name = at + 12;
    const desc = name + Math.ceil(nameSize / 4) * 4;
    const next = desc + Math.ceil(descSize / 4) * 4;
    if (next > notes.length) return null;
    const isXen = nameSize === 4 && view.getUint32(name, true) === 0x006e_6558; // "Xen\0"
    if (isXen && type === XEN_ELFNOTE_PHYS32_ENTRY && (descSize === 4 || descSize === 8)) {
      return view.getUint32(desc, true);
    }
    at = next;
  }
  return null;
}
