// How a chunk of the device state regions looks in the stream: a header of ours, then the region's bytes. Called by state-data.ts.
// The interface has no stream of its own: config and memory are regions that must be told apart again at the other end.
// Header, 24 bytes, big-endian: kind u32 (1 config, 2 memory), zero u32, size of the whole snapshot u64, place of this chunk in it u64.

export const HEADER_BYTES = 24;

export interface StateHeader {
  readonly kind: 'config' | 'memory';
  readonly total: number;
  readonly pos: number;
}

const KINDS = { config: 1, memory: 2 } as const;

export function packHeader({ kind, total, pos }: StateHeader): Uint8Array {
  const bytes = new Uint8Array(HEADER_BYTES);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, KINDS[kind]);
  view.setBigUint64(8, BigInt(total));
  view.setBigUint64(16, BigInt(pos));
  return bytes;
}

/** `length`: of the bytes behind the header. null: that is no chunk of ours. */
export function unpackHeader(bytes: Uint8Array, length: number): StateHeader | null {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const kind = view.getUint32(0) === KINDS.config ? 'config' : view.getUint32(0) === KINDS.memory ? 'memory' : null;
  const total = Number(view.getBigUint64(8));
  const pos = Number(view.getBigUint64(16));
  const fits = kind === 'config' ? pos === 0 && length === total : pos + length <= total;
  if (kind === null || view.getUint32(4) !== 0 || length === 0 || !Number.isSafeInteger(total) || !fits) return null;
  return { kind, total, pos };
}
