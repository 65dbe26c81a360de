// Rules: the progress line never shows more than 100% or less than 0; the report names every part of the downtime and every round.
import { describe, expect, it } from 'vitest';
import { bar, bytes, ProgressPrinter, progressLine, reportText } from '../../../cli/report.ts';
import type { MigrationProgress } from '../../../migration/api.ts';
import { outcome } from '../../fakes/control-machine.ts';

const PROGRESS: MigrationProgress = {
  phase: 'precopy',
  round: 3,
  totalBytes: 1000,
  sentBytes: 10,
  remainingBytes: 250,
  deviceBytes: 0,
  bytesPerSecond: 2048,
  dirtyPagesPerSecond: 9,
  expectedDowntimeMs: 44.4,
  zeroPages: 0,
  normalPages: 0,
  elapsedMs: 1,
  hint: null,
};

describe('progress', () => {
  it('draws the fraction that is done', () => {
    expect(progressLine(PROGRESS)).toContain(' 75%');
    expect(progressLine(PROGRESS)).toContain('downtime would be 44 ms');
    expect(progressLine({ ...PROGRESS, remainingBytes: 5000 })).toContain('  0%');
    expect(progressLine({ ...PROGRESS, totalBytes: 0, remainingBytes: 0 })).toContain('0%');
    expect(progressLine({ ...PROGRESS, hint: 'a limit of 900 ms would do' })).toContain('\na limit of 900 ms would do');
  });

  it('has bars of one length', () => {
    expect(new Set([-1, 0, 0.3, 1, 7].map((fraction) => bar(fraction).length)).size).toBe(1);
  });

  it('writes a line a phase or second where there is no terminal', () => {
    const lines: string[] = [];
    const printer = new ProgressPrinter({ write: (text) => lines.push(text) });
    printer.show(PROGRESS, 0);
    printer.show({ ...PROGRESS, remainingBytes: 100 }, 10);
    printer.show({ ...PROGRESS, remainingBytes: 50 }, 1100);
    printer.show({ ...PROGRESS, phase: 'switchover', remainingBytes: 0 }, 1101);
    expect(lines.length).toBe(3);
  });
});

describe('bytes', () => {
  it('counts in powers of 1024', () => {
    expect([0, 1023, 1024, 1536, 2 ** 31].map(bytes)).toEqual(['0 B', '1023 B', '1.0 KiB', '1.5 KiB', '2.0 GiB']);
  });
});

describe('reportText', () => {
  it('names each part of the downtime and the error', () => {
    const text = reportText(outcome('failed', 'the peer went away'));
    for (const piece of [
      'failed: the peer went away',
      'stop',
      'finalRam',
      'deviceData',
      'state',
      'load',
      'resume',
      'downtime 123.0 ms',
    ]) {
      expect(text).toContain(piece);
    }
  });
});
