// All rules of `ferry vfio check` against the scripted device, each on a device of its own, in this process. For check-rules.test.ts.
import { mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Exerciser } from '../../../devices/vfio/check/exerciser.ts';
import type { KernelLog } from '../../../devices/vfio/check/kernel-log.ts';
import type { Rule, RuleResult } from '../../../devices/vfio/check/rule.ts';
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
}
export type ProcDir = Proc;
export const makeProc = () => new Proc();

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
        settleMs: options.settleMs ?? 40,
        proc: rule.name === 'leaks.loops' ? options.proc.path : '/proc',
        kernel: logOf(kernel),
        loops: 4,
        destructive: options.destructive ?? false,
        deviceText: '0000:65:00.0',
        exerciserFile: null,
        abi: null,
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
