// One virtual machine as control sees it, from `ferry run` or `ferry receive` to its end: run state, events, settings, migrations.
// Made by cli; QMP commands act on it; JS thread.
import type { Incoming, MigrationOutcome, ReceiveHost } from '../migration/api.ts';
import { resumeByHand } from '../migration/way-back.ts';
import type { Machine, MachineEvent, RunState } from '../vmm/api.ts';
import { EventBus } from './events.ts';
import type { MigrationDoor, PeerListener } from './migration-door.ts';
import { MigrationSettings } from './migration-settings.ts';
import { OutgoingMigration } from './outgoing.ts';
import { QmpError } from './qmp-schema.ts';

export interface VmSessionOptions {
  readonly name: string | null;
  readonly door: MigrationDoor;
  /** null: this process was not started to receive. */
  readonly receiveHost: ReceiveHost | null;
  readonly onQuit: () => void;
  /** The outgoing migration has ended; null when it never got a connection. */
  readonly onMigrated: (outcome: MigrationOutcome | null) => void;
  readonly onArrived: (machine: Machine) => void;
  readonly onReceiveFailed: (error: Error) => void;
}

export class VmSession {
  readonly events = new EventBus();
  readonly settings = new MigrationSettings();
  readonly outgoing: OutgoingMigration;
  readonly #options: VmSessionOptions;
  #machine: Machine | null = null;
  #incoming: Incoming | null = null;
  #listener: PeerListener | null = null;

  constructor(options: VmSessionOptions) {
    this.#options = options;
    this.outgoing = new OutgoingMigration(options.door, this.settings, this.events);
  }

  get name(): string | null {
    return this.#options.name;
  }
  get machineOrNull(): Machine | null {
    return this.#machine;
  }
  get incoming(): Incoming | null {
    return this.#incoming;
  }
  get listenUri(): string | null {
    return this.#listener?.uri ?? null;
  }
  get runState(): RunState {
    return this.#machine?.state ?? 'inmigrate';
  }

  /** Throws QmpError while the guest has not arrived. */
  get machine(): Machine {
    if (this.#machine === null) throw new QmpError('GenericError', 'Guest is waiting for an incoming migration');
    return this.#machine;
  }

  adopt(machine: Machine): void {
    this.#machine = machine;
    machine.on((event) => this.#forward(event));
  }

  #forward(event: MachineEvent): void {
    if (event.event === 'RESET' || event.event === 'SHUTDOWN') {
      this.events.emit(event.event, { guest: event.guest, reason: event.reason });
    } else {
      this.events.emit(event.event);
    }
  }

  async stop(): Promise<void> {
    if (this.machine.state === 'running') await this.machine.pause('paused');
  }

  async cont(): Promise<void> {
    const machine = this.machine;
    if (machine.state === 'running') return;
    if (machine.state === 'shutdown' || machine.state === 'guest-panicked') {
      throw new QmpError('GenericError', 'Resetting the Virtual Machine is required');
    }
    if (machine.state === 'finish-migrate') {
      throw new QmpError('GenericError', "There's a migration process in progress");
    }
    // Its devices stand still and its interrupts are off: more than vCPUs must come back.
    if (machine.state === 'postmigrate') return resumeByHand(machine);
    await machine.start();
  }

  migrate(uri: string): void {
    this.outgoing.start(this.machine, uri, this.#options.onMigrated);
  }

  quit(): void {
    if (this.#machine !== null) this.#machine.end('host-qmp-quit', 0);
    this.#options.onQuit();
  }

  /** Resolves when it listens; the end is told to onArrived or onReceiveFailed. */
  async receive(uri: string): Promise<void> {
    const host = this.#options.receiveHost;
    if (host === null) throw new QmpError('GenericError', "'-incoming' was not specified on the command line");
    if (this.#listener !== null) throw new QmpError('GenericError', 'The incoming migration has already been started');
    this.#listener = await this.#options.door.listen(uri);
    this.#report('setup');
    void this.#arrive(this.#listener, host);
  }

  /** Everything is put back by the migration room when it fails. */
  async #arrive(listener: PeerListener, host: ReceiveHost): Promise<void> {
    try {
      const peer = await listener.accept();
      this.#report('active');
      this.#incoming = this.#options.door.receiveFrom(peer, host);
      const machine = await this.#incoming.machine;
      this.adopt(machine);
      this.events.emit('RESUME');
      this.#report('completed');
      this.#options.onArrived(machine);
    } catch (error) {
      this.#report('failed');
      this.#options.onReceiveFailed(error instanceof Error ? error : new Error(String(error)));
    } finally {
      listener.close();
    }
  }

  #report(status: string): void {
    if (this.settings.has('events')) this.events.emit('MIGRATION', { status });
  }

  /** Ends what is still waiting for a peer. */
  close(): void {
    this.#incoming?.cancel();
    this.#listener?.close();
  }
}
