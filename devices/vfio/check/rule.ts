// What a rule of `ferry vfio check` is, and what came of it. Types, and the Trial: one rule's run as the rule sees it.
// Implemented by rules-*.ts, run by run-rule.ts in a child process. A rule that cannot get to where it would look throws Unreachable: what kept
// it from there is another rule's finding.
import type { Bench } from './bench.ts';

/** What must be there for a rule to say anything. The last five are the user's to give, the others the driver's. */
export type Need =
  | 'pre-copy'
  | 'p2p'
  | 'data-size'
  | 'dma-log'
  | 'reset'
  | 'dma'
  | 'interrupt'
  | 'inner'
  | 'destructive';

export interface Rule {
  /** area.name */
  readonly name: string;
  /** What must hold, in our words. */
  readonly title: string;
  /** A sentence of linux/vfio.h (v6.14) that says so. */
  readonly cites: string;
  readonly needs: readonly Need[];
  run(trial: Trial): Promise<void>;
}

export interface Finding {
  readonly rule: string;
  readonly cites: string;
  readonly did: string;
  readonly expected: string;
  readonly seen: string;
  /** The command that repeats it alone. */
  readonly repeat: string;
}

export type Outcome = 'ok' | 'finding' | 'note' | 'not exercised' | 'not reachable';

export interface RuleResult {
  readonly rule: string;
  readonly outcome: Outcome;
  /** Why it was not exercised or reached; null otherwise. */
  readonly reason: string | null;
  readonly findings: readonly Finding[];
  readonly notes: readonly string[];
  readonly ms: number;
}

/** The rule could not get to where it would have looked. */
export class Unreachable extends Error {
  override readonly name = 'Unreachable';
}

export class Trial {
  readonly bench: Bench;
  readonly findings: { readonly did: string; readonly expected: string; readonly seen: string }[] = [];
  readonly notes: string[] = [];

  constructor(bench: Bench) {
    this.bench = bench;
  }

  // Properties, so that a rule may take what it uses out of its trial.
  readonly finding = (did: string, expected: string, seen: string): void => {
    this.findings.push({ did, expected, seen });
  };

  /** A finding unless `holds`. */
  readonly expect = (holds: boolean, did: string, expected: string, seen: string): void => {
    if (!holds) this.finding(did, expected, seen);
  };

  readonly note = (text: string): void => {
    if (!this.notes.includes(text)) this.notes.push(text);
  };
}
