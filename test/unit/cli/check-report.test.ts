// What `ferry vfio check` prints: rows with everything that a finding needs, TAP 13 that a harness can read, and a list of rules that is whole.
import { describe, expect, it } from 'vitest';
import { resultRow, rulesText, summaryText, tapText } from '../../../cli/check-report.ts';
import { checkDevice } from '../../../cli/vfio-check.ts';
import type { CheckReport } from '../../../devices/vfio/check/check.ts';
import { RULES } from '../../../devices/vfio/check/rules.ts';

const finding = {
  rule: 'states.numbers',
  cites: 'From enum vfio_device_mig_state',
  did: 'SET 8 in RUNNING',
  expected: 'an error',
  seen: 'success, "in" RUNNING',
  repeat: 'ferry vfio check 0000:65:00.0 --only states.numbers',
};
const plain = { reason: null, findings: [], notes: [], ms: 1 };
const report: CheckReport = {
  generation: 'v2',
  facts: ['it has VFIO_DEVICE_FEATURE_MIGRATION'],
  device: '0000:65:00.0',
  offers: ['STOP_COPY', 'P2P'],
  exerciser: null,
  results: [
    { rule: 'states.flags', outcome: 'ok', ...plain },
    { rule: 'states.numbers', outcome: 'finding', ...plain, findings: [finding] },
    { rule: 'timing.arcs', outcome: 'note', ...plain, notes: ['STOP -> STOP_COPY: p50 1.0 ms'] },
    { rule: 'quiet.dma', outcome: 'not exercised', ...plain, reason: 'needs an exerciser' },
  ],
  summary: { ok: 1, finding: 1, note: 1, 'not exercised': 1, 'not reachable': 0 },
};

describe('ferry vfio check prints', () => {
  it('a finding with what was done, expected, seen, the sentence and the command', () => {
    const row = resultRow(report.results[1]!);
    for (const text of ['FINDING', finding.did, finding.expected, finding.seen, finding.cites, finding.repeat]) {
      expect(row).toContain(text);
    }
  });

  it('the reason why a rule was not exercised, and the sum', () => {
    expect(resultRow(report.results[3]!)).toBe('not exercised  quiet.dma  (needs an exerciser)\n');
    expect(summaryText(report)).toBe(
      'v2: it has VFIO_DEVICE_FEATURE_MIGRATION\n0000:65:00.0 (v2: STOP_COPY P2P; no exerciser): 1 ok, 1 finding, 1 note, 1 not exercised, 0 not reachable\n',
    );
  });

  it('TAP 13: plan, results, skips, and findings as YAML', () => {
    expect(tapText(report)).toBe(`TAP version 13
1..4
ok 1 - states.flags
not ok 2 - states.numbers
  ---
  findings:
    - did: "SET 8 in RUNNING"
      expected: "an error"
      seen: "success, \\"in\\" RUNNING"
      cites: "From enum vfio_device_mig_state"
      repeat: "ferry vfio check 0000:65:00.0 --only states.numbers"
  ...
ok 3 - timing.arcs
# STOP -> STOP_COPY: p50 1.0 ms
ok 4 - quiet.dma # SKIP not exercised: needs an exerciser
`);
  });

  it('every rule with a sentence, each name once', () => {
    const names = RULES.map(({ name }) => name);
    expect(new Set(names).size).toBe(names.length);
    for (const name of names) expect(rulesText()).toContain(`${name} `);
    for (const { cites } of RULES) expect(cites.length).toBeGreaterThan(10);
  });
});

describe('ferry vfio check refuses', () => {
  it.each([
    [[], 'one device is wanted'],
    [['0000:65:00.0', 'more'], 'one device is wanted'],
    [['0000:65:00.0', '--json', '--tap'], 'exclude each other'],
    [['0000:65:00.0', '--only', 'nothing'], 'there is no such rule'],
    [['0000:65:00.0', '--abi', 'v9'], 'there is no such generation'],
    [['0000:65:00.0', '--exerciser', '/nowhere.mjs'], 'there is no such file'],
    [['65'], 'not a PCI address'],
    [['0000:65:00.0', '--second'], 'argument missing'],
    [['/sys/no/such'], 'there is no /sys/no/such'],
    [['/sys/devices'], 'has no iommu_group'],
  ] as const)('%j: %s', async (args, message) => {
    await expect(checkDevice(args)).rejects.toMatchObject({
      exitCode: 2,
      message: expect.stringContaining(message),
    });
  });
});
