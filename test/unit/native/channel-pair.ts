// Connected pairs of Channels for the channel tests, and RAM with known content. Each pair is closed by the test that made it.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type Channel, type GuestRam, kvmNode, type SocketAddress } from '../../../native/addon.ts';

const kvm = kvmNode();
export const PAGE = 4096;

export interface Pair {
  readonly a: Channel;
  readonly b: Channel;
  close(): void;
}

/** A connected pair of socket fds. */
export async function socketFds(kind: 'tcp' | 'unix'): Promise<[number, number]> {
  const dir = mkdtempSync(join(tmpdir(), 'ferry-channel-'));
  const address: SocketAddress =
    kind === 'tcp'
      ? { family: 'inet', host: '127.0.0.1', port: 0, path: '' }
      : { family: 'unix', host: '', port: 0, path: join(dir, 's') };
  const listener = kvm.listen(address);
  const accepted = kvm.accept(listener);
  const connected = await kvm.connect(kvm.localAddress(listener), 5000);
  const fds: [number, number] = [connected, await accepted];
  kvm.closeListener(listener);
  rmSync(dir, { recursive: true });
  return fds;
}

export async function pair(kind: 'tcp' | 'unix' = 'unix'): Promise<Pair> {
  const [one, other] = await socketFds(kind);
  const a = kvm.channel(one);
  const b = kvm.channel(other);
  return {
    a,
    b,
    close() {
      a.abort();
      b.abort();
    },
  };
}

/** Runs of 8 pages in turn: content of its own for each page, and never written. Returns how many pages have content. */
export function stripe(ram: GuestRam): number {
  const page = new Uint8Array(PAGE);
  const words = new Uint32Array(page.buffer);
  let written = 0;
  for (let n = 0; n < ram.size / PAGE; n++) {
    if ((n >> 3) & 1) continue;
    for (let i = 0; i < words.length; i++) words[i] = (n + 1) * 2654435761 + i;
    ram.copyIn(n * PAGE, page);
    written++;
  }
  return written;
}

export function be64(value: bigint): Uint8Array {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, value);
  return bytes;
}

export function cstr(name: string): Uint8Array {
  const text = new TextEncoder().encode(name);
  return concat([Uint8Array.of(text.length), text]);
}

export function concat(parts: readonly Uint8Array[]): Uint8Array {
  const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

/** CRC32C, bit by bit: the oracle of the addon's. */
export function crc32c(bytes: Uint8Array, crc = 0): number {
  let value = ~crc >>> 0;
  for (const byte of bytes) {
    value ^= byte;
    for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0x82f63b78 : value >>> 1;
  }
  return ~value >>> 0;
}

/** RAM record flags (QEMU's migration/ram.h). */
export const ZERO = 0x02n;
export const FULL_PAGE = 0x08n;
export const EOS = 0x10n;
export const CONTINUE = 0x20n;
