// Rules: each thing that main-job.md wants of report.json is a fault when it does not hold; a console tells who waits why it ended.
import { describe, expect, it } from 'vitest';
import { ConsoleLog, outerGap } from '../../../cli/demo-console.ts';
import { type DemoReport, demoFaults, demoReport } from '../../../cli/demo-report.ts';
import { judge } from '../../../images/guest/verdict.ts';
import { outcome } from '../../fakes/control-machine.ts';

const GOOD: DemoReport = {
  guest: {
    ticks: 100,
    lostTicks: 0,
    memoryChecks: 1,
    memoryErrors: 0,
    dmaChecks: 1,
    dmaErrors: 0,
    irqs: 1,
    irqErrors: 0,
    maxGapMs: 60,
  },
  device: { bdf: '0000:00:11.0', driver: 'd', abi: 'v2', flags: [], preCopyBytes: 10, stopCopyBytes: 4200 },
  dirty: { kvm: 5, vmm: 0, deviceLog: 3, region: null, container: null, iommufd: null },
  migration: {
    rounds: [1, 2].map((n) => ({
      n,
      ms: 1,
      sentPages: 1,
      zeroPages: 0,
      dirty: { kvm: 1, vmm: 0, deviceLog: 0, region: null, container: null, iommufd: null },
      ended: 'x',
    })),
    totalMs: 2000,
    downtimeMs: 500,
    downtime: { stop: 100, finalRam: 100, deviceData: 100, state: 50, load: 100, resume: 50 },
    bytes: { ram: 1, zeroPages: 1, device: 1, state: 1 },
    outerGapMs: 600,
    outerPauseMs: 540,
  },
};

describe('demoFaults', () => {
  it('finds nothing in a good report', () => {
    expect(demoFaults(GOOD, true)).toEqual([]);
  });

  it.each<[string, DemoReport, boolean]>([
    ['pre-copy', { ...GOOD, device: { ...GOOD.device, preCopyBytes: 0 } }, true],
    ['stop-copy', { ...GOOD, device: { ...GOOD.device, stopCopyBytes: 4095 } }, true],
    ["KVM's log", { ...GOOD, dirty: { ...GOOD.dirty, kvm: 0 } }, true],
    ["device's log", { ...GOOD, dirty: { ...GOOD.dirty, deviceLog: 0 } }, true],
    ["device's log", GOOD, false],
    ["container's", { ...GOOD, dirty: { ...GOOD.dirty, deviceLog: null, region: null, container: 0 } }, false],
    ['one round', { ...GOOD, migration: { ...GOOD.migration, rounds: GOOD.migration.rounds.slice(1) } }, true],
    [
      'add up',
      { ...GOOD, migration: { ...GOOD.migration, downtime: { ...GOOD.migration.downtime, load: 200 } } },
      true,
    ],
    ['from outside', { ...GOOD, migration: { ...GOOD.migration, outerPauseMs: 751 } }, true],
    ['from outside', { ...GOOD, migration: { ...GOOD.migration, outerPauseMs: Number.NaN } }, true],
    ['did not tick', { ...GOOD, guest: { ...GOOD.guest, ticks: 0 } }, true],
  ])('says when %s is not right', (words, report, deviceLog) => {
    expect(demoFaults(report, deviceLog).join()).toContain(words);
  });
});

describe('demoReport', () => {
  it('takes the guest from both consoles and the rest from the migration', () => {
    const verdict = judge(['tick n=1 t=50000000\ntick n=2 t=100000000\n', 'tick n=3 t=150000000\n']);
    const report = demoReport({
      verdict,
      outcome: outcome('completed'),
      device: { bdf: 'b', driver: 'd', abi: 'v2', flags: ['P2P'] },
      gap: { outerGapMs: 7, outerPauseMs: 3 },
      exitCode: 0,
    });
    expect(report.guest).toMatchObject({ ticks: 3, lostTicks: 0, maxGapMs: 50 });
    expect(report.migration).toMatchObject({ downtimeMs: 123, outerGapMs: 7, outerPauseMs: 3 });
    expect(report.device).toMatchObject({ bdf: 'b', preCopyBytes: 0 });
  });
});

describe('ConsoleLog', () => {
  it('notes when whole tick lines arrived, also when they come in pieces', () => {
    const console = new ConsoleLog();
    console.push(Buffer.from('boot\ntick n=1 t='), 10);
    expect(console.ticks).toBe(0);
    console.push(Buffer.from('5\r\ntick n=2 t=9\r\n'), 20);
    expect(console.tickLines.map(({ at }) => at)).toEqual([20, 20]);
  });

  it('tells the pause from the time that the guest ran, and from what lines waited: its own clock stands still in the pause', () => {
    const [source, destination] = [new ConsoleLog(), new ConsoleLog()];
    const tick = (guestMs: number) => Buffer.from(`tick n=1 t=${guestMs}000000\n`);
    // Lines come 5 ms late at best; the last one before the pause and the first one after it are later. The pause is 400 ms.
    source.push(tick(1000), 100 + 5);
    source.push(tick(1050), 150 + 80);
    destination.push(tick(1250), 750 + 90);
    destination.push(tick(1300), 800 + 5);
    expect(outerGap(source, destination)).toEqual({ outerGapMs: 610, outerPauseMs: 400 });
    expect(outerGap(source, new ConsoleLog())).toEqual({ outerGapMs: Number.NaN, outerPauseMs: Number.NaN });
  });

  it('rejects who waits when the process behind it ends, naming why, or in time', async () => {
    const console = new ConsoleLog();
    const waiting = console.until('a tick', ({ ticks }) => ticks > 0, 60_000);
    console.close('ferry run ended with 2');
    await expect(waiting).rejects.toThrow('a tick did not come: ferry run ended with 2');
    await expect(new ConsoleLog().until('a tick', () => false, 20)).rejects.toThrow('did not come within');
  });
});
