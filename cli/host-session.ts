// A machine in this process from its start to its end: console, QMP, signals, and the way out that puts everything back. Used by run.ts and
// receive.ts; JS thread.
import type { MigrationDoor } from '../control/migration-door.ts';
import { QmpServer } from '../control/qmp-server.ts';
import { VmSession } from '../control/vm-session.ts';
import type { MigrationOutcome, ReceiveHost } from '../migration/api.ts';
import { StateError } from '../native/errno.ts';
import type { Machine } from '../vmm/api.ts';
import type { PreparedRam } from '../vmm/prepared-ram.ts';

/** After a move `ferry migrate` still reads how it went; then this process ends. Milliseconds. */
const LINGER_MS = 3000;

/** The migration room, loaded when it is first needed: a guest that never moves need not wait for it at its start. */
function doorWith(prepared: PreparedRam | null): MigrationDoor {
  let opened: MigrationDoor | null = null;
  const open = async (): Promise<MigrationDoor> => {
    opened ??= (await import('./migration-room.ts')).openMigrationRoom(prepared);
    return opened;
  };
  // A channel comes from connect() or listen(), so the room is open by then.
  const room = (): MigrationDoor => {
    if (opened === null) throw new StateError('the migration room is not open yet');
    return opened;
  };
  return {
    connect: async (uri) => (await open()).connect(uri),
    listen: async (uri) => (await open()).listen(uri),
    migrateTo: (machine, peer, options) => room().migrateTo(machine, peer, options),
    receiveFrom: (peer, host) => room().receiveFrom(peer, host),
  };
}

export interface HostSessionOptions {
  readonly name: string | null;
  readonly control: string | null;
  readonly receiveHost: ReceiveHost | null;
  /** RAM that was allocated ahead for the guest to come. */
  readonly preparedRam: PreparedRam | null;
}

type Way = { readonly exitCode: number; readonly message: string | null };

export class HostSession {
  readonly session: VmSession;
  #server: QmpServer | null = null;
  #machine: Machine | null = null;
  #leave: (way: Way) => void = () => {};
  readonly #left: Promise<Way>;
  readonly #signals: { name: NodeJS.Signals; handler: () => void }[] = [];

  private constructor(options: HostSessionOptions) {
    this.#left = new Promise((resolve) => {
      this.#leave = resolve;
    });
    this.session = new VmSession({
      name: options.name,
      door: doorWith(options.preparedRam),
      receiveHost: options.receiveHost,
      onQuit: () => {
        if (this.#machine === null) this.#leave({ exitCode: 0, message: null });
      },
      onMigrated: (outcome) => this.#migrated(outcome),
      onArrived: (machine) => this.supervise(machine),
      onReceiveFailed: (error) => this.#leave({ exitCode: 1, message: `the guest did not arrive: ${error.message}` }),
    });
  }

  static async open(options: HostSessionOptions): Promise<HostSession> {
    const host = new HostSession(options);
    host.#watchSignals();
    if (options.control !== null) host.#server = await QmpServer.listen(host.session, options.control);
    return host;
  }

  /** From now on the machine's end is this process's. */
  supervise(machine: Machine): void {
    this.#machine = machine;
    void machine.ended.then((end) => {
      if (end.detail !== null) process.stderr.write(`ferry: ${end.detail}\n`);
      this.#leave({ exitCode: end.exitCode, message: null });
    });
  }

  #migrated(outcome: MigrationOutcome | null): void {
    if (outcome?.unanswered === true) {
      process.stderr.write(
        'ferry: handed over, but the destination did not answer: the guest may run there; it stays paused here\n',
      );
      return;
    }
    if (outcome?.status === 'completed') void this.#lingerThenLeave();
  }

  async #lingerThenLeave(): Promise<void> {
    const until = performance.now() + LINGER_MS;
    while (this.#server?.hasClient === true && performance.now() < until)
      await new Promise((resolve) => setTimeout(resolve, 20));
    this.#leave({ exitCode: 0, message: 'the guest runs at the destination now' });
  }

  #watchSignals(): void {
    for (const name of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) {
      const handler = () => this.interrupt();
      process.on(name, handler);
      this.#signals.push({ name, handler });
    }
  }

  /** A signal, or Ctrl-A x at the console: an orderly end. */
  interrupt(): void {
    if (this.#machine === null) this.#leave({ exitCode: 1, message: 'interrupted' });
    else this.#machine.end('host-signal', 0);
  }

  /** Resolves when the machine has ended, moved away or never arrived; everything of this session is put back then. */
  async finish(): Promise<number> {
    const { exitCode, message } = await this.#left;
    if (message !== null) process.stderr.write(`ferry: ${message}\n`);
    await this.close();
    return exitCode;
  }

  async close(): Promise<void> {
    this.session.close();
    await this.#server?.close();
    await this.#machine?.close();
    for (const { name, handler } of this.#signals.splice(0)) process.off(name, handler);
  }
}
