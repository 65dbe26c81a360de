// What a rule of `ferry vfio check` is, and what came of it. Types, and the Trial: one rule's run as the rule sees it.
// Implemented by rules-*.ts, run by run-rule.ts in a child process. A rule that cannot get to where it would look throws Unreachable: what kept
// it from there is another rule's finding.
import type { Bench } from './bench.ts';
import type { OpenedDevice } from './opened.ts';

/** Which generation of VFIO's migration interface: as x-migration-abi calls them. */
export type Generation = 'v2' | 'v1' | 'v7' | 'regions';

/** What a rule presupposes of driver and kernel. */
export type DriverNeed = 'pre-copy' | 'p2p' | 'data-size' | 'dma-log' | 'reset' | 'device-memory' | 'system-memory';

/** What must be there for a rule to say anything; these more are the user's to give. `same-kind` and `target` are about the second device: that it
 *  is like the one under check, and that its exerciser names bytes for a peer's DMA. */
export type Need = DriverNeed | 'dma' | 'interrupt' | 'inner' | 'destructive' | Beside | 'same-kind' | 'target';

/** A device beside the one under check: `--second`, `--other-size`. */
export type Beside = 'second' | 'other-size';

export interface RuleText {
  /** area.name */
  readonly name: string;
  /** What must hold, in our words. */
  readonly title: string;
  /** A sentence that says so: of linux/vfio.h (v6.14), or of the text of the older interface. */
  readonly cites: string;
  readonly needs: readonly Need[];
}

export interface Rule<B extends OpenedDevice = Bench> extends RuleText {
  run(trial: Trial<B>): Promise<void>;
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

export class Trial<B extends OpenedDevice = Bench> {
  readonly bench: B;
  /** Opens it anew for this rule; closed with the rule. */
  readonly beside: (which: Beside) => B;
  readonly findings: { readonly did: string; readonly expected: string; readonly seen: string }[] = [];
  readonly notes: string[] = [];

  constructor(bench: B, beside: (which: Beside) => B) {
    this.bench = bench;
    this.beside = beside;
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
