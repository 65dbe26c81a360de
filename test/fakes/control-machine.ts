// A Machine and a MigrationDoor for control's tests: they remember what was asked and hold their state; no vCPU, no peer.
import type { MigrationDoor, PeerListener } from '../../control/migration-door.ts';
import type { Migration, MigrationOutcome, MigrationProgress, MigrationReport } from '../../migration/api.ts';
import type { Channel } from '../../native/addon.ts';
import type { Machine, MachineEnd, MachineEvent, RunState } from '../../vmm/api.ts';

export class ControlMachine {
  state: RunState = 'running';
  readonly calls: string[] = [];
  readonly config = { cpus: 2, name: 'g1' };
  blocker: string | null = null;
  readonly #listeners = new Set<(event: MachineEvent) => void>();
  readonly ended = new Promise<MachineEnd>(() => {});

  get devices(): object[] {
    return [{ id: 'edu0', type: 'vfio-pci', live: { blocker: () => this.blocker } }];
  }
  asMachine(): Machine {
    return this as unknown as Machine;
  }
  on(listener: (event: MachineEvent) => void): { remove(): void } {
    this.#listeners.add(listener);
    return { remove: () => this.#listeners.delete(listener) };
  }
  emit(event: MachineEvent): void {
    for (const listener of this.#listeners) listener(event);
  }
  async start(): Promise<void> {
    this.calls.push('start');
    this.state = 'running';
    this.emit({ event: 'RESUME' });
  }
  async pause(into: 'paused' | 'finish-migrate'): Promise<void> {
    this.calls.push(`pause ${into}`);
    this.state = into;
    this.emit({ event: 'STOP' });
  }
  async reset(reason: string): Promise<void> {
    this.calls.push(`reset ${reason}`);
    this.emit({ event: 'RESET', guest: false, reason: 'host-qmp-system-reset' });
  }
  powerdown(): void {
    this.calls.push('powerdown');
    this.emit({ event: 'POWERDOWN' });
  }
  end(reason: string, code: number): void {
    this.calls.push(`end ${reason} ${code}`);
  }
}

const PROGRESS: MigrationProgress = {
  phase: 'precopy',
  round: 2,
  totalBytes: 1 << 28,
  sentBytes: 1 << 20,
  remainingBytes: 1 << 24,
  deviceBytes: 4096,
  bytesPerSecond: 1e7,
  dirtyPagesPerSecond: 100,
  expectedDowntimeMs: 120,
  zeroPages: 7,
  normalPages: 11,
  elapsedMs: 500,
  hint: null,
};

const REPORT: MigrationReport = {
  rounds: [],
  totalMs: 1000,
  downtimeMs: 123,
  downtime: { stop: 1, finalRam: 1, deviceData: 1, state: 1, load: 1, resume: 1 },
  bytes: { ram: 1, zeroPages: 1, device: 1, state: 1 },
  dirty: { kvm: 1, vmm: null, deviceLog: null, region: null, container: null, iommufd: null },
  devices: [],
};

export function outcome(status: MigrationOutcome['status'], error: string | null = null): MigrationOutcome {
  return { status, error, unanswered: false, report: REPORT };
}

/** A door whose migration ends when the test says so. */
export class FakeDoor implements MigrationDoor {
  refuse: Error | null = null;
  cancellable = true;
  limits: object[] = [];
  #end: ((outcome: MigrationOutcome) => void) | null = null;
  #change: ((status: Migration['status'], pass: number | null) => void) | null = null;

  async connect(): Promise<Channel> {
    if (this.refuse !== null) throw this.refuse;
    return { abort: () => {} } as unknown as Channel;
  }
  async listen(uri: string): Promise<PeerListener> {
    return { uri, accept: () => new Promise(() => {}), close: () => {} };
  }
  migrateTo(): Migration {
    return {
      status: 'active',
      progress: PROGRESS,
      done: new Promise((resolve) => {
        this.#end = resolve;
      }),
      cancel: () => this.cancellable,
      setLimits: (limits) => this.limits.push(limits),
      onChange: (listener) => {
        this.#change = listener;
      },
    };
  }
  receiveFrom(): never {
    throw new Error('no peer comes here');
  }
  change(status: Migration['status'], pass: number | null): void {
    this.#change?.(status, pass);
  }
  end(result: MigrationOutcome): void {
    this.#end?.(result);
  }
}
