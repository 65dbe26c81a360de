// Draws what `ferry vfio check` found: rows for people, TAP 13, and the list of rules. Pure text; cli/vfio-check.ts prints it.
// https://testanything.org/tap-version-13-specification.html
import type { CheckReport } from '../devices/vfio/check/check.ts';
import type { Finding, RuleResult } from '../devices/vfio/check/rule.ts';
import { HANG_RULE, KERNEL_RULE } from '../devices/vfio/check/rules.ts';
import { ALL_RULES } from '../devices/vfio/check/suites.ts';

const WIDTH = 15;

export function resultRow(result: RuleResult): string {
  const word = result.outcome === 'finding' ? 'FINDING' : result.outcome;
  const reason = result.reason === null ? '' : `  (${result.reason})`;
  const lines = [`${word.padEnd(WIDTH)}${result.rule}${reason}`];
  for (const finding of result.findings) lines.push(...findingLines(finding));
  for (const note of result.notes) lines.push(`  - ${note}`);
  return `${lines.join('\n')}\n`;
}

function findingLines(finding: Finding): string[] {
  return [
    `  ${finding.did}`,
    `    expected: ${finding.expected}`,
    `    seen:     ${finding.seen}`,
    `    vfio.h:   "${finding.cites}"`,
    `    again:    ${finding.repeat}`,
  ];
}

export function summaryText(report: CheckReport): string {
  const counts = Object.entries(report.summary).map(([outcome, count]) => `${count} ${outcome}`);
  const who = report.exerciser === null ? 'no exerciser' : `exerciser ${report.exerciser}`;
  const what = `${report.generation}: ${report.offers.join(' ')}; ${who}`;
  return `${report.generation}: ${report.facts.join('; ')}\n${report.device} (${what}): ${counts.join(', ')}\n`;
}

export function tapText(report: CheckReport): string {
  const lines = ['TAP version 13', `1..${report.results.length}`];
  report.results.forEach((result, i) => {
    const bad = result.outcome === 'finding';
    const skipped = result.outcome === 'not exercised' || result.outcome === 'not reachable';
    const skip = skipped ? ` # SKIP ${result.outcome}: ${oneLine(result.reason ?? '')}` : '';
    lines.push(`${bad ? 'not ok' : 'ok'} ${i + 1} - ${result.rule}${skip}`);
    for (const note of result.notes) lines.push(`# ${oneLine(note)}`);
    if (bad) lines.push('  ---', '  findings:', ...result.findings.flatMap(yamlLines), '  ...');
  });
  return `${lines.join('\n')}\n`;
}

function yamlLines({ did, expected, seen, cites, repeat }: Finding): string[] {
  const fields = Object.entries({ did, expected, seen, cites, repeat });
  return fields.map(([name, text], i) => `    ${i === 0 ? '- ' : '  '}${name}: ${JSON.stringify(text)}`);
}

function oneLine(text: string): string {
  return text.replace(/\s*\n\s*/g, ' ').replaceAll('#', '\\#');
}

/** `--rules`. */
export function rulesText(): string {
  const rows = [...ALL_RULES, KERNEL_RULE, HANG_RULE].map((rule) => {
    const needs = 'needs' in rule && rule.needs.length > 0 ? ` [needs ${rule.needs.join(', ')}]` : '';
    return `${rule.name.padEnd(25)}${rule.title}${needs}\n${' '.repeat(25)}"${rule.cites}"\n`;
  });
  return rows.join('');
}
