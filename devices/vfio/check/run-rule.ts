// Runs one rule on a freshly opened device and says what came of it. Called by the child of a check, and by unit tests in their own process.
// Nothing that a driver does makes this throw; what does is a mistake of ours or a device that cannot be opened.
import { SysError } from '../../../native/errno.ts';
import { Bench } from './bench.ts';
import { BESIDE, type BesideTexts } from './beside.ts';
import type { BenchHost, OpenedDevice } from './opened.ts';
import {
  type Beside,
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
  /** --second and --other-size, so that they are repeated too. */
  readonly besideTexts: BesideTexts;
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
  second: ['not exercised', 'needs a second device: --second DEV'],
  'same-kind': ['not exercised', 'needs a second device of the same kind: --second DEV'],
  target: [
    'not exercised',
    "needs a second device whose exerciser has a 'target', bytes in a BAR that a peer may write",
  ],
  'other-size': ['not exercised', 'needs a device of the same kind and of another size: --other-size DEV'],
};

function lacking(need: Need, bench: OpenedDevice, host: RuleHost): boolean {
  if (need === 'destructive') return !host.destructive;
  if (need === 'dma' || need === 'interrupt' || need === 'inner') {
    return host.exerciser === null || host.exerciser[need] === null;
  }
  const { second } = host.beside;
  if (need === 'second') return second === null;
  if (need === 'same-kind') return second?.sameKind !== true;
  if (need === 'other-size') return host.beside[need]?.sameKind !== true;
  if (need === 'target') return (second?.exerciser?.target ?? null) === null;
  return !bench.has(need);
}

/** Devices beside the first, opened when a rule asks for them. */
class Others<B extends OpenedDevice> {
  readonly #open: (host: BenchHost) => B;
  readonly #host: RuleHost;
  readonly #benches: B[] = [];

  constructor(open: (host: BenchHost) => B, host: RuleHost) {
    this.#open = open;
    this.#host = host;
  }

  readonly get = (which: Beside): B => {
    const device = this.#host.beside[which];
    if (device === null) throw new Unreachable(LACKS[which][1]);
    const bench = this.#open({ ...this.#host, place: device.place, exerciser: device.exerciser });
    this.#benches.push(bench);
    return bench;
  };

  async close(): Promise<void> {
    for (const bench of this.#benches.splice(0).reverse()) {
      await goHome(bench);
      await bench.close();
    }
  }
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
  const others = new Others(open, host);
  const trial = new Trial(bench, others.get);
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
    await others.close();
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
  host: Pick<RuleHost, 'deviceText' | 'exerciserFile' | 'destructive' | 'abi' | 'besideTexts'>,
): string {
  const file = optionText('exerciser', host.exerciserFile);
  const abi = optionText('abi', host.abi);
  const beside = BESIDE.map((which) => optionText(which, host.besideTexts[which])).join('');
  return `ferry vfio check ${host.deviceText}${beside} --only ${rule.name}${abi}${file}${host.destructive ? ' --destructive' : ''}`;
}

function optionText(name: string, value: string | null): string {
  return value === null ? '' : ` --${name} ${value}`;
}
