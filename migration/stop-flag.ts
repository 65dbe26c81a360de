// Why a migration must end early: set once, by cancel, a deadline, the peer or the machine, and checked between any two steps. Setting it
// hangs up, so what waits for the peer rejects at once; what waits for a device is let through to its own end, for a device takes one
// change at a time. Owned by source.ts and destination.ts.
import { VmmError } from '../native/errno.ts';

export class StopFlag {
  #reason: Error | null = null;
  readonly #hangUp: () => void;
  cancelled = false;

  constructor(hangUp: () => void) {
    this.#hangUp = hangUp;
  }

  get reason(): Error | null {
    return this.#reason;
  }

  /** The first reason stays. */
  fail(reason: Error): void {
    if (this.#reason !== null) return;
    this.#reason = reason;
    this.#hangUp();
  }

  cancel(): void {
    if (this.#reason !== null) return;
    this.cancelled = true;
    this.fail(new VmmError('cancelled', 'migration cancelled', { exitCode: 1 }));
  }

  check(): void {
    if (this.#reason !== null) throw this.#reason;
  }
}

/** All of them through to their end, then the first failure: nothing is left in flight when the way back begins. */
export async function settleAll(work: readonly Promise<unknown>[]): Promise<void> {
  const results = await Promise.allSettled(work);
  const failed = results.find((result) => result.status === 'rejected');
  if (failed !== undefined) throw failed.reason;
}

export function asError(thrown: unknown): Error {
  return thrown instanceof Error ? thrown : new Error(String(thrown));
}
