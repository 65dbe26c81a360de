// A whole `ferry vfio check`: the rules in their order through a child each can be told to, and the report that comes of it. Called by
// cli/vfio-check.ts; JS thread. The rows of kernel.log and calls.end gather what came up in any rule.
import { VmmError } from '../../../native/errno.ts';
import type { Ended, Ready, RuleChildren } from './children.ts';
import type { Finding, Generation, Outcome, RuleResult, RuleText } from './rule.ts';
import { HANG_RULE, KERNEL_RULE } from './rules.ts';
import { type RuleHost, repeatOf } from './run-rule.ts';
import { ALL_RULES, SUITES } from './suites.ts';

export interface CheckReport {
  readonly device: string;
  readonly generation: Generation;
  /** How the generation was found. */
  readonly facts: readonly string[];
  readonly offers: readonly string[];
  readonly exerciser: string | null;
  readonly results: readonly RuleResult[];
  readonly summary: Readonly<Record<Outcome, number>>;
}

/** For the commands that repeat a finding. */
export type Repeat = Pick<RuleHost, 'deviceText' | 'exerciserFile' | 'destructive' | 'abi' | 'besideTexts'>;

/** `--only`: a rule's name, or an area's (states.). Throws VmmError for one that does not exist. */
export function chooseRules(only: readonly string[]): readonly RuleText[] {
  if (only.length === 0) return ALL_RULES;
  const watched: readonly string[] = [KERNEL_RULE.name, HANG_RULE.name];
  for (const name of only) {
    if (watched.includes(name)) {
      throw new VmmError(
        'usage',
        `--only ${name}: it is watched while other rules run; name the one that it came up in`,
      );
    }
    if (!ALL_RULES.some((rule) => matches(rule, name))) {
      throw new VmmError('usage', `--only ${name}: there is no such rule; \`ferry vfio check --rules\` lists them`);
    }
  }
  return ALL_RULES.filter((rule) => only.some((name) => matches(rule, name)));
}

function matches(rule: RuleText, name: string): boolean {
  return rule.name === name || rule.name.startsWith(`${name}.`);
}

export async function runCheck(
  children: RuleChildren,
  rules: readonly RuleText[],
  repeat: Repeat,
  seen: (result: RuleResult) => void,
): Promise<CheckReport> {
  const ready = await children.start();
  const own = ofGeneration(rules, ready);
  const results: RuleResult[] = [];
  const watched: Finding[] = [];
  for (const rule of own) {
    const result = await resultOf(children, rule, repeat);
    watched.push(...result.findings.filter((finding) => finding.rule !== rule.name));
    const kept = { ...result, findings: result.findings.filter((finding) => finding.rule === rule.name) };
    results.push(kept);
    seen(kept);
  }
  for (const row of watchedRows(ready, watched)) {
    results.push(row);
    seen(row);
  }
  return {
    device: repeat.deviceText,
    generation: ready.generation,
    facts: ready.facts,
    offers: ready.offers,
    exerciser: ready.exerciser,
    results,
    summary: summarize(results),
  };
}

/** A region device is not held to v2's rules, nor the other way round. */
function ofGeneration(rules: readonly RuleText[], { generation, facts }: Ready): readonly RuleText[] {
  const names = new Set(SUITES[generation].rules.map(({ name }) => name));
  const own = rules.filter(({ name }) => names.has(name));
  if (own.length > 0) return own;
  throw new VmmError(
    'usage',
    `--only: this device speaks ${generation} (${facts.join('; ')}), which none of those rules is about: name others, or --abi`,
  );
}

/** A child that does not start again is no reason to lose what was found before. */
async function resultOf(children: RuleChildren, rule: RuleText, repeat: Repeat): Promise<RuleResult> {
  const begun = performance.now();
  let ended: Ended;
  try {
    ended = await children.run(rule.name);
  } catch (error) {
    if (!(error instanceof VmmError)) throw error;
    ended = { kind: 'failed', message: error.message };
  }
  if (ended.kind === 'result') return ended.result;
  const ms = performance.now() - begun;
  const empty = { rule: rule.name, outcome: 'not reachable', notes: [], ms } as const;
  if (ended.kind === 'failed') return { ...empty, reason: ended.message, findings: [] };
  const finding = {
    rule: HANG_RULE.name,
    cites: HANG_RULE.cites,
    did: `ran ${rule.name}`,
    expected: 'every call ends',
    seen: ended.kind === 'hung' ? `no end within ${ended.ms / 1000} s: ${ended.stack}` : `ended by ${ended.signal}`,
    repeat: repeatOf(rule, repeat),
  };
  return { ...empty, reason: 'a call of it never ended', findings: [finding] };
}

function watchedRows(ready: Ready, findings: readonly Finding[]): RuleResult[] {
  return [KERNEL_RULE, HANG_RULE].map((watched) => {
    const own = findings.filter((finding) => finding.rule === watched.name);
    const deaf = watched === KERNEL_RULE && !ready.kernelLog;
    const outcome: Outcome = own.length > 0 ? 'finding' : deaf ? 'not exercised' : 'ok';
    const reason = deaf ? '/dev/kmsg cannot be read: run this as root' : null;
    return { rule: watched.name, outcome, reason, findings: own, notes: [], ms: 0 };
  });
}

function summarize(results: readonly RuleResult[]): Record<Outcome, number> {
  const count = (outcome: Outcome) => results.filter((each) => each.outcome === outcome).length;
  return {
    ok: count('ok'),
    finding: count('finding'),
    note: count('note'),
    'not exercised': count('not exercised'),
    'not reachable': count('not reachable'),
  };
}

/** 0 without findings; `strict`: and with everything exercised. */
export function exitCodeOf({ summary }: CheckReport, strict: boolean): number {
  return summary.finding > 0 || (strict && summary['not exercised'] > 0) ? 1 : 0;
}
