// Draws a migration for people: a progress bar per phase while it runs, the report when it has ended. Pure text; cli/migrate.ts and the demo print.
import type { MigrationOutcome, MigrationProgress, MigrationReport } from '../migration/api.ts';

const BAR = 24;

export function bar(fraction: number): string {
  const filled = Math.round(Math.min(1, Math.max(0, fraction)) * BAR);
  return `[${'#'.repeat(filled)}${'.'.repeat(BAR - filled)}]`;
}

export function bytes(count: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let value = count;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${unit === 0 ? value : value.toFixed(1)} ${units[unit]}`;
}

const PHASES: Readonly<Record<MigrationProgress['phase'], string>> = {
  setup: 'setup     ',
  precopy: 'pre-copy  ',
  switchover: 'switchover',
  handover: 'hand-over ',
  ended: 'ended     ',
};

export function progressLine(progress: MigrationProgress): string {
  const done = progress.totalBytes === 0 ? 0 : 1 - progress.remainingBytes / progress.totalBytes;
  const parts = [
    `${PHASES[progress.phase]} ${bar(done)} ${String(Math.floor(Math.max(0, Math.min(1, done)) * 100)).padStart(3)}%`,
    `round ${progress.round}`,
    `${bytes(progress.remainingBytes)} left`,
    `${bytes(progress.bytesPerSecond)}/s`,
  ];
  if (progress.dirtyPagesPerSecond > 0) parts.push(`${Math.round(progress.dirtyPagesPerSecond)} dirty pages/s`);
  if (progress.expectedDowntimeMs !== null)
    parts.push(`downtime would be ${Math.round(progress.expectedDowntimeMs)} ms`);
  return parts.join('  ') + (progress.hint === null ? '' : `\n${progress.hint}`);
}

function downtimeRows(report: MigrationReport): string[] {
  const total = Math.max(1, report.downtimeMs);
  return Object.entries(report.downtime).map(
    ([name, ms]) => `    ${name.padEnd(12)} ${ms.toFixed(1).padStart(8)} ms  ${bar(ms / total)}`,
  );
}

function roundRows(report: MigrationReport): string[] {
  return report.rounds.map((round) => {
    const dirty = Object.entries(round.dirty)
      .filter(([, pages]) => pages !== null)
      .map(([name, pages]) => `${name} ${pages}`)
      .join(', ');
    return `    ${String(round.n).padStart(3)}  ${round.ms.toFixed(0).padStart(7)} ms  ${String(round.sentPages).padStart(8)} pages + ${String(round.zeroPages).padStart(7)} zero   ${dirty}   ${round.ended}`;
  });
}

export function reportText(outcome: MigrationOutcome): string {
  const { report } = outcome;
  const lines = [
    `migration ${outcome.status}${outcome.error === null ? '' : `: ${outcome.error}`}`,
    `  total ${report.totalMs.toFixed(0)} ms, downtime ${report.downtimeMs.toFixed(1)} ms`,
    `  sent: RAM ${bytes(report.bytes.ram)}, ${report.bytes.zeroPages} zero pages, device ${bytes(report.bytes.device)}, state ${bytes(report.bytes.state)}`,
  ];
  if (report.rounds.length > 0) lines.push('  rounds', ...roundRows(report));
  if (report.downtimeMs > 0) lines.push('  downtime', ...downtimeRows(report));
  for (const device of report.devices) {
    lines.push(
      `  device ${device.id}: ${bytes(device.preCopyBytes)} in pre-copy, ${bytes(device.stopCopyBytes)} in stop-copy${device.lateValidation ? '; its driver judged its state only after the hand-over' : ''}`,
    );
  }
  return `${lines.join('\n')}\n`;
}

/** On a terminal one line is drawn over and over; elsewhere a line a phase or second. */
export class ProgressPrinter {
  readonly #out: { write(text: string): unknown; readonly isTTY?: boolean };
  #last = '';
  #lastPhase = '';
  #lastTime = 0;
  #drawn = false;

  constructor(out: { write(text: string): unknown; readonly isTTY?: boolean }) {
    this.#out = out;
  }

  show(progress: MigrationProgress, nowMs: number): void {
    const text = progressLine(progress);
    if (text === this.#last) return;
    if (this.#out.isTTY === true) {
      this.#out.write(`\r\x1b[K${text.split('\n')[0] ?? ''}`);
      if (progress.phase !== this.#lastPhase && this.#drawn) this.#out.write('\n');
      this.#drawn = true;
    } else if (progress.phase !== this.#lastPhase || nowMs - this.#lastTime >= 1000) {
      this.#out.write(`${text}\n`);
      this.#lastTime = nowMs;
    }
    this.#last = text;
    this.#lastPhase = progress.phase;
  }

  end(): void {
    if (this.#drawn) this.#out.write('\n');
    this.#drawn = false;
  }
}
