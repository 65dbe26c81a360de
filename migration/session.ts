// What the parts of one outgoing migration share: machine, stream, peer's answers, limits, the pages still to send. Made by source.ts, used
// by rounds.ts, switchover.ts and way-back.ts; no behaviour of its own beyond the device list.
import type { Device, Migratable } from '../devices/contract.ts';
import type { Machine, RunState } from '../vmm/api.ts';
import type { DirtyPages, MigrateOptions, MigrationProgress } from './api.ts';
import type { ReportBuilder } from './report.ts';
import type { ReturnListener } from './return-listener.ts';
import type { StopFlag } from './stop-flag.ts';
import type { OpenSection, StreamWriter } from './stream/writer.ts';

/** A device with bulk state; `section` is open once START has been sent. */
export interface LiveDevice {
  readonly device: Device;
  readonly live: Migratable;
  section: OpenSection | null;
}

export interface SourceSession {
  readonly machine: Machine;
  readonly options: MigrateOptions;
  readonly writer: StreamWriter;
  readonly returns: ReturnListener;
  readonly stop: StopFlag;
  readonly report: ReportBuilder;
  readonly live: readonly LiveDevice[];
  ramSection: OpenSection | null;
  limits: { downtimeLimitMs: number; maxBandwidth: number };
  progress: MigrationProgress;
  /** Said for as long as there is no other hint. */
  notice: string | null;
  /** What saving the platform's states takes on this host. */
  saveMs: number;
  /** What the collect found on which the switch-over was decided: it is sent in the last round. */
  unsent: DirtyPages | null;
  /** What the run state was before the pause; null: not paused by this migration. */
  stateBefore: RunState | null;
  pausedAt: number;
  /** From the last section on its way to PONG received: transit and the destination's load, which its report tells apart. */
  answerWaitMs: number;
  /** When the last PONG had been taken, on performance.now(): the hand-over counts from there. */
  answeredAt: number;
  /** PINGs of keepTalking() so far. */
  alivePings: number;
  interruptsDetached: boolean;
  trackingOn: boolean;
  /** A new round has begun: MIGRATION_PASS. */
  onPass(pass: number): void;
}

export function liveDevices(machine: Machine): LiveDevice[] {
  const live: LiveDevice[] = [];
  for (const device of machine.devices)
    if (device.live !== null) live.push({ device, live: device.live, section: null });
  return live;
}

/** A section that must be open by now; a programming error otherwise. */
export function opened(section: OpenSection | null): OpenSection {
  if (section === null) throw new Error('a section is used before its START was sent');
  return section;
}
