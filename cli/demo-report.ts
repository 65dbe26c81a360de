// out/demo/report.json: the workload's verdict over both consoles, the device, and the migration's own report; and what must hold of it for
// the demo to have succeeded. Pure; called by demo.ts, and by the lab tests through demo-run.ts.
import type { GuestVerdict } from '../images/guest/verdict.ts';
import type { DirtyPages, MigrationOutcome, MigrationReport } from '../migration/api.ts';
import type { OuterGap } from './demo-console.ts';

export interface DemoDevice {
  readonly bdf: string;
  readonly driver: string;
  readonly abi: string;
  readonly flags: readonly string[];
}

export interface DemoReport {
  readonly guest: {
    readonly ticks: number;
    readonly lostTicks: number;
    readonly memoryChecks: number;
    readonly memoryErrors: number;
    readonly dmaChecks: number;
    readonly dmaErrors: number;
    readonly irqs: number;
    readonly irqErrors: number;
    readonly maxGapMs: number;
  };
  readonly device: DemoDevice & { readonly preCopyBytes: number; readonly stopCopyBytes: number };
  readonly dirty: DirtyPages;
  readonly migration: Pick<MigrationReport, 'rounds' | 'totalMs' | 'downtimeMs' | 'downtime' | 'bytes'> & OuterGap;
}

export interface DemoFindings {
  readonly verdict: GuestVerdict;
  readonly outcome: MigrationOutcome;
  readonly device: DemoDevice;
  readonly gap: OuterGap;
  /** The exit code of the process that ran the guest last. */
  readonly exitCode: number | null;
}

export function demoReport({ verdict, outcome, device, gap }: DemoFindings): DemoReport {
  const { rounds, totalMs, downtimeMs, downtime, bytes, dirty, devices } = outcome.report;
  return {
    guest: {
      ticks: verdict.ticks,
      lostTicks: verdict.lostTicks,
      memoryChecks: verdict.memoryChecks,
      memoryErrors: verdict.memoryErrors,
      dmaChecks: verdict.dmaChecks,
      dmaErrors: verdict.dmaErrors,
      irqs: verdict.irqs,
      irqErrors: verdict.irqErrors,
      maxGapMs: verdict.maxGapMs,
    },
    device: {
      ...device,
      preCopyBytes: devices.reduce((sum, each) => sum + each.preCopyBytes, 0),
      stopCopyBytes: devices.reduce((sum, each) => sum + each.stopCopyBytes, 0),
    },
    dirty,
    migration: { rounds, totalMs, downtimeMs, downtime, ...gap, bytes },
  };
}

/** By how much the two views of the pause may differ: main-job.md, report.json. */
const PAUSE_TOLERANCE_MS = 250;

/**
 * What the demo's own numbers must be like: main-job.md, report.json. `deviceLog`: the device's log was in use. `toleranceMs`: of the two
 * views of the pause. Empty: all is well.
 */
export function demoFaults(report: DemoReport, deviceLog: boolean, toleranceMs = PAUSE_TOLERANCE_MS): string[] {
  const { guest, device, dirty, migration } = report;
  const parts = Object.values(migration.downtime).reduce((sum, part) => sum + part, 0);
  const apart = Math.abs(parts - migration.downtimeMs);
  const rules: [boolean, string][] = [
    [device.preCopyBytes > 0, 'the device sent nothing in pre-copy'],
    [device.stopCopyBytes >= 4096, `the device sent only ${device.stopCopyBytes} bytes in stop-copy`],
    [(dirty.kvm ?? 0) > 0, "KVM's log reported no page"],
    [deviceLog ? (dirty.deviceLog ?? 0) > 0 : dirty.deviceLog === null, `the device's log: ${dirty.deviceLog}`],
    [deviceLog || (dirty.container ?? 0) > 0, "the container's dirty pages: none"],
    [migration.rounds.length > 1, 'there was only one round'],
    [
      apart <= Math.max(20, migration.downtimeMs * 0.1),
      `the parts of the downtime add up to ${parts.toFixed(1)} ms, not ${migration.downtimeMs.toFixed(1)} ms`,
    ],
    [
      Math.abs(migration.downtimeMs - migration.outerPauseMs) <= toleranceMs,
      `the downtime was ${migration.downtimeMs.toFixed(0)} ms, but as seen from outside the guest's clock stood still for ${migration.outerPauseMs.toFixed(0)} ms`,
    ],
    [guest.ticks > 0, 'the guest did not tick'],
  ];
  return rules.filter(([holds]) => !holds).map(([, sentence]) => sentence);
}
