// The source's ear: reads the return path from the first byte to SHUT, keeps PONGs with the time they came, and says when the destination
// has gone or refused. Owned by source.ts; runs beside everything else on the JS thread. qemu-compat A4.
import type { Channel } from '../native/addon.ts';
import { StreamError } from '../native/errno.ts';
import { asError } from './stop-flag.ts';
import { type DestinationReport, type ReturnMessage, readReturn } from './stream/return-path.ts';

interface Waiter {
  readonly resolve: () => void;
  readonly reject: (reason: Error) => void;
}

export class ReturnListener {
  readonly #channel: Channel;
  readonly #pongs = new Map<number, number>();
  readonly #expected = new Set<number>();
  #waiters: Waiter[] = [];
  #end: Error | null = null;
  #refusal: string | null = null;
  /** Messages so far: tells a silent destination from a busy one. */
  heard = 0;
  report: DestinationReport | null = null;
  shut: number | null = null;

  constructor(channel: Channel) {
    this.#channel = channel;
  }

  /** Listens until SHUT or the end. `gone` is told of an end that is not SHUT(0). */
  async listen(gone: (reason: Error) => void): Promise<void> {
    try {
      while (this.shut === null) this.#take(await readReturn(this.#channel));
      if (this.shut !== 0) throw this.#refused();
    } catch (thrown) {
      this.#end = this.#refusal === null ? asError(thrown) : this.#refused();
      gone(this.#end);
    }
    this.#wake();
  }

  #refused(): StreamError {
    return new StreamError(`the destination refused: ${this.#refusal ?? 'it gave no reason'}`);
  }

  #take(message: ReturnMessage): void {
    this.heard += 1;
    switch (message.kind) {
      case 'pong':
        if (!this.#expected.delete(message.value))
          throw new StreamError(`the destination answers a PING ${message.value} that was not sent`);
        this.#pongs.set(message.value, performance.now());
        this.#wake();
        return;
      case 'report':
        this.report = message;
        return;
      case 'refused':
        this.#refusal = message.reason;
        return;
      case 'shut':
        this.shut = message.value;
        return;
      case 'alive':
        return;
    }
  }

  #wake(): void {
    const waiters = this.#waiters;
    this.#waiters = [];
    for (const waiter of waiters) waiter.resolve();
  }

  #change(): Promise<void> {
    return new Promise((resolve, reject) => this.#waiters.push({ resolve, reject }));
  }

  /** To be called before the PING is written. */
  expect(value: number): void {
    this.#expected.add(value);
  }

  /** When the PONG came, on performance.now(); null: not yet. */
  pongAt(value: number): number | null {
    return this.#pongs.get(value) ?? null;
  }

  async pong(value: number): Promise<number> {
    for (;;) {
      const at = this.#pongs.get(value);
      if (at !== undefined) return at;
      if (this.#end !== null) throw this.#end;
      if (this.shut !== null) throw new StreamError('the destination ended before the hand-over');
      await this.#change();
    }
  }

  /** True: SHUT(0) came. Rejects when the destination ends in another way; false when `deadlineMs` is over. */
  async shutDown(deadlineMs: number): Promise<boolean> {
    let timer: NodeJS.Timeout | null = null;
    let late = false;
    const deadline = new Promise<void>((resolve) => {
      timer = setTimeout(() => {
        late = true;
        resolve();
      }, deadlineMs);
    });
    try {
      for (;;) {
        if (this.#end !== null) throw this.#end;
        if (this.shut !== null) return this.shut === 0;
        if (late) return false;
        await Promise.race([this.#change(), deadline]);
      }
    } finally {
      if (timer !== null) clearTimeout(timer);
    }
  }
}
