// The memory of a scripted region, some stretches of which can be mapped: those are buffers of their own, so that a view of one and a
// trapped access see the same bytes.
import type { GpaRange } from '../../devices/contract.ts';

interface Stretch {
  readonly start: number;
  readonly bytes: Uint8Array<ArrayBuffer>;
}

export class RegionBytes {
  readonly #stretches: Stretch[] = [];

  constructor(size: number, areas: readonly GpaRange[]) {
    let at = 0;
    const upTo = (end: number): void => {
      if (end > at) this.#stretches.push({ start: at, bytes: new Uint8Array(end - at) });
      at = Math.max(at, end);
    };
    for (const { start, length } of [...areas].sort((a, b) => a.start - b.start)) {
      upTo(start);
      upTo(start + length);
    }
    upTo(size);
  }

  /** `start` is where a stretch begins. */
  area({ start }: GpaRange): ArrayBuffer {
    return this.#stretches.find((each) => each.start === start)!.bytes.buffer;
  }

  copyOut(offset: number, into: Uint8Array): void {
    this.#each(offset, into.length, (part, from) => into.set(part, from - offset));
  }

  copyIn(offset: number, bytes: Uint8Array): void {
    this.#each(offset, bytes.length, (part, from, to) => part.set(bytes.subarray(from - offset, to - offset)));
  }

  #each(offset: number, length: number, go: (part: Uint8Array, from: number, to: number) => void): void {
    for (const { start, bytes } of this.#stretches) {
      const from = Math.max(offset, start);
      const to = Math.min(offset + length, start + bytes.length);
      if (from < to) go(bytes.subarray(from - start, to - start), from, to);
    }
  }
}
