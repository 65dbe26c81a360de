// Rewrites an unpacked vmlinux for the cache: what is loaded and the notes, nothing else, and long runs of zeros as memory without file
// bytes. A Debian kernel has 15 MiB of zeros in its file (bss and brk), which would be read and touched at every start.
// Called by load.ts when a kernel is stored. Spec: ELF gABI.
import { type ElfSegment, parseElf } from './elf.ts';

const PAGE = 4096;
/** A shorter run of zeros costs less to read than another segment does to handle. */
const RUN_MIN = 16 * PAGE;
const HEADER = 64;
const PROGRAM_HEADER = 56;
const SEGMENTS_MAX = 100;
const PT_LOAD = 1;
const PT_NOTE = 4;
const ZERO = Buffer.alloc(PAGE);

interface Piece {
  readonly type: number;
  readonly paddr: number;
  readonly content: Buffer;
  readonly memSize: number;
}

/** The compact file; the given one when it cannot be made smaller. */
export function compactElf(vmlinux: Buffer): Buffer {
  const elf = parseElf(vmlinux.subarray(0, 2 * PAGE), vmlinux.length);
  if (typeof elf === 'string' || elf.bits !== 64) return vmlinux;
  const loads = elf.segments.flatMap((segment) => piecesOf(vmlinux, segment));
  const notes = elf.notes.map((note) => ({
    type: PT_NOTE,
    paddr: 0,
    content: vmlinux.subarray(note.offset, note.offset + note.size),
    memSize: note.size,
  }));
  const pieces = [...loads, ...notes];
  return pieces.length > SEGMENTS_MAX ? vmlinux : assemble(vmlinux, pieces);
}

/** The segment cut at its long runs of zeros, in order; each run belongs, as memory only, to the piece before it. */
function piecesOf(file: Buffer, segment: ElfSegment): Piece[] {
  const pieces: Piece[] = [];
  const end = segment.fileSize;
  for (let at = 0; at < end; ) {
    const zerosAt = findZeros(file, segment, at);
    const next = skipZeros(file, segment, zerosAt);
    const last = next >= end ? segment.memSize : next;
    const content = file.subarray(segment.offset + at, segment.offset + zerosAt);
    pieces.push({ type: PT_LOAD, paddr: segment.paddr + at, content, memSize: last - at });
    at = next;
  }
  if (end === 0)
    pieces.push({ type: PT_LOAD, paddr: segment.paddr, content: Buffer.alloc(0), memSize: segment.memSize });
  return pieces;
}

/** Where the next run of at least RUN_MIN zeros begins, at or after `from`; the end of the segment's file bytes if there is none. */
function findZeros(file: Buffer, segment: ElfSegment, from: number): number {
  for (let at = from; at < segment.fileSize; at += PAGE) {
    const run = skipZeros(file, segment, at) - at;
    if (run >= RUN_MIN || (run > 0 && at + run === segment.fileSize)) return at;
    at += run - (run % PAGE);
  }
  return segment.fileSize;
}

function skipZeros(file: Buffer, segment: ElfSegment, from: number): number {
  let at = from;
  while (at < segment.fileSize) {
    const length = Math.min(PAGE, segment.fileSize - at);
    if (file.compare(ZERO, 0, length, segment.offset + at, segment.offset + at + length) !== 0) return at;
    at += length;
  }
  return at;
}

function assemble(original: Buffer, pieces: readonly Piece[]): Buffer {
  const headers = Buffer.alloc(Math.ceil((HEADER + pieces.length * PROGRAM_HEADER) / PAGE) * PAGE);
  original.copy(headers, 0, 0, HEADER);
  headers.writeBigUInt64LE(BigInt(HEADER), 32); // e_phoff
  headers.writeBigUInt64LE(0n, 40); // e_shoff: no sections
  headers.writeUInt16LE(PROGRAM_HEADER, 54);
  headers.writeUInt16LE(pieces.length, 56);
  headers.writeUInt16LE(0, 60); // e_shnum
  headers.writeUInt16LE(0, 62); // e_shstrndx
  let offset = headers.length;
  for (const [index, piece] of pieces.entries()) {
    const at = HEADER + index * PROGRAM_HEADER;
    headers.writeUInt32LE(piece.type, at);
    for (const [i, value] of [offset, piece.paddr, piece.paddr, piece.content.length, piece.memSize].entries()) {
      headers.writeBigUInt64LE(BigInt(value), at + 8 + i * 8);
    }
    offset += piece.content.length;
  }
  return Buffer.concat([headers, ...pieces.map((piece) => piece.content)]);
}
