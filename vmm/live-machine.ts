// One machine from outside (vmm/api.ts, Machine): run, pause, save, load, reset, end, close. Made by machine.ts; driven by migration/,
// control/ and cli/. JS thread. Transitions queue up behind each other; what the guest asks for from within an exit is noted in
// guest-requests.ts and carried out here once all vCPUs are parked. main-job.md, "Guest ends", "Clock", "Order at switch-over".
import type { Device, EndReason, GuestRam, RamRange, ResetReason } from '../devices/contract.ts';
import type { VcpuLoop } from '../native/addon.ts';
import { errnoName, VmmError } from '../native/errno.ts';
import type {
  CoreState,
  CpuContract,
  DirtyTracker,
  Log,
  Machine,
  MachineConfig,
  MachineEnd,
  MachineEvent,
  RunState,
} from './api.ts';
import type { Board } from './board.ts';
import { type BootImage, openBoot } from './boot/load.ts';
import type { GuestRequests, Request } from './guest-requests.ts';
import type { Memory } from './memory.ts';
import type { Processors } from './processors.ts';
import type { Vm } from './vm.ts';

export interface MachineParts {
  readonly config: MachineConfig;
  readonly log: Log;
  readonly vm: Vm;
  readonly memory: Memory;
  readonly loop: VcpuLoop;
  readonly processors: Processors;
  readonly board: Board;
  readonly requests: GuestRequests;
  readonly dirty: DirtyTracker;
  /** Null: nothing was booted here. Opened from the config when a reset needs it. */
  readonly boot: BootImage | null;
  readonly state: 'prelaunch' | 'inmigrate';
}

const ENDED: readonly RunState[] = ['shutdown', 'guest-panicked', 'internal-error'];

export class LiveMachine implements Machine {
  readonly config: MachineConfig;
  readonly dirty: DirtyTracker;
  readonly ended: Promise<MachineEnd>;
  readonly #parts: MachineParts;
  readonly #listeners = new Set<(event: MachineEvent) => void>();
  #resolveEnded: (end: MachineEnd) => void = () => {};
  #boot: BootImage | null;
  #state: RunState;
  #queue: Promise<unknown> = Promise.resolve();
  #closing: Promise<void> | null = null;

  constructor(parts: MachineParts) {
    this.#parts = parts;
    this.config = parts.config;
    this.dirty = parts.dirty;
    this.#boot = parts.boot;
    this.#state = parts.state;
    this.ended = new Promise((resolve) => {
      this.#resolveEnded = resolve;
    });
  }

  get state(): RunState {
    return this.#state;
  }
  get ram(): GuestRam {
    return this.#parts.memory.ram;
  }
  get ramRanges(): readonly RamRange[] {
    return this.#parts.memory.ranges;
  }
  get devices(): readonly Device[] {
    return this.#parts.board.devices;
  }
  get cpuContract(): CpuContract {
    return this.#parts.processors.contract;
  }

  start(): Promise<void> {
    return this.#transition(async () => {
      if (ENDED.includes(this.#state)) throw this.#hasEnded();
      if (this.#state === 'running') return;
      this.#parts.processors.resumeClock(null);
      this.#state = 'running';
      this.#emit({ event: 'RESUME' });
      this.#parts.loop.start();
    });
  }

  pause(into: 'paused' | 'finish-migrate'): Promise<void> {
    return this.#transition(async () => {
      if (this.#state !== 'running') {
        // Already standing still; only the word for it changes. A guest that has ended cannot be moved.
        if (!ENDED.includes(this.#state)) this.#state = into;
        else if (into === 'finish-migrate') throw this.#hasEnded();
        return;
      }
      await this.#park();
      this.#state = into;
      // Answering the last exits may have brought a wish of the guest's: it comes before whatever the pause was for.
      if (this.#parts.requests.pending) await this.#serve();
      if (ENDED.includes(this.#state)) throw this.#hasEnded();
      this.#emit({ event: 'STOP' });
    });
  }

  detachInterrupts(): void {
    for (const device of this.devices) device.interrupts?.detach();
  }

  attachInterrupts(): void {
    for (const device of this.devices) device.interrupts?.attach();
  }

  saveCore(): CoreState {
    return this.#parts.processors.save();
  }

  loadCore(state: CoreState): void {
    this.#parts.processors.load(state);
  }

  clockAfterPause(pausedNs: bigint): void {
    this.#parts.processors.resumeClock(pausedNs);
  }

  setState(state: RunState): void {
    this.#state = state;
  }

  reset(reason: ResetReason): Promise<void> {
    return this.#transition(async () => {
      if (this.#state === 'inmigrate' || this.#state === 'finish-migrate') {
        throw new VmmError(
          'migrating',
          `cannot reset while the machine is in state ${this.#state}; wait until it has moved`,
        );
      }
      const running = this.#state === 'running';
      if (running) await this.#park();
      if (ENDED.includes(this.#state)) this.#state = 'paused';
      await this.#powerCycle(reason);
      if (running && this.#state === 'running') this.#parts.loop.start();
    });
  }

  powerdown(): void {
    this.#emit({ event: 'POWERDOWN' });
    this.#parts.board.powerButton();
  }

  end(reason: EndReason, exitCode: number): void {
    this.#parts.requests.requestEnd(reason, exitCode);
  }

  on(listener: (event: MachineEvent) => void): { remove(): void } {
    this.#listeners.add(listener);
    return { remove: () => void this.#listeners.delete(listener) };
  }

  close(): Promise<void> {
    // Behind what is under way: a transition needs the loop that this closes.
    this.#closing ??= this.#queue.then(() => this.#close());
    return this.#closing;
  }

  get closed(): boolean {
    return this.#closing !== null;
  }

  /** requests.noted(): called from within an exit. Stops the vCPUs now, does the rest when they are parked. */
  serveSoon(): void {
    if (this.#closing !== null) return;
    const parked = this.#state === 'running' ? this.#parts.loop.pause() : Promise.resolve();
    // A pause that rejects does so for the transition too, which reports it.
    parked.catch(() => {});
    void this.#transition(async () => {
      if (!this.#parts.requests.pending) return;
      const running = this.#state === 'running';
      if (running) await this.#park();
      await this.#serve();
      if (running && this.#state === 'running') this.#parts.loop.start();
    }).catch((error: unknown) => this.#fail(error));
  }

  /** Device code threw, which it must not: the guest cannot go on from half an access. */
  deviceFailed(error: unknown): void {
    const text =
      error instanceof Error ? (error.stack ?? error.message).split('\n').slice(0, 2).join(' ') : String(error);
    this.#parts.requests.internalError(`a device model failed: ${text}`);
  }

  /** KVM_RUN itself failed. */
  vcpuFailed(index: number, errno: number): void {
    this.#parts.requests.internalError(`vCPU ${index}: KVM_RUN: ${errnoName(errno)}`);
  }

  /** Only with all vCPUs parked. */
  async #serve(): Promise<void> {
    const request = this.#parts.requests.take();
    if (request === null) return;
    if (request.kind === 'end') this.#finish(request);
    else if (this.config.noReboot && request.reason === 'guest-reset') {
      this.#finish({ kind: 'end', reason: 'guest-reset', exitCode: 0, detail: null });
    } else await this.#powerCycle(request.reason);
  }

  async #park(): Promise<void> {
    await this.#parts.loop.pause();
    this.#parts.processors.stopClock();
    this.#parts.board.serial.drain();
  }

  /** Devices first, so that no DMA goes into the fresh image; then processors and controllers; then RAM. Functions before platform. */
  async #powerCycle(reason: ResetReason): Promise<void> {
    if (this.#boot === null && this.config.boot === null) {
      return this.#finish(internal('the guest asked for a reset, but there is no kernel to start again'));
    }
    for (const device of [...this.devices].reverse()) await device.reset();
    this.#parts.processors.reset();
    try {
      // A guest that came by migration is started again from the same files, which this host must have then.
      this.#boot ??= await openBoot(this.config.boot!);
      const context = { memory: this.#parts.memory, cpus: this.config.cpus, fresh: false };
      this.#parts.processors.boot(await this.#boot.load(context));
    } catch (error) {
      return this.#finish(
        internal(`the guest cannot be started again: ${error instanceof Error ? error.message : error}`),
      );
    }
    // The loader writes past GuestMemory: a migration that is under way must send it all.
    this.#parts.memory.hostWrites.markAll();
    this.#emit({ event: 'RESET', guest: reason === 'guest-reset', reason });
  }

  #finish(end: Request & { readonly kind: 'end' }): void {
    if (ENDED.includes(this.#state)) return;
    this.#parts.board.serial.drain();
    this.#state =
      end.reason === 'guest-panic' ? 'guest-panicked' : end.reason === 'internal-error' ? 'internal-error' : 'shutdown';
    // Whoever owns the machine tells the user; this is for the log.
    if (end.detail !== null) this.#parts.log.debug({ reason: end.reason }, end.detail);
    this.#emit({ event: 'SHUTDOWN', guest: end.reason.startsWith('guest-'), reason: end.reason });
    this.#emit({ event: 'STOP' });
    this.#resolveEnded({ reason: end.reason, exitCode: end.exitCode, detail: end.detail });
  }

  #hasEnded(): VmmError {
    const text = `the guest has ended (state ${this.#state}) and can neither run on nor move; reset the machine first`;
    return new VmmError('ended', text, { exitCode: 1 });
  }

  #fail(error: unknown): void {
    this.#finish(internal(error instanceof Error ? error.message : String(error)));
  }

  #emit(event: MachineEvent): void {
    for (const listener of [...this.#listeners]) listener(event);
  }

  #transition<T>(step: () => Promise<T>): Promise<T> {
    if (this.closed) return Promise.reject(new VmmError('closed', 'the machine is closed already', { exitCode: 1 }));
    const done = this.#queue.then(step);
    this.#queue = done.catch(() => {});
    return done;
  }

  /** vCPUs stop first: after that nobody runs guest code, and slots and fds may go. The loop outlives the devices' fast windows. */
  async #close(): Promise<void> {
    const { loop, board, memory, vm } = this.#parts;
    await loop.pause();
    await this.dirty.stop();
    await board.close();
    await loop.close();
    memory.close();
    vm.close();
    await this.#boot?.close();
    this.#listeners.clear();
  }
}

function internal(detail: string): Request & { readonly kind: 'end' } {
  return { kind: 'end', reason: 'internal-error', exitCode: 1, detail };
}
