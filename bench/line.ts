// The one form in which benches say what they measured: a JSON object a line on stdout. Called by each bench/NAME.ts.
import { writeSync } from 'node:fs';

export interface Measured {
  readonly bench: string;
  readonly case: string;
  readonly ours: number;
  readonly peer: string;
  readonly theirs: number;
  readonly unit: string;
  readonly better: 'higher' | 'lower';
  /** What ours/theirs has to reach (better: higher) or may not pass (better: lower). */
  readonly target: number;
}

const STDOUT = 1;

function rounded(value: number): number {
  return Number(value.toPrecision(4));
}

/** Prints the line with ratio and pass, and returns pass. */
export function line(measured: Measured): boolean {
  const ratio = measured.ours / measured.theirs;
  const pass = measured.better === 'higher' ? ratio >= measured.target : ratio <= measured.target;
  const { bench, case: name, peer, unit, better, target } = measured;
  const printed = {
    bench,
    case: name,
    ours: rounded(measured.ours),
    peer,
    theirs: rounded(measured.theirs),
    ratio: rounded(ratio),
    unit,
    better,
    target,
    pass,
  };
  // Not console.log: a line is out when this returns, whatever happens to the process next.
  writeSync(STDOUT, `${JSON.stringify(printed)}\n`);
  return pass;
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2
    ? (sorted[middle] as number)
    : ((sorted[middle - 1] as number) + (sorted[middle] as number)) / 2;
}
