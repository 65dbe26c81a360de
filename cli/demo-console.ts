// The guest's console as the demo sees it from outside: each side's text, and when its lines arrived on this machine's one clock.
// Fed from the two `ferry` processes in the lab hosts; read by demo-run.ts and demo-report.ts.

const TICK = /^tick n=\d+ t=(\d+)/;

export interface TickLine {
  /** performance.now() when the line was complete here. */
  readonly at: number;
  /** The guest's own clock in it, milliseconds. */
  readonly guestMs: number;
}

/** In one line, for an error. */
export function lastLines(text: string, count: number): string {
  return text.trim().split('\n').slice(-count).join(' | ');
}

export class ConsoleLog {
  #text = '';
  #rest = '';
  readonly #waiters = new Set<() => void>();
  /** Every tick line seen here, oldest first. */
  readonly tickLines: TickLine[] = [];
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
      this.tickLines.push({ at: now, guestMs: Number(tick[1]) / 1e6 });
    }
    this.#wake();
  }

  get ticks(): number {
    return this.tickLines.length;
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
      const timer = setTimeout(() => {
        const end = lastLines(this.text, 20);
        settle(new Error(`${what} did not come within ${limitMs / 1000} s; the end of the console: ${end}`));
      }, limitMs);
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
  /** How long the guest's own clock stood still meanwhile, as seen from here: outerGapMs without what the guest ran of it, or waited
   *  for its host's one CPU, and without what its lines waited on their way. */
  readonly outerPauseMs: number;
}

/** Ticks so far from the move are left out: the clocks of two machines drift, but not by milliseconds in this time. */
const NEAR_MS = 15_000;

export function outerGap(source: ConsoleLog, destination: ConsoleLog): OuterGap {
  const last = source.tickLines.at(-1);
  const first = destination.tickLines[0];
  if (last === undefined || first === undefined) return { outerGapMs: Number.NaN, outerPauseMs: Number.NaN };
  const before = source.tickLines.filter(({ at }) => at > last.at - NEAR_MS);
  const after = destination.tickLines.filter(({ at }) => at < first.at + NEAR_MS);
  return { outerGapMs: first.at - last.at, outerPauseMs: clockOffset(after) - clockOffset(before) };
}

/** Our clock minus the guest's: each line is late by its way here, the quickest one by the least. */
function clockOffset(lines: readonly TickLine[]): number {
  return lines.reduce((least, { at, guestMs }) => Math.min(least, at - guestMs), Number.POSITIVE_INFINITY);
}
