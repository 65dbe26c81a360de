// Runs one rule on a freshly opened device and says what came of it. Called by the child of a check, and by unit tests in their own process.
// Nothing that a driver does makes this throw; what does is a mistake of ours or a device that cannot be opened.
import { SysError } from '../../../native/errno.ts';
import { Bench } from './bench.ts';
import type { BenchHost, OpenedDevice } from './opened.ts';
import {
  type Finding,
  type Generation,
  type Need,
  type Outcome,
  type Rule,
  type RuleResult,
  type RuleText,
  Trial,
  Unreachable,
} from './rule.ts';
import { KERNEL_RULE } from './rules.ts';

export interface RuleHost extends BenchHost {
  readonly destructive: boolean;
  /** As the user named the device, for the commands that repeat a finding. */
  readonly deviceText: string;
  /** --exerciser FILE, so that it is repeated too; null: none. */
  readonly exerciserFile: string | null;
  /** --abi, so that it is repeated too; null: none. */
  readonly abi: Generation | null;
}

const LACKS: Readonly<Record<Need, readonly [Outcome, string]>> = {
  'pre-copy': ['not reachable', 'the driver offers no PRE_COPY'],
  p2p: ['not reachable', 'the driver offers no P2P'],
  'data-size': ['not reachable', 'driver or kernel has no MIG_DATA_SIZE'],
  'dma-log': ['not reachable', 'the driver has no log of its DMA'],
  reset: ['not reachable', 'the device has no reset (VFIO_DEVICE_FLAGS_RESET)'],
  'device-memory': ['not reachable', 'the device has no memory of its own (VFIO_DEVICE_DATA_CAP_DEVICE_MEMORY)'],
  'system-memory': ['not reachable', 'the device has no dirty bitmap (VFIO_DEVICE_DATA_CAP_SYSTEM_MEMORY)'],
  dma: ['not exercised', 'needs an exerciser with DMA: --exerciser FILE'],
  interrupt: ['not exercised', 'needs an exerciser with an interrupt: --exerciser FILE'],
  inner: ['not exercised', 'needs an exerciser that changes and hashes the internal state: --exerciser FILE'],
  destructive: ['not exercised', 'may disturb the host: only with --destructive'],
};

function lacking(need: Need, bench: OpenedDevice, host: RuleHost): boolean {
  if (need === 'destructive') return !host.destructive;
  if (need === 'dma' || need === 'interrupt' || need === 'inner') {
    return host.exerciser === null || host.exerciser[need] === null;
  }
  return !bench.has(need);
}

export function runRule(rule: Rule, host: RuleHost): Promise<RuleResult> {
  return runOn(rule, Bench.open, host);
}

/** `open`: as the rule's generation has it. */
export async function runOn<B extends OpenedDevice>(
  rule: Rule<B>,
  open: (host: BenchHost) => B,
  host: RuleHost,
): Promise<RuleResult> {
  const begun = performance.now();
  host.kernel.take();
  const bench = open(host);
  const trial = new Trial(bench);
  let kept: readonly [Outcome, string] | null = null;
  try {
    const lacks = rule.needs.find((need) => lacking(need, bench, host));
    if (lacks === undefined) await rule.run(trial);
    else kept = LACKS[lacks];
  } catch (error) {
    // A GET or the like that fails is the finding of the rule about it.
    if (!(error instanceof Unreachable || error instanceof SysError)) throw error;
    kept = ['not reachable', error.message];
  } finally {
    await goHome(bench);
    await bench.close();
  }
  const findings = trial.findings.map((each) => ({
    rule: rule.name,
    cites: rule.cites,
    ...each,
    repeat: repeatOf(rule, host),
  }));
  findings.push(...kernelFindings(rule, host));
  return {
    rule: rule.name,
    outcome: outcomeOf(trial, kept),
    reason: kept?.[1] ?? null,
    findings,
    notes: trial.notes,
    ms: performance.now() - begun,
  };
}

/** So that no rule begins where another one has left off, in a driver whose state survives a close: that is close.states' finding alone. */
async function goHome(bench: OpenedDevice): Promise<void> {
  try {
    await bench.home();
  } catch (error) {
    if (!(error instanceof Unreachable || error instanceof SysError)) throw error;
  }
}

/** What was seen before a rule could go no further counts all the same. */
function outcomeOf(
  trial: { findings: readonly unknown[]; notes: readonly string[] },
  kept: readonly [Outcome, string] | null,
): Outcome {
  if (trial.findings.length > 0) return 'finding';
  if (kept !== null) return kept[0];
  return trial.notes.length > 0 ? 'note' : 'ok';
}

function kernelFindings(rule: RuleText, host: RuleHost): Finding[] {
  const lines = host.kernel.take();
  if (lines.length === 0) return [];
  return [
    {
      rule: KERNEL_RULE.name,
      cites: KERNEL_RULE.cites,
      did: `ran ${rule.name}`,
      expected: 'no complaint in the kernel log',
      seen: lines.slice(0, 3).join(' | '),
      repeat: repeatOf(rule, host),
    },
  ];
}

export function repeatOf(
  rule: { readonly name: string },
  host: Pick<RuleHost, 'deviceText' | 'exerciserFile' | 'destructive' | 'abi'>,
): string {
  const file = host.exerciserFile === null ? '' : ` --exerciser ${host.exerciserFile}`;
  const abi = host.abi === null ? '' : ` --abi ${host.abi}`;
  return `ferry vfio check ${host.deviceText} --only ${rule.name}${abi}${file}${host.destructive ? ' --destructive' : ''}`;
}
