// What a migration is to control and cli. Types only; implemented by source.ts and destination.ts.
//   source.ts       migrateTo(machine: Machine, peer: Channel, options: MigrateOptions): Migration
//   destination.ts  receiveFrom(peer: Channel, host: ReceiveHost): Incoming
import type { DeviceConfig, DirtyLogChoice, Machine, MachineHost } from '../vmm/api.ts';

/** QEMU's MigrationStatus words, those that we have. */
export type MigrationStatus =
  | 'none'
  | 'setup'
  | 'active'
  | 'device'
  | 'completed'
  | 'failed'
  | 'cancelling'
  | 'cancelled';

export interface MigrateOptions {
  readonly downtimeLimitMs: number;
  /** Bytes per second; 0: no limit. */
  readonly maxBandwidth: number;
  /** Ends a migration that does not converge, as a failure. null: never. */
  readonly timeoutMs: number | null;
  /** false: the device's DMA log is not used, the container's dirty pages are. */
  readonly deviceLog: boolean;
  /** Negative controls of the tests: what is collected is thrown away. */
  readonly testDrop: 'deviceLog' | 'kvmLastRound' | 'deviceState' | null;
  /** The peer is a real QEMU: no ferry sections, no CRC, no PING/PONG hand-over. */
  readonly peerIsQemu: boolean;
}

export interface Migration {
  readonly status: MigrationStatus;
  readonly progress: MigrationProgress;
  /** Resolves (never rejects) when it has ended one way or another; the guest runs at exactly one side then. */
  readonly done: Promise<MigrationOutcome>;
  /** Before EOF: same as a failure, reported as cancelled. After: false, refused. */
  cancel(): boolean;
  setLimits(limits: { downtimeLimitMs?: number; maxBandwidth?: number }): void;
  onChange(listener: (status: MigrationStatus, pass: number | null) => void): void;
}

export interface MigrationOutcome {
  readonly status: 'completed' | 'failed' | 'cancelled';
  readonly error: string | null;
  /** true when EOF was sent but SHUT never came: the guest may run at the destination. */
  readonly unanswered: boolean;
  readonly report: MigrationReport;
}

export interface MigrationProgress {
  readonly phase: 'setup' | 'precopy' | 'switchover' | 'handover' | 'ended';
  readonly round: number;
  readonly totalBytes: number;
  readonly sentBytes: number;
  readonly remainingBytes: number;
  readonly deviceBytes: number;
  readonly bytesPerSecond: number;
  readonly dirtyPagesPerSecond: number;
  readonly expectedDowntimeMs: number | null;
  readonly zeroPages: number;
  readonly normalPages: number;
  readonly elapsedMs: number;
  /** "does not converge: … ; a limit of N ms would do", or null. */
  readonly hint: string | null;
}

/** Pages that each source alone returned, without the initial full pass; null = not in use. */
export interface DirtyPages {
  readonly kvm: number | null;
  readonly vmm: number | null;
  readonly deviceLog: number | null;
  /** What devices report through a migration region (the interfaces of 2019). */
  readonly region: number | null;
  readonly container: number | null;
  readonly iommufd: number | null;
}
export interface RoundReport {
  readonly n: number;
  readonly ms: number;
  readonly sentPages: number;
  readonly zeroPages: number;
  readonly dirty: DirtyPages;
  readonly ended: string;
}
export interface MigrationReport {
  readonly rounds: readonly RoundReport[];
  readonly totalMs: number;
  /** Source clock alone: from pause begun to SHUT received. */
  readonly downtimeMs: number;
  /** load and resume come from the destination's own report. */
  readonly downtime: {
    readonly stop: number;
    readonly finalRam: number;
    readonly deviceData: number;
    readonly state: number;
    readonly load: number;
    readonly resume: number;
  };
  readonly bytes: { readonly ram: number; readonly zeroPages: number; readonly device: number; readonly state: number };
  readonly dirty: DirtyPages;
  readonly devices: readonly {
    readonly id: string;
    readonly preCopyBytes: number;
    readonly stopCopyBytes: number;
    /** Its driver could judge what it was given only after the hand-over, on the way to RUNNING. */
    readonly lateValidation: boolean;
  }[];
}

/** Host-side options of `ferry receive`. memory and cpus, where given, must match the stream's. */
export interface ReceiveHost extends MachineHost {
  readonly devices: readonly DeviceConfig[];
  readonly memory: number | null;
  readonly cpus: number | null;
  readonly preallocate: boolean;
  readonly dirtyLog: DirtyLogChoice;
  readonly clock: 'stop' | 'catch-up';
}

export interface Incoming {
  readonly status: MigrationStatus;
  /** Resolves with the running machine after hand-over; rejects with StreamError/VmmError, having put everything back. */
  readonly machine: Promise<Machine>;
  cancel(): void;
  onChange(listener: (status: MigrationStatus) => void): void;
}
