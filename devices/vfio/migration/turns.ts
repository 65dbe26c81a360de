// One at a time, in the order of asking: a chunk of a migration region, a query of its dirty pages and a change of its state share the
// region's registers and must not come between one another. Used by region-port.ts and device-state-regions.ts.

export class Turns {
  #last: Promise<unknown> = Promise.resolve();

  /** Runs `work` after what was asked before has ended, one way or the other. */
  run<T>(work: () => Promise<T>): Promise<T> {
    const mine = this.#last.then(work);
    this.#last = mine.then(
      () => undefined,
      () => undefined,
    );
    return mine;
  }
}
