// A passed-through device's part in a migration, over any VfioMigrationPort: PRE_COPY -> PRE_COPY_P2P -> STOP_COPY with one data fd
// where the device has pre-copy, RUNNING_P2P -> STOP_COPY or RUNNING -> STOP_COPY where it has less; RESUMING -> STOP at the other end.
// Driven by migration/ in the order of its phases.ts; every refusal goes down the ladder of recover.ts. linux/vfio.h
import { SysError, VmmError } from '../../../native/errno.ts';
import type { ChunkSink, ChunkSource, LoadVerdict, Migratable } from '../../contract.ts';
import { backToRunning, orRecover, type Recoverable, transition } from './recover.ts';
import { quiescedOf } from './states.ts';

/** A driver that cannot say how much is to come is never believed to fit a downtime limit; x-stop-copy-size says it instead. */
export const UNKNOWN_SIZE = 100 * 2 ** 30;
/** Per pump call in stop-copy: the channel frames it by itself. */
const DRAIN_BUDGET = 64 * 2 ** 20;

export interface LivePolicy {
  /** Milliseconds at switch-over beyond what bytes take: states change, firmware thinks. */
  readonly fixedDowntimeMs: number;
  /** For drivers that cannot tell; null: UNKNOWN_SIZE. */
  readonly stopCopySize: number | null;
  /** enable-migration=off. */
  readonly disabled: boolean;
  /** A device that cannot be asked whether its state is good before the source lets go is not loaded. */
  readonly requireValidated: boolean;
  /** How many passed-through devices the machine has; all need P2P states when there are several. */
  deviceCount(): number;
  /** Resolves when the device reaches the BARs of its peers where the guest has them. */
  peersMapped(): Promise<void>;
}

/** Interfaces that draw no arc from RESUMING to STOP: whether a driver has it is found out by trying. */
const MAY_BE_LATE: ReadonlySet<string> = new Set(['v1', 'v7']);

export class VfioLive implements Migratable {
  readonly #device: Recoverable;
  readonly #policy: LivePolicy;
  #preCopyBytes = 0;
  #stopCopyBytes = 0;

  constructor(device: Recoverable, policy: LivePolicy) {
    this.#device = device;
    this.#policy = policy;
  }

  get fixedDowntimeMs(): number {
    return this.#policy.fixedDowntimeMs;
  }

  get moved(): { readonly preCopyBytes: number; readonly stopCopyBytes: number } {
    return { preCopyBytes: this.#preCopyBytes, stopCopyBytes: this.#stopCopyBytes };
  }

  blocker(): string | null {
    const { name, port } = this.#device;
    if (this.#policy.disabled) return `${name} may not be migrated: enable-migration=off`;
    if (this.#policy.deviceCount() > 1 && !port.p2p) {
      return `${name} has no P2P states, which every device needs when several are passed through: pass it alone`;
    }
    return null;
  }

  async saveSetup(): Promise<void> {
    this.#preCopyBytes = 0;
    this.#stopCopyBytes = 0;
    if (this.#device.port.preCopy) await transition(this.#device, 'pre-copy', 'running');
  }

  async pending(): Promise<{ precopyInitial: number; precopy: number; stopCopy: number }> {
    const { port, log } = this.#device;
    const info = await port.precopyInfo();
    // Nothing is kept of what was said before, so there is nothing to forget; the switch-over waits until `initial` is 0 again.
    if (info?.reinit) log.debug({ initial: info.initial }, 'the driver has a new batch of initial data');
    const initial = info?.initial ?? 0;
    const dirty = info?.dirty ?? 0;
    const size = (await port.stopCopySize()) ?? this.#policy.stopCopySize ?? UNKNOWN_SIZE;
    // stop_copy_length counts what pre-copy has not read yet: adding it again would count it twice.
    return { precopyInitial: initial, precopy: dirty, stopCopy: Math.max(0, size - initial - dirty) };
  }

  async iterate(sink: ChunkSink, budget: number): Promise<'more' | 'drained'> {
    const { port } = this.#device;
    if (port.state !== 'pre-copy' && port.state !== 'pre-copy-p2p') return 'drained';
    const result = await this.#device.port.save(sink, budget);
    this.#preCopyBytes += result.bytes;
    return result.end === 'more' ? 'more' : 'drained';
  }

  async quiesce(): Promise<void> {
    const target = quiescedOf(this.#device.port.state, this.#device.port);
    if (target === null) return;
    await transition(this.#device, target, this.#device.port.state === 'stop' ? 'stop' : 'running');
  }

  async stop(): Promise<void> {
    await transition(this.#device, 'stop-copy', 'stop');
  }

  async drain(sink: ChunkSink): Promise<void> {
    for (;;) {
      const { bytes, end } = await this.#device.port.save(sink, DRAIN_BUDGET);
      this.#stopCopyBytes += bytes;
      if (end === 'end') return;
      // ENOMSG is PRE_COPY's; in STOP_COPY it would mean that nothing more ever comes, with no end. linux/vfio.h
      if (end === 'drained') throw this.#error('its driver says ENOMSG in STOP_COPY, where only an end is allowed');
    }
  }

  async handedOver(): Promise<void> {
    const { port } = this.#device;
    try {
      await port.setState('stop');
    } finally {
      port.endSession();
    }
  }

  async loadSetup(): Promise<void> {
    this.#preCopyBytes = 0;
    this.#stopCopyBytes = 0;
    await transition(this.#device, 'resuming', 'reset');
    if (this.#policy.requireValidated && MAY_BE_LATE.has(this.#device.port.abi)) await this.#tryLeaving();
  }

  /** With nothing loaded: what counts is whether the way exists. A driver that fails on this has judged, which is what was asked. */
  async #tryLeaving(): Promise<void> {
    const found = await this.#device.port.finishLoad().catch(() => null);
    if (found === 'late') {
      await backToRunning(this.#device);
      throw this.#error(
        'its driver validates device state only when the guest runs here, and require-validated=on forbids that: leave it away, or use a host whose driver goes from RESUMING to STOP',
      );
    }
    if (found === null) await backToRunning(this.#device);
    await transition(this.#device, 'resuming', 'reset');
  }

  async loadChunk(source: ChunkSource, length: number): Promise<void> {
    const { port, name } = this.#device;
    if (port.state !== 'resuming') throw this.#error('device data came before its set-up');
    try {
      await port.load(source, length);
    } catch (cause) {
      // A channel that was cancelled or has broken is not the device's word.
      if (!(cause instanceof SysError) || !cause.syscall.startsWith('write(data fd)')) throw cause;
      throw new VmmError('device-data', `${name}: the device refused its state (${cause.message})`, {
        cause,
        exitCode: 1,
      });
    }
    this.#stopCopyBytes += length;
  }

  /** The driver judges what it was given when it leaves RESUMING: this is the real result of the load. */
  async loadEnd(): Promise<LoadVerdict> {
    const { port } = this.#device;
    return orRecover(this.#device, { to: 'stop', go: () => port.finishLoad(), recover: 'reset' });
  }

  async run(): Promise<void> {
    await this.#policy.peersMapped();
    await transition(this.#device, 'running', 'reset');
    this.#device.port.endSession();
  }

  async cancel(): Promise<void> {
    await backToRunning(this.#device);
  }

  #error(what: string): VmmError {
    return new VmmError('device-data', `${this.#device.name}: ${what}`, { exitCode: 1 });
  }
}

/** A device that cannot move says so; nothing else is ever asked of it. */
export class Immovable implements Migratable {
  readonly fixedDowntimeMs = 0;
  readonly moved = { preCopyBytes: 0, stopCopyBytes: 0 };
  readonly #why: string;

  constructor(why: string) {
    this.#why = why;
  }

  blocker(): string {
    return this.#why;
  }
  async pending(): Promise<never> {
    throw this.#refusal();
  }
  async saveSetup(): Promise<void> {
    throw this.#refusal();
  }
  async iterate(): Promise<never> {
    throw this.#refusal();
  }
  async quiesce(): Promise<void> {}
  async stop(): Promise<void> {
    throw this.#refusal();
  }
  async drain(): Promise<void> {
    throw this.#refusal();
  }
  async handedOver(): Promise<void> {}
  async loadSetup(): Promise<void> {
    throw this.#refusal();
  }
  async loadChunk(): Promise<void> {
    throw this.#refusal();
  }
  async loadEnd(): Promise<never> {
    throw this.#refusal();
  }
  async run(): Promise<void> {}
  async cancel(): Promise<void> {}

  #refusal(): VmmError {
    return new VmmError('not-migratable', this.#why, { exitCode: 1 });
  }
}
