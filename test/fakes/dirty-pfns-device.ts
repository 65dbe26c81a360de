// The dirty pages of a v7 migration region, written from the patch of July 2019 and its review: start_pfn, page_size and total_pfns are
// written, copied_pfns is read and makes the driver answer. Part of migration-region-device.ts.
import { SysError } from '../../native/errno.ts';

const EINVAL = 22;
const ALL = 2n ** 64n - 1n;

export class DirtyPfnsDevice {
  /** Addresses of 4 KiB pages that were written. */
  readonly pages = new Set<number>();
  /** How it answers next: by itself, or as told once. */
  answer: 'bitmap' | 'all' | 'too many' = 'bitmap';
  /** Pages of the device's size that one answer covers at most. */
  most: number;
  pageSizes: readonly number[] = [4096];
  /** Bugs: NONE is about the part of an answer alone; pages are told one too high. */
  forgetsRest = false;
  shift = 0;
  /** The next read of data_offset is for the bitmap. */
  answered = false;
  readonly queries: { start: number; pageSize: number; total: number }[] = [];
  readonly #written = new Map<string, number>();

  constructor(roomBytes: number) {
    this.most = roomBytes * 8;
  }

  /** As DMA does. */
  write(...pages: readonly number[]): void {
    for (const page of pages) this.pages.add(page * 4096);
  }

  /** false: none of its registers. */
  set(register: string, value: bigint): boolean {
    if (!['start_pfn', 'page_size', 'total_pfns'].includes(register)) return false;
    if (register === 'page_size' && !this.pageSizes.includes(Number(value))) throw new SysError('pwrite', EINVAL);
    this.#written.set(register, Number(value));
    return true;
  }

  copied(put: (bitmap: Uint8Array) => void): bigint {
    const asked = ['start_pfn', 'page_size', 'total_pfns'].map((register) => this.#written.get(register));
    const [start, pageSize, total] = asked;
    if (start === undefined || pageSize === undefined || total === undefined) throw new SysError('pread', EINVAL);
    // All three each time.
    this.#written.clear();
    this.queries.push({ start, pageSize, total });
    if (this.answer === 'too many') return BigInt(total + 1);
    if (this.answer === 'all') {
      this.#take(start, pageSize, total);
      return ALL;
    }
    const covered = Math.min(total, this.most);
    if (!this.#any(start, pageSize, this.forgetsRest ? covered : total)) return 0n;
    const bitmap = new Uint8Array(Math.ceil(covered / 64) * 8);
    for (const taken of this.#take(start, pageSize, covered)) {
      const bit = Math.min(taken + this.shift, covered - 1);
      bitmap[bit >> 3]! |= 1 << (bit & 7);
    }
    put(bitmap);
    this.answered = true;
    return BigInt(covered);
  }

  #any(start: number, pageSize: number, total: number): boolean {
    return [...this.pages].some((page) => page >= start * pageSize && page < (start + total) * pageSize);
  }

  #take(start: number, pageSize: number, total: number): number[] {
    const bits: number[] = [];
    for (const page of [...this.pages]) {
      const bit = Math.floor(page / pageSize) - start;
      if (bit < 0 || bit >= total) continue;
      this.pages.delete(page);
      bits.push(bit);
    }
    return bits;
  }
}
