// Reads what the worker guest said (test/guests/worker.c) at both sides of a move: one story, no tick missing, doubled or out of order, no
// time going back. For test/kvm/migration-*.test.ts.

export interface TickVerdict {
  readonly ticks: number;
  /** Missing, doubled or out-of-order counters, and time stamps that go back. */
  readonly lost: number;
  readonly checks: number;
  readonly errors: number;
  readonly back: number;
}

/** `before` and `after`: console of the source and of the destination; bytes of a line may lie on both sides. */
export function judgeTicks(before: string, after: string): TickVerdict {
  let [last, lastNs, lost, ticks, checks, errors, back] = [0, -1, 0, 0, 0, 0, 0];
  for (const line of (before + after).split('\n')) {
    const match = /^tick n=(\d+) ns=(\d+) checks=(\d+) errors=(\d+) back=(\d+)\r?$/.exec(line);
    if (match === null) continue;
    const [n, ns] = [Number(match[1]), Number(match[2])];
    if (n !== last + 1 || ns < lastNs) lost += 1;
    last = n;
    lastNs = ns;
    ticks += 1;
    checks = Number(match[3]);
    errors = Number(match[4]);
    back = Number(match[5]);
  }
  return { ticks, lost, checks, errors, back };
}
