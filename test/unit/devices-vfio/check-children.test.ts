// The parent of `ferry vfio check`: a child that hangs, that the kernel kills or that cannot open the device; what the report makes of them, and
// of the kernel's complaints; and the child's own loop over rule names.
import { describe, expect, it } from 'vitest';
import { chooseRules, exitCodeOf, runCheck } from '../../../devices/vfio/check/check.ts';
import { type FromChild, RuleChildren } from '../../../devices/vfio/check/children.ts';
import type { RuleResult } from '../../../devices/vfio/check/rule.ts';
import { serveLines } from '../../../devices/vfio/check/serve.ts';
import { ALL_RULES, SUITES } from '../../../devices/vfio/check/suites.ts';
import { CheckKernel } from '../../fakes/check-kernel.ts';

/** A child in a few words: what it does with the name of a rule. */
function children(
  onRule: string,
  limitMs = 20_000,
  first = 'send({ kind: "ready", generation: "v2", facts: [], exerciser: null, offers: ["STOP_COPY"], kernelLog: true })',
) {
  const script = `
    const send = (message) => require('node:fs').writeSync(3, JSON.stringify(message) + '\\n');
    const ok = (rule) => send({ kind: 'result', result: { rule, outcome: 'ok', reason: null, findings: [], notes: [], ms: 1 } });
    require('node:readline').createInterface({ input: process.stdin }).on('line', (rule) => { ${onRule} });
    ${first};`;
  return new RuleChildren({ file: process.execPath, args: ['-e', script], limitMs, proc: '/proc' });
}

const NONE = { second: null, 'other-size': null };
const REPEAT = { deviceText: '0000:65:00.0', exerciserFile: null, destructive: false, abi: null, besideTexts: NONE };
const TWO = chooseRules(['states.flags', 'states.get']);
const row = (results: readonly RuleResult[], rule: string) => results.find((each) => each.rule === rule);

async function report(onRule: string, limitMs?: number) {
  const own = children(onRule, limitMs);
  try {
    return await runCheck(own, TWO, REPEAT, () => {});
  } finally {
    await own.close();
  }
}

describe('a check in children', () => {
  it('runs the rules of the generation that the device speaks, and no others', async () => {
    const ready = `send({ kind: "ready", generation: "v1", facts: ["a fact"], exerciser: null, offers: [], kernelLog: true })`;
    const own = children('ok(rule)', 20_000, ready);
    const both = chooseRules(['states.flags', 'region.first', 'pfns']);
    const seen = await runCheck(own, both, REPEAT, () => {});
    expect(seen).toMatchObject({ generation: 'v1', facts: ['a fact'] });
    expect(seen.results.map(({ rule }) => rule)).toEqual(['region.first', 'kernel.log', 'calls.end']);
    const none = runCheck(own, chooseRules(['states', 'pfns']), REPEAT, () => {});
    await expect(none).rejects.toThrow('this device speaks v1 (a fact), which none of those rules is about');
    await own.close();
  });

  it('is without findings when every rule is', async () => {
    const seen = await report('ok(rule)');
    expect(seen.summary).toEqual({ ok: 4, finding: 0, note: 0, 'not exercised': 0, 'not reachable': 0 });
    expect(exitCodeOf(seen, true)).toBe(0);
  });

  it('makes a call that never ends a finding with its stacks, and goes on with a new child', async () => {
    const seen = await report('if (rule === "states.get") ok(rule)', 1500);
    expect(row(seen.results, 'states.flags')?.outcome).toBe('not reachable');
    expect(row(seen.results, 'states.get')?.outcome).toBe('ok');
    const [finding] = row(seen.results, 'calls.end')?.findings ?? [];
    expect(finding).toMatchObject({
      did: 'ran states.flags',
      repeat: 'ferry vfio check 0000:65:00.0 --only states.flags',
    });
    expect(finding?.seen).toMatch(/^no end within 1\.5 s: (\(its kernel stacks cannot be read|.*[a-z_]+\+0x)/);
    expect(exitCodeOf(seen, false)).toBe(1);
  });

  it('lets a rule take long whose calls end, one after the other', async () => {
    const alive = "const beat = setInterval(() => send({ kind: 'alive' }), 200)";
    const seen = await report(`${alive}; setTimeout(() => { clearInterval(beat); ok(rule); }, 2500)`, 1500);
    expect(seen.summary).toMatchObject({ ok: 4, finding: 0 });
  });

  it('stops waiting after three rules that never ended', async () => {
    const own = children('', 700);
    const five = chooseRules(['size', 'states.flags', 'states.get', 'states.same']);
    const seen = await runCheck(own, five, REPEAT, () => {});
    await own.close();
    expect(row(seen.results, 'calls.end')?.findings.length).toBe(3);
    expect(seen.results.filter(({ reason }) => reason === '3 rules before it never ended').length).toBe(2);
  });

  it('makes a child that was killed under a rule a finding', async () => {
    const seen = await report('if (rule === "states.flags") process.kill(process.pid, "SIGKILL"); else ok(rule)');
    expect(row(seen.results, 'calls.end')?.findings[0]?.seen).toBe('ended by SIGKILL');
    expect(row(seen.results, 'states.get')?.outcome).toBe('ok');
  });

  it('calls a mistake of its own no finding', async () => {
    const seen = await report('if (rule === "states.flags") send({ kind: "failed", message: "oops" }); else ok(rule)');
    expect(row(seen.results, 'states.flags')).toMatchObject({ outcome: 'not reachable', reason: 'oops' });
    expect(seen.summary.finding).toBe(0);
  });

  it("gathers the kernel's complaints of all rules in a row of their own", async () => {
    const finding = '{ rule: "kernel.log", cites: "", did: "ran " + rule, expected: "", seen: "WARNING", repeat: "" }';
    const result = `{ rule, outcome: 'ok', reason: null, findings: [${finding}], notes: [], ms: 1 }`;
    const seen = await report(`send({ kind: 'result', result: ${result} })`);
    expect(row(seen.results, 'states.flags')).toMatchObject({ outcome: 'ok', findings: [] });
    expect(row(seen.results, 'kernel.log')?.findings.map(({ did }) => did)).toEqual([
      'ran states.flags',
      'ran states.get',
    ]);
  });

  it('ends with the line of a device that cannot be opened', async () => {
    const refusal = 'send({ kind: "refused", code: "vfio-busy", message: "it is in use", exitCode: 2 })';
    const own = children('ok(rule)', 20_000, refusal);
    await expect(own.start()).rejects.toMatchObject({ message: 'it is in use', exitCode: 2 });
  });

  it('says so when the child ends before it has opened anything', async () => {
    await expect(children('', 20_000, 'process.exit(3)').start()).rejects.toThrow(
      'ended before it had opened the device',
    );
  });

  it('fails by --strict alone for what was not exercised', async () => {
    const own = "{ rule, outcome: 'not exercised', reason: 'x', findings: [], notes: [], ms: 1 }";
    const seen = await report(`send({ kind: 'result', result: ${own} })`);
    expect(exitCodeOf(seen, false)).toBe(0);
    expect(exitCodeOf(seen, true)).toBe(1);
  });
});

describe('--only', () => {
  it('takes a rule or an area, and refuses what there is not', () => {
    expect(chooseRules(['fd.end']).map(({ name }) => name)).toEqual(['fd.end']);
    expect(chooseRules(['size', 'fd.end']).map(({ name }) => name)).toEqual(['fd.end', 'size.states', 'size.estimate']);
    expect(chooseRules([])).toBe(ALL_RULES);
    expect(() => chooseRules(['fd'])).not.toThrow();
    expect(() => chooseRules(['f'])).toThrow('--only f: there is no such rule');
    expect(() => chooseRules(['kernel.log'])).toThrow('watched while other rules run');
  });
});

describe('the child', () => {
  it('runs what it is told, and says of an unknown rule that there is none', async () => {
    const kernel = new CheckKernel({ quirks: ['bounds'] });
    const sent: FromChild[] = [];
    async function* lines() {
      yield 'states.flags';
      yield 'states.numbers';
      yield 'no.such';
    }
    const host = {
      place: kernel.place,
      exerciser: null,
      beside: NONE,
      settleMs: 1,
      proc: '/proc',
      kernel: { take: () => [], close: () => {} },
      loops: 1,
      destructive: false,
      deviceText: 'x',
      exerciserFile: null,
      abi: null,
      besideTexts: NONE,
    };
    await serveLines(SUITES.v2, host, lines(), (message) => sent.push(message));
    expect(sent).toMatchObject([
      { kind: 'result', result: { rule: 'states.flags', outcome: 'ok' } },
      { kind: 'result', result: { rule: 'states.numbers', outcome: 'finding' } },
      { kind: 'failed', message: 'there is no rule no.such' },
    ]);
    await kernel.place.close();
  });
});
