// All rules of `ferry vfio check` against the scripted device, each on a device of its own, in this process. For check-rules.test.ts.
import { mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Exerciser } from '../../../devices/vfio/check/exerciser.ts';
import type { KernelLog } from '../../../devices/vfio/check/kernel-log.ts';
import type { BenchHost, BesideDevice } from '../../../devices/vfio/check/opened.ts';
import type { Beside, Rule, RuleResult } from '../../../devices/vfio/check/rule.ts';
import { RULES } from '../../../devices/vfio/check/rules.ts';
import { runRule } from '../../../devices/vfio/check/run-rule.ts';
import { CheckKernel, type FakeOptions, fakeExerciser } from '../../fakes/check-kernel.ts';

export const CLAIMS = { deterministic: true, checksummed: true, p2pAware: false };

/** A /proc whose meminfo the test writes: 1 GiB, of which less and less is free. */
class Proc {
  readonly path = mkdtempSync(join(tmpdir(), 'ferry-check-'));
  #lost = 0;
  constructor() {
    this.lose(0);
  }
  lose(kib: number): void {
    this.#lost += kib;
    const free = 2 ** 19 - this.#lost;
    writeFileSync(join(this.path, 'meminfo'), `MemTotal:        ${2 ** 20} kB\nMemFree:         ${free} kB\n`);
  }
}

function logOf(kernel: CheckKernel): KernelLog {
  return { take: () => kernel.device.complaints.splice(0), close: () => {} };
}

export interface RunOptions extends FakeOptions {
  /** null: none is given. */
  readonly exerciser?: Exerciser | null;
  readonly proc: ProcDir;
  readonly rules?: readonly Rule[];
  readonly destructive?: boolean;
  readonly settleMs?: number;
  /** No second device, and none of another size. */
  readonly alone?: boolean;
  /** The second device is of another kind. */
  readonly otherKind?: boolean;
}
export type ProcDir = Proc;
export const makeProc = () => new Proc();

const WHICH = { second: { instance: 1, size: 64 }, 'other-size': { instance: 2, size: 128 } };
/** As the user would name them. */
export const NAMED = { second: 'fake1', 'other-size': 'fake2' };

/** Those that the rule asks for, each with the same driver as the first. */
function besideFor(rule: Rule, options: RunOptions, exerciser: Exerciser | null, kernels: CheckKernel[]) {
  const make = (which: Beside): BesideDevice | null => {
    if (options.alone === true || !rule.needs.includes(which)) return null;
    const kernel = new CheckKernel({ ...options, which: WHICH[which] });
    kernels.push(kernel);
    return { place: kernel.place, exerciser, sameKind: options.otherKind !== true };
  };
  return { second: make('second'), 'other-size': make('other-size') } satisfies BenchHost['beside'];
}

export async function runAll(options: RunOptions): Promise<{ results: RuleResult[]; leaked: number }> {
  const exerciser = options.exerciser === undefined ? fakeExerciser(CLAIMS) : options.exerciser;
  const kernels: CheckKernel[] = [];
  const results = await Promise.all(
    (options.rules ?? RULES).map((rule) => {
      const kernel = new CheckKernel(options);
      kernels.push(kernel);
      if (kernel.device.has('leaks') && rule.name === 'leaks.loops') kernel.onSession = () => options.proc.lose(64);
      return runRule(rule, {
        place: kernel.place,
        exerciser,
        beside: besideFor(rule, options, exerciser, kernels),
        settleMs: options.settleMs ?? 40,
        proc: rule.name === 'leaks.loops' ? options.proc.path : '/proc',
        kernel: logOf(kernel),
        loops: 4,
        destructive: options.destructive ?? false,
        deviceText: '0000:65:00.0',
        exerciserFile: null,
        abi: null,
        besideTexts: options.alone === true ? { second: null, 'other-size': null } : NAMED,
      });
    }),
  );
  for (const kernel of kernels) await kernel.place.close();
  return { results, leaked: kernels.reduce((sum, each) => sum + each.open, 0) };
}

/** Names of the rules that found something, sorted. */
export function found(results: readonly RuleResult[]): string[] {
  return [...new Set(results.flatMap((each) => each.findings.map((finding) => finding.rule)))].sort();
}
