// The guest's console as the demo sees it from outside: each side's text, and when its lines arrived on this machine's one clock.
// Fed from the two `ferry` processes in the lab hosts; read by demo-run.ts and demo-report.ts.

const TICK = /^tick n=\d+ t=(\d+)/;

export class ConsoleLog {
  #text = '';
  #rest = '';
  readonly #waiters = new Set<() => void>();
  /** performance.now() of the first and the last tick line seen here. */
  firstTickAt: number | null = null;
  lastTickAt: number | null = null;
  /** The guest's own clock in those lines, milliseconds. */
  firstTickMs: number | null = null;
  lastTickMs: number | null = null;
  ticks = 0;
  #closed: string | null = null;

  get text(): string {
    return this.#text;
  }

  push(bytes: Buffer, now: number): void {
    const text = bytes.toString('latin1');
    this.#text += text;
    const lines = (this.#rest + text).split('\n');
    this.#rest = lines.pop() ?? '';
    for (const line of lines) {
      const tick = TICK.exec(line);
      if (tick === null) continue;
      const guestMs = Number(tick[1]) / 1e6;
      this.ticks++;
      this.firstTickAt ??= now;
      this.firstTickMs ??= guestMs;
      this.lastTickAt = now;
      this.lastTickMs = guestMs;
    }
    this.#wake();
  }

  /** The process behind it has ended; who still waits is told `why`. */
  close(why: string): void {
    this.#closed ??= why;
    this.#wake();
  }

  #wake(): void {
    for (const waiter of [...this.#waiters]) waiter();
  }

  /** Resolves when `ready` holds; rejects when the console closes first or nothing came of it in time. */
  until(what: string, ready: (console: this) => boolean, limitMs: number): Promise<void> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => settle(new Error(`${what} did not come within ${limitMs / 1000} s`)), limitMs);
      const look = () => {
        if (ready(this)) settle(null);
        else if (this.#closed !== null) settle(new Error(`${what} did not come: ${this.#closed}`));
      };
      const settle = (error: Error | null) => {
        clearTimeout(timer);
        this.#waiters.delete(look);
        if (error === null) resolve();
        else reject(error);
      };
      this.#waiters.add(look);
      look();
    });
  }
}

export interface OuterGap {
  /** Last tick at the source to first tick at the destination, on this machine's clock. */
  readonly outerGapMs: number;
  /** How much of it passed on the guest's own clock, which stands still in the pause: there it ran, or waited for a CPU to run on. */
  readonly guestRanMs: number;
}

export function outerGap(source: ConsoleLog, destination: ConsoleLog): OuterGap {
  const between = (from: number | null, to: number | null) => (to ?? Number.NaN) - (from ?? Number.NaN);
  return {
    outerGapMs: between(source.lastTickAt, destination.firstTickAt),
    guestRanMs: between(source.lastTickMs, destination.firstTickMs),
  };
}
