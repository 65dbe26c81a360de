// What a machine is to the rooms above it (migration, control, cli). Types only; implemented by machine.ts, dirty.ts, core-state.ts.
import type {
  Device,
  DirtySourceKind,
  EndReason,
  GuestRam,
  PageBitmap,
  RamRange,
  ResetReason,
} from '../devices/contract.ts';

/** The only place where user input has been judged already: made by config.ts. Sizes in bytes. */
export interface MachineConfig {
  readonly name: string;
  readonly memory: number;
  readonly cpus: number;
  readonly boot: BootConfig | null;
  readonly devices: readonly DeviceConfig[];
  readonly serial: SerialConfig;
  readonly clock: 'stop' | 'catch-up';
  readonly noReboot: boolean;
  /** MADV_POPULATE_WRITE of all RAM before the start. */
  readonly preallocate: boolean;
  readonly dirtyLog: DirtyLogChoice;
  /** Isa debug exit at 0xf4 (kvm-unit-tests); always there for multiboot guests. */
  readonly debugExit: boolean;
}
/** How KVM tells which pages were written. */
export type DirtyLogChoice =
  | { readonly kind: 'bitmap' | 'manual' }
  /** A power of two. */
  | { readonly kind: 'ring'; readonly ringEntries: number };
export interface BootConfig {
  readonly kernel: string;
  readonly initrd: string | null;
  readonly append: string;
}
/** One -device: QEMU's driver name, its id (given or made from type and order) and its properties, checked against the registry. */
export interface DeviceConfig {
  readonly type: string;
  readonly id: string;
  /** PCI slot by addr=, else null: the bridge gives the next free one. */
  readonly slot: number | null;
  readonly properties: Readonly<Record<string, string | number | boolean>>;
}
export type SerialConfig =
  | { readonly kind: 'stdio' }
  | { readonly kind: 'none' }
  | { readonly kind: 'file'; readonly path: string }
  | { readonly kind: 'unix'; readonly path: string };

/** QEMU's RunState words, those that we have. */
export type RunState =
  | 'prelaunch'
  | 'running'
  | 'paused'
  | 'inmigrate'
  | 'finish-migrate'
  | 'postmigrate'
  | 'shutdown'
  | 'guest-panicked'
  | 'internal-error';

export type MachineEvent =
  | { readonly event: 'STOP' }
  | { readonly event: 'RESUME' }
  | { readonly event: 'POWERDOWN' }
  | { readonly event: 'RESET'; readonly guest: boolean; readonly reason: ResetReason }
  | { readonly event: 'SHUTDOWN'; readonly guest: boolean; readonly reason: EndReason };

export interface MachineEnd {
  readonly reason: EndReason;
  readonly exitCode: number;
  /** For internal errors: suberror, RIP, instruction bytes, in one line. */
  readonly detail: string | null;
}

/** What must be equal, or supported, at both ends: goes into the stream's first section. Plain data. */
export interface CpuContract {
  readonly cpuid: readonly CpuidEntry[];
  readonly xcr0: bigint;
  readonly xsaveSize: number;
  readonly msrs: readonly number[];
  readonly tscKhz: number;
}
export interface CpuidEntry {
  readonly function: number;
  readonly index: number;
  readonly flags: number;
  readonly eax: number;
  readonly ebx: number;
  readonly ecx: number;
  readonly edx: number;
}

/** vCPUs, irqchip, PIT, clock in the order of core-state.ts. Plain data; clock saved last. */
export type CoreState = Readonly<Record<string, unknown>>;

/** How one migration wants the dirty sources used. */
export interface DirtyOptions {
  /** false: a source named 'deviceLog' is not started; its fallback is. */
  readonly deviceLog: boolean;
  /** Negative controls of the tests: what this source reports is counted, but not ORed in: always, or in the last round only. */
  readonly drop: 'deviceLog' | 'kvmLastRound' | null;
}

/** Merges every dirty source into one bitmap a round. */
export interface DirtyTracker {
  /** Starts all sources. Everything counts as dirty in the first round. */
  start(options: DirtyOptions): Promise<void>;
  /** Collects every source (the coarse ones only when `last`) into what earlier rounds left unsent: the pages to send in this round.
   *  A source that fails makes all RAM dirty and is named in `failed`. */
  collect(last: boolean): Promise<DirtyRound>;
  /** True when a coarse source will make the last round big: bytes it will add. 0 otherwise. */
  readonly coarseBytes: number;
  readonly sources: readonly DirtySourceKind[];
  stop(): Promise<void>;
}
export interface DirtyRound {
  /** Owned by the tracker, the same one each round. The sender clears bits as it sends; what it leaves set is in the next round, too. */
  readonly bitmap: PageBitmap;
  /** Pages that each source alone returned; null: not in use. */
  readonly pages: Readonly<Record<DirtySourceKind, number | null>>;
  readonly failed: readonly string[];
}

export interface Machine {
  readonly config: MachineConfig;
  readonly state: RunState;
  readonly ram: GuestRam;
  readonly ramRanges: readonly RamRange[];
  /** Platform devices first, then PCI in slot order; ids are unique. */
  readonly devices: readonly Device[];
  readonly cpuContract: CpuContract;
  readonly dirty: DirtyTracker;
  /** Resolves once, when the machine has ended (S5, panic, quit, signal, internal error). */
  readonly ended: Promise<MachineEnd>;
  /** prelaunch|paused|postmigrate -> running. */
  start(): Promise<void>;
  /** running -> `into`: vCPUs parked, outstanding exits completed, posted writes and console drained. Device state untouched. */
  pause(into: 'paused' | 'finish-migrate'): Promise<void>;
  /** main-job.md, order at switch-over 4, and back: irqfds off (flushed; pending eventfds noted), irqfds on. */
  detachInterrupts(): void;
  attachInterrupts(): void;
  /** Only while paused. Clock last. */
  saveCore(): CoreState;
  /** Only in inmigrate. Validates all before it changes anything; throws StateError. */
  loadCore(state: CoreState): void;
  /** KVM_KVMCLOCK_CTRL on every vCPU after a pause; adds the elapsed time when the clock policy says so. */
  clockAfterPause(pausedNs: bigint): void;
  setState(state: RunState): void;
  reset(reason: ResetReason): Promise<void>;
  powerdown(): void;
  end(reason: EndReason, exitCode: number): void;
  /** Puts everything back: devices closed, vCPU threads joined, fds closed. Idempotent. */
  close(): Promise<void>;
  on(listener: (event: MachineEvent) => void): { remove(): void };
}

/** vmm/machine.ts exports:
 *    buildMachine(config: MachineConfig, host: MachineHost): Promise<Machine>          prelaunch, kernel loaded when config.boot is there
 *    buildForIncoming(config: MachineConfig, cpu: CpuContract, host: MachineHost, prepared: PreparedRam | null): Promise<Machine>
 *                                                                                     inmigrate, empty RAM: `prepared` if it fits
 *  vmm/cpu-contract.ts:
 *    checkCpuContract(wanted: CpuContract): string[]                                   what this host lacks, named; empty when it fits
 */
export interface MachineHost {
  readonly log: Log;
  /** Guest bytes of the serial console. */
  readonly consoleOut: (bytes: Uint8Array) => void;
  /** Registers a sink for bytes typed at the console. */
  readonly consoleIn: (sink: (bytes: Uint8Array) => void) => void;
  readonly registry: DeviceRegistryView;
}
export interface DeviceRegistryView {
  get(name: string): import('../devices/contract.ts').DeviceType | null;
  names(): readonly string[];
}
export interface Log {
  trace(fields: object, message: string): void;
  debug(fields: object, message: string): void;
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
  error(fields: object, message: string): void;
  child(bindings: object): Log;
}
