// A Channel out of two queues in memory, with GuestRam and PageBitmap to go with it: the tests of migration run both state machines in one
// process without addon, sockets or threads. Written from native/addon.ts and QEMU's format, not from the C++ channel: an independent oracle.
import { readSync } from 'node:fs';
import type { Channel, ChunkPiece, GuestRam, PageBitmap, SentPages } from '../../native/addon.ts';
import { StreamError, SysError } from '../../native/errno.ts';
import { bytesOf, fill, lengthOf, totalOf } from './chunk-pieces.ts';

const PAGE = 4096;
const EIO = 5;
const ECANCELED = 125;
const FLAG = { zero: 2n, page: 8n, eos: 16n, continue: 32n };

export class ArrayRam implements GuestRam {
  readonly fd = -1;
  readonly size: number;
  readonly bytes: Uint8Array;
  constructor(size: number) {
    this.size = size;
    this.bytes = new Uint8Array(size);
  }
  window(_index: number): ArrayBuffer {
    return this.bytes.buffer as ArrayBuffer;
  }
  copyOut(offset: number, into: Uint8Array): void {
    into.set(this.bytes.subarray(offset, offset + into.length));
  }
  copyIn(offset: number, from: Uint8Array): void {
    this.bytes.set(from, offset);
  }
  async populate(): Promise<void> {}
  async hash(): Promise<bigint> {
    return BigInt(crc32c(0, this.bytes));
  }
  resident(): number {
    return this.size;
  }
  close(): void {}
}

export class ArrayBitmap implements PageBitmap {
  readonly pages: number;
  readonly bits: boolean[];
  constructor(pages: number) {
    this.pages = pages;
    this.bits = new Array<boolean>(pages).fill(false);
  }
  get count(): number {
    return this.bits.filter(Boolean).length;
  }
  set(firstPage: number, pages: number): void {
    this.bits.fill(true, firstPage, firstPage + pages);
  }
  clear(firstPage: number, pages: number): void {
    this.bits.fill(false, firstPage, firstPage + pages);
  }
  test(page: number): boolean {
    return this.bits[page] === true;
  }
  fill(): void {
    this.bits.fill(true);
  }
  zero(): void {
    this.bits.fill(false);
  }
  or(other: PageBitmap): void {
    for (let page = 0; page < this.pages; page += 1) if (other.test(page)) this.bits[page] = true;
  }
  copyFrom(other: PageBitmap): void {
    for (let page = 0; page < this.pages; page += 1) this.bits[page] = other.test(page);
  }
  orBytes(): void {
    throw new Error('no test of migration needs orBytes');
  }
  async orFrom(source: { fd: number; offset: number; bits: number }, start: number, granule: number): Promise<void> {
    const bytes = new Uint8Array(Math.ceil(source.bits / 8));
    const got = readSync(source.fd, bytes, 0, bytes.length, source.offset);
    await turn();
    if (got !== bytes.length) throw new SysError('pread(dirty bits)', EIO);
    for (let bit = 0; bit < source.bits; bit += 1) {
      if (((bytes[bit >> 3]! >> (bit & 7)) & 1) === 0) continue;
      const from = Math.floor((start + bit * granule) / PAGE);
      const to = Math.ceil((start + (bit + 1) * granule) / PAGE);
      this.bits.fill(true, Math.min(from, this.pages), Math.min(to, this.pages));
    }
  }
  runs(): Float64Array {
    throw new Error('no test of migration needs runs');
  }
  close(): void {}
}

let table: Uint32Array | null = null;
/** CRC32C (Castagnoli, reflected), bytewise. */
export function crc32c(seed: number, bytes: Uint8Array): number {
  if (table === null) {
    table = new Uint32Array(256);
    for (let n = 0; n < 256; n += 1) {
      let c = n;
      for (let bit = 0; bit < 8; bit += 1) c = c & 1 ? (c >>> 1) ^ 0x82f63b78 : c >>> 1;
      table[n] = c;
    }
  }
  let crc = ~seed >>> 0;
  for (const byte of bytes) crc = (table[(crc ^ byte) & 0xff]! ^ (crc >>> 8)) >>> 0;
  return ~crc >>> 0;
}

/** What happens to the bytes on their way: by absolute offset in this direction. */
export interface LinkFault {
  /** XORs this byte. */
  readonly flipAt?: number;
  /** The reader sees the end of the stream here, as after a kill. */
  readonly cutAt?: number;
  /** From here on nothing arrives, and nobody says so, as on a link that is down. */
  readonly silentAt?: number;
}

class Pipe {
  fault: LinkFault = {};
  readonly all: Uint8Array[] = [];
  #queue: Uint8Array[] = [];
  #queued = 0;
  #offset = 0;
  #ended = false;
  #wake: (() => void)[] = [];
  /** Told of the offset after each piece. */
  watch: ((offset: number) => void) | null = null;

  push(bytes: Uint8Array): void {
    const at = this.#offset;
    this.#offset += bytes.length;
    const { flipAt, cutAt, silentAt } = this.fault;
    // Not slice(): a Buffer's shares its memory with the device that gave it.
    let piece = Uint8Array.from(bytes);
    this.all.push(piece);
    if (flipAt !== undefined && flipAt >= at && flipAt < this.#offset) piece[flipAt - at]! ^= 0x10;
    if (silentAt !== undefined && this.#offset > silentAt) piece = piece.subarray(0, Math.max(0, silentAt - at));
    if (cutAt !== undefined && this.#offset > cutAt) {
      piece = piece.subarray(0, Math.max(0, cutAt - at));
      this.#ended = true;
    }
    if (piece.length > 0) this.#queue.push(piece);
    this.#queued += piece.length;
    this.#turn();
    this.watch?.(this.#offset);
  }

  end(): void {
    this.#ended = true;
    this.#turn();
  }

  #turn(): void {
    const wake = this.#wake;
    this.#wake = [];
    for (const go of wake) go();
  }

  get broken(): boolean {
    return this.#ended;
  }

  async read(length: number, aborted: () => boolean): Promise<Uint8Array> {
    while (this.#queued < length) {
      if (aborted()) throw new SysError('recv', ECANCELED);
      if (this.#ended) throw new StreamError('the stream ended in the middle');
      await new Promise<void>((resolve) => this.#wake.push(resolve));
    }
    if (aborted()) throw new SysError('recv', ECANCELED);
    const out = new Uint8Array(length);
    let at = 0;
    while (at < length) {
      const head = this.#queue[0]!;
      const take = Math.min(head.length, length - at);
      out.set(head.subarray(0, take), at);
      at += take;
      if (take === head.length) this.#queue.shift();
      else this.#queue[0] = head.subarray(take);
    }
    this.#queued -= length;
    return out;
  }
}

export class MemoryChannel implements Channel {
  readonly fd = -1;
  readonly out: Pipe;
  readonly #in: Pipe;
  #rx: Promise<unknown> = Promise.resolve();
  #aborted = false;
  txCrc = 0;
  rxCrc = 0;
  txBytes = 0;
  /** Where page contents lie in what was written: [from, to). */
  readonly contents: [number, number][] = [];
  rxBytes = 0;

  constructor(input: Pipe, output: Pipe) {
    this.#in = input;
    this.out = output;
  }

  get aborted(): boolean {
    return this.#aborted;
  }

  #send(bytes: Uint8Array, counted: boolean): void {
    if (this.#aborted) throw new SysError('send', ECANCELED);
    if (this.#in.broken && this.out.broken) throw new SysError('send', 32);
    if (counted) this.txCrc = crc32c(this.txCrc, bytes);
    if (!counted) this.contents.push([this.txBytes, this.txBytes + bytes.length]);
    this.txBytes += bytes.length;
    this.out.push(bytes);
  }

  async write(bytes: Uint8Array): Promise<void> {
    this.#send(bytes, true);
    await turn();
  }

  async #take(length: number, counted: boolean): Promise<Uint8Array> {
    const bytes = await this.#in.read(length, () => this.#aborted);
    if (counted) this.rxCrc = crc32c(this.rxCrc, bytes);
    this.rxBytes += length;
    return bytes;
  }

  /** Operations of one direction go one after the other. */
  #next<T>(work: () => Promise<T>): Promise<T> {
    const next = this.#rx.then(work, work);
    this.#rx = next.catch(() => undefined);
    return next;
  }

  read(n: number): Promise<Uint8Array> {
    return this.#next(() => this.#take(n, true));
  }

  async sendPages(
    ram: GuestRam,
    bitmap: PageBitmap,
    block: string,
    options: { from: number; maxPages: number; bytesPerSecond: number },
  ): Promise<SentPages & { readonly next: number }> {
    let [pages, zeroPages, bytes, page] = [0, 0, 0, options.from];
    let named = false;
    const contents = new Uint8Array(PAGE);
    for (; page < bitmap.pages && pages + zeroPages < options.maxPages; page += 1) {
      if (!bitmap.test(page)) continue;
      bitmap.clear(page, 1);
      ram.copyOut(page * PAGE, contents);
      const zero = contents.every((byte) => byte === 0);
      const head = new Uint8Array(named ? 8 : 9 + block.length);
      const flags = (zero ? FLAG.zero : FLAG.page) | (named ? FLAG.continue : 0n);
      new DataView(head.buffer).setBigUint64(0, BigInt(page * PAGE) | flags);
      if (!named) {
        head[8] = block.length;
        head.set(new TextEncoder().encode(block), 9);
      }
      named = true;
      this.#send(head, true);
      this.#send(zero ? new Uint8Array(1) : contents, zero);
      bytes += head.length + (zero ? 1 : PAGE);
      if (zero) zeroPages += 1;
      else pages += 1;
    }
    await turn();
    return { pages, zeroPages, bytes, next: page };
  }

  receivePages(ram: GuestRam, block: string, first: bigint | null): Promise<SentPages> {
    return this.#next(async () => {
      const sum = { pages: 0, zeroPages: 0, bytes: 0 };
      let record = first;
      for (;;) {
        record ??= view(await this.#take(8, true)).getBigUint64(0);
        if (record === FLAG.eos) return sum;
        const offset = Number(record & ~0xfffn);
        const flags = record & 0xfffn;
        if ((flags & FLAG.continue) === 0n) {
          const length = (await this.#take(1, true))[0]!;
          const name = new TextDecoder().decode(await this.#take(length, true));
          if (name !== block) throw new StreamError(`unknown RAM block ${JSON.stringify(name)}`);
        }
        const kind = flags & ~FLAG.continue;
        if (offset + PAGE > ram.size) throw new StreamError(`a page at ${offset}, outside of RAM`);
        if (kind === FLAG.zero) {
          const fill = (await this.#take(1, true))[0]!;
          if (fill !== 0) throw new StreamError(`a zero page filled with ${fill}`);
          ram.copyIn(offset, new Uint8Array(PAGE));
          sum.zeroPages += 1;
        } else if (kind === FLAG.page) {
          ram.copyIn(offset, await this.#take(PAGE, false));
          sum.pages += 1;
        } else throw new StreamError(`unknown RAM flags ${flags}`);
        record = null;
      }
    });
  }

  async pumpFrom(): Promise<never> {
    throw new Error('devices of these tests use put()');
  }
  async pumpTo(): Promise<never> {
    throw new Error('devices of these tests use take()');
  }
  /** All pieces are read before the record begins: a refused pread never breaks this channel. */
  async pumpPiecesFrom(pieces: readonly ChunkPiece[], tag: bigint): Promise<void> {
    const head = new DataView(new ArrayBuffer(16));
    head.setBigUint64(0, tag);
    head.setBigUint64(8, BigInt(totalOf(pieces)));
    const bytes = Buffer.concat(pieces.map(bytesOf));
    this.#send(new Uint8Array(head.buffer), true);
    this.#send(bytes, true);
    await turn();
  }
  pumpPiecesTo(pieces: readonly ChunkPiece[]): Promise<void> {
    const total = totalOf(pieces);
    return this.#next(async () => {
      let rest = await this.#take(total, true);
      for (const piece of pieces) {
        fill(piece, rest.subarray(0, lengthOf(piece)));
        rest = rest.subarray(lengthOf(piece));
      }
    });
  }

  async end(): Promise<void> {
    this.out.end();
  }

  abort(): void {
    this.#aborted = true;
    this.out.end();
    this.#in.end();
  }
}

function view(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** A turn of the event loop: what a write to a socket costs at least. */
function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

export interface ChannelPair {
  readonly source: MemoryChannel;
  readonly destination: MemoryChannel;
  /** Bytes of the stream, source to destination, as they were written. */
  written(): Uint8Array;
}

export function channelPair(faults: { forward?: LinkFault; back?: LinkFault } = {}): ChannelPair {
  const forward = new Pipe();
  const back = new Pipe();
  forward.fault = faults.forward ?? {};
  back.fault = faults.back ?? {};
  return {
    source: new MemoryChannel(back, forward),
    destination: new MemoryChannel(forward, back),
    written: () => Buffer.concat(forward.all),
  };
}

/** A channel that reads these bytes and then finds the end. */
export function channelOver(bytes: Uint8Array): MemoryChannel {
  const input = new Pipe();
  input.push(bytes);
  input.end();
  return new MemoryChannel(input, new Pipe());
}
