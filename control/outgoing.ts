// The outgoing migration of a session: starts it, keeps its last state for query-migrate, reports its events. Owned by VmSession.
import type { Migration, MigrationOutcome, MigrationStatus } from '../migration/api.ts';
import type { Machine } from '../vmm/api.ts';
import type { EventBus } from './events.ts';
import type { MigrationDoor } from './migration-door.ts';
import type { MigrationSettings } from './migration-settings.ts';
import { QmpError } from './qmp-schema.ts';

const BUSY: readonly MigrationStatus[] = ['setup', 'active', 'device', 'cancelling'];

export class OutgoingMigration {
  readonly #door: MigrationDoor;
  readonly #settings: MigrationSettings;
  readonly #events: EventBus;
  #status: MigrationStatus = 'none';
  #error: string | null = null;
  #migration: Migration | null = null;
  #outcome: MigrationOutcome | null = null;
  #cancelWanted = false;

  constructor(door: MigrationDoor, settings: MigrationSettings, events: EventBus) {
    this.#door = door;
    this.#settings = settings;
    this.#events = events;
  }

  get busy(): boolean {
    return BUSY.includes(this.#status);
  }
  get status(): MigrationStatus {
    return this.#status;
  }
  get error(): string | null {
    return this.#error;
  }
  get migration(): Migration | null {
    return this.#migration;
  }
  get outcome(): MigrationOutcome | null {
    return this.#outcome;
  }

  /** Returns at once, as QEMU's `migrate` does; `ended` hears the end. Throws QmpError when it cannot start. */
  start(machine: Machine, uri: string, ended: (outcome: MigrationOutcome | null) => void): void {
    if (this.busy) throw new QmpError('GenericError', "There's a migration process in progress");
    if (machine.state === 'postmigrate') {
      throw new QmpError('GenericError', "Can't migrate the vm that was paused due to previous migration");
    }
    const blockers = machineBlockers(machine);
    if (blockers.length > 0) throw new QmpError('GenericError', blockers.join('; '));
    if (!/^(tcp|unix|fd):./.test(uri)) {
      throw new QmpError('GenericError', "Parameter 'uri' expects a valid migration protocol");
    }
    this.#error = null;
    this.#outcome = null;
    this.#migration = null;
    this.#cancelWanted = false;
    this.#setStatus('setup');
    void this.#run(machine, uri).then(ended);
  }

  async #run(machine: Machine, uri: string): Promise<MigrationOutcome | null> {
    try {
      const peer = await this.#door.connect(uri);
      if (this.#cancelWanted) {
        peer.abort();
        this.#setStatus('cancelled');
        return null;
      }
      const migration = this.#door.migrateTo(machine, peer, this.#settings.options());
      this.#migration = migration;
      migration.onChange((status, pass) => {
        if (pass !== null && this.#settings.has('events')) this.#events.emit('MIGRATION_PASS', { pass });
        if (status !== this.#status && !isEnd(status)) this.#setStatus(status);
      });
      this.#outcome = await migration.done;
      this.#error = this.#outcome.error;
      this.#setStatus(this.#outcome.status);
      return this.#outcome;
    } catch (error) {
      this.#error = error instanceof Error ? error.message : String(error);
      this.#setStatus(this.#cancelWanted ? 'cancelled' : 'failed');
      return null;
    }
  }

  /** Nothing to cancel is no error (QEMU). After EOF: refused. */
  cancel(): void {
    if (!this.busy) return;
    if (this.#migration === null) {
      this.#cancelWanted = true;
      this.#setStatus('cancelling');
      return;
    }
    if (!this.#migration.cancel()) {
      throw new QmpError('GenericError', 'The migration has been handed over already: it can no longer be cancelled');
    }
    this.#setStatus('cancelling');
  }

  limitsChanged(): void {
    const { downtimeLimitMs, maxBandwidth } = this.#settings.options();
    this.#migration?.setLimits({ downtimeLimitMs, maxBandwidth });
  }

  #setStatus(status: MigrationStatus): void {
    if (status === this.#status) return;
    this.#status = status;
    if (this.#settings.has('events')) this.#events.emit('MIGRATION', { status });
  }
}

function isEnd(status: MigrationStatus): boolean {
  return status === 'completed' || status === 'failed' || status === 'cancelled' || status === 'none';
}

/** Why the machine cannot move now, a sentence a device. */
export function machineBlockers(machine: Machine): string[] {
  return machine.devices
    .map((device) => device.live?.blocker() ?? null)
    .filter((reason): reason is string => reason !== null);
}
