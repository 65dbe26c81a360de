// A Machine that keeps a diary instead of running a guest: which steps migration took, in which order, and whether "the guest" runs. Its
// devices have states and bulk data that must arrive; any step can be told to fail. For the tests of migration's two state machines.
import type { ChunkSink, ChunkSource, Device, DirtySourceKind, Migratable, Stateful } from '../../devices/contract.ts';
import { StateError } from '../../native/errno.ts';
import type {
  CoreState,
  CpuContract,
  DirtyOptions,
  DirtyTracker,
  Machine,
  MachineConfig,
  MachineEnd,
  MachineEvent,
  RunState,
} from '../../vmm/api.ts';
import { ArrayBitmap, ArrayRam } from './memory-channel.ts';

export const PAGE = 4096;

/** Steps in order; `failAt` throws at the step of that name, `onStep` may do anything there. */
export class Diary {
  readonly steps: string[] = [];
  failAt: string | null = null;
  onStep: ((step: string) => void) | null = null;

  note(step: string): void {
    this.steps.push(step);
    this.onStep?.(step);
    if (this.failAt === step) throw new Error(`fault injected at ${step}`);
  }
}

type LiveState = 'running' | 'pre-copy' | 'p2p' | 'stop-copy' | 'stop' | 'resuming';

/** A device with bulk data, a third of it sent before the guest stops. */
export class DiaryDevice implements Device, Migratable, Stateful {
  readonly id: string;
  readonly type = 'diary';
  readonly claims = [];
  readonly dirty = null;
  /** A gate, so that the rehearsal in precopy leaves it out and every save in the diary is the one at switch-over. */
  readonly interrupts = { detach: () => undefined, attach: () => undefined };
  readonly version = 2;
  readonly fixedDowntimeMs = 1;
  readonly diary: Diary;
  liveState: LiveState = 'running';
  contents: Uint8Array;
  register = 0;
  initialLeft = 1000;
  readonly moved = { preCopyBytes: 0, stopCopyBytes: 0 };
  #received: Uint8Array[] = [];
  #at = 0;
  readonly #size: number;

  constructor(id: string, diary: Diary, options: { filled: boolean; deviceBytes: number }) {
    const { filled, deviceBytes } = options;
    this.id = id;
    this.diary = diary;
    this.#size = deviceBytes;
    this.contents = new Uint8Array(filled ? deviceBytes : 0).map((_, at) => (at * 7 + id.length) & 0xff);
    this.register = filled ? 0xbeef : 0;
  }

  get state(): Stateful {
    return this;
  }
  get live(): Migratable {
    return this;
  }

  #note(step: string): void {
    this.diary.note(`${this.id}.${step}`);
  }

  save(): unknown {
    this.#note('save');
    return { register: this.register, wide: 0xffff_ffff_ffff_fffen, bytes: new Uint8Array([1, 2, 3]) };
  }
  load(state: unknown, version: number): void {
    this.#note('load');
    const register = (state as { register?: unknown } | null)?.register;
    if (version !== 2 || typeof register !== 'number') throw new StateError('no register');
    this.register = register;
  }

  blocker(): string | null {
    return null;
  }
  async saveSetup(): Promise<void> {
    this.#note('saveSetup');
    this.liveState = 'pre-copy';
  }
  async pending(): Promise<{ precopyInitial: number; precopy: number; stopCopy: number }> {
    const early = Math.max(0, this.#size / 3 - this.#at);
    return { precopyInitial: this.initialLeft, precopy: early, stopCopy: (this.#size * 2) / 3 };
  }
  async iterate(sink: ChunkSink, budget: number): Promise<'more' | 'drained'> {
    this.#note('iterate');
    this.initialLeft = 0;
    await this.#put(sink, Math.min(this.#size / 3, this.#at + budget));
    this.moved.preCopyBytes = this.#at;
    return this.#at >= this.#size / 3 ? 'drained' : 'more';
  }
  async #put(sink: ChunkSink, end: number): Promise<void> {
    while (this.#at < end) {
      const chunk = this.contents.subarray(this.#at, Math.min(end, this.#at + 60_000));
      await sink.put(chunk);
      this.#at += chunk.length;
    }
  }
  async quiesce(): Promise<void> {
    this.#note('quiesce');
    this.liveState = 'p2p';
  }
  async stop(): Promise<void> {
    this.#note('stop');
    this.liveState = 'stop-copy';
  }
  async drain(sink: ChunkSink): Promise<void> {
    this.#note('drain');
    const before = this.#at;
    await this.#put(sink, this.contents.length);
    this.moved.stopCopyBytes = this.#at - before;
  }
  async handedOver(): Promise<void> {
    this.#note('handedOver');
    this.liveState = 'stop';
  }
  async loadSetup(): Promise<void> {
    this.#note('loadSetup');
    this.liveState = 'resuming';
  }
  async loadChunk(source: ChunkSource, length: number): Promise<void> {
    this.diary.onStep?.(`${this.id}.loadChunk`);
    this.#received.push(await source.take(length));
  }
  async loadEnd(): Promise<'validated'> {
    this.#note('loadEnd');
    this.contents = Buffer.concat(this.#received);
    if (this.contents.length !== this.#size) throw new StateError(`${this.contents.length} bytes of ${this.#size}`);
    this.liveState = 'stop';
    return 'validated';
  }
  async run(): Promise<void> {
    this.#note('run');
    this.liveState = 'running';
  }
  async cancel(): Promise<void> {
    this.#note('cancel');
    this.#at = 0;
    this.liveState = 'running';
  }
  reset(): void {}
  close(): void {}
}

export interface DiaryOptions {
  readonly filled: boolean;
  readonly deviceIds: readonly string[];
  readonly pages: number;
  readonly deviceBytes: number;
}

export class DiaryMachine implements Machine {
  readonly config: MachineConfig;
  state: RunState;
  readonly ram: ArrayRam;
  readonly ramRanges: Machine['ramRanges'];
  readonly devices: readonly DiaryDevice[];
  readonly cpuContract: CpuContract = { cpuid: [], xcr0: 7n, xsaveSize: 832, msrs: [0x10], tscKhz: 2_000_000 };
  readonly ended: Promise<MachineEnd>;
  readonly diary: Diary;
  readonly tracker: DiaryTracker;
  rax = 0;
  interruptsAttached = true;
  closed = false;
  /** Asserted by tests: every moment in which the guest ran. */
  ran = false;
  endNow: (end: MachineEnd) => void = () => undefined;

  constructor(config: MachineConfig, diary: Diary, options: DiaryOptions) {
    this.config = config;
    this.diary = diary;
    this.state = options.filled ? 'running' : 'inmigrate';
    this.ran = options.filled;
    this.rax = options.filled ? 42 : 0;
    this.ram = new ArrayRam(options.pages * PAGE);
    this.ramRanges = [{ gpa: 0, size: this.ram.size, slice: { ram: this.ram, offset: 0, size: this.ram.size } }];
    if (options.filled)
      for (let page = 0; page < options.pages; page += 2) this.ram.bytes.fill(page + 1, page * PAGE, (page + 1) * PAGE);
    this.devices = options.deviceIds.map((id) => new DiaryDevice(id, diary, options));
    this.tracker = new DiaryTracker(this);
    this.ended = new Promise((resolve) => {
      this.endNow = resolve;
    });
  }

  get dirty(): DirtyTracker {
    return this.tracker;
  }
  async start(): Promise<void> {
    this.diary.note('start');
    if (!['prelaunch', 'paused', 'postmigrate'].includes(this.state))
      throw new Error(`start() of a machine that is ${this.state}`);
    if (!this.interruptsAttached) throw new Error('start() without interrupts');
    this.state = 'running';
    this.ran = true;
  }
  async pause(into: 'paused' | 'finish-migrate'): Promise<void> {
    this.diary.note('pause');
    this.state = into;
  }
  detachInterrupts(): void {
    this.diary.note('detachInterrupts');
    this.interruptsAttached = false;
  }
  attachInterrupts(): void {
    this.diary.note('attachInterrupts');
    this.interruptsAttached = true;
  }
  saveCore(): CoreState {
    this.diary.note('saveCore');
    return { vcpus: [{ rax: this.rax }], clock: 5n };
  }
  loadCore(state: CoreState): void {
    this.diary.note('loadCore');
    const vcpus = state['vcpus'] as { rax: number }[] | undefined;
    if (vcpus === undefined) throw new StateError('no vCPUs');
    this.rax = vcpus[0]!.rax;
  }
  clockAfterPause(): void {
    this.diary.note('clockAfterPause');
  }
  setState(state: RunState): void {
    this.state = state;
  }
  async reset(): Promise<void> {}
  powerdown(): void {}
  end(): void {}
  async close(): Promise<void> {
    this.diary.note('close');
    this.closed = true;
  }
  readonly #listeners = new Set<(event: MachineEvent) => void>();
  on(listener: (event: MachineEvent) => void): { remove(): void } {
    this.#listeners.add(listener);
    return { remove: () => void this.#listeners.delete(listener) };
  }
  get listeners(): number {
    return this.#listeners.size;
  }
  emit(event: MachineEvent): void {
    for (const listener of [...this.#listeners]) listener(event);
  }
}

/** While the guest runs every collect finds `perRound` pages written; the last of them is stamped with the round. */
export class DiaryTracker implements DirtyTracker {
  readonly #machine: DiaryMachine;
  #bitmap: ArrayBitmap | null = null;
  #round = 0;
  perRound: number[] = [3, 2, 1];
  coarseBytes = 0;
  readonly sources: readonly DirtySourceKind[] = ['kvm', 'vmm'];
  options: DirtyOptions | null = null;

  constructor(machine: DiaryMachine) {
    this.#machine = machine;
  }
  get on(): boolean {
    return this.#bitmap !== null;
  }
  async start(options: DirtyOptions): Promise<void> {
    this.#machine.diary.note('dirty.start');
    this.options = options;
    this.#bitmap = new ArrayBitmap(this.#machine.ram.size / PAGE);
  }
  async collect(last: boolean): ReturnType<DirtyTracker['collect']> {
    this.#machine.diary.note(last ? 'dirty.collectLast' : 'dirty.collect');
    const bitmap = this.#bitmap!;
    let kvm = bitmap.pages;
    if (this.#round === 0) bitmap.fill();
    else {
      kvm = this.perRound[Math.min(this.#round - 1, this.perRound.length - 1)]!;
      for (let page = 0; page < kvm; page += 1)
        this.#machine.ram.bytes.fill(0x80 + this.#round, page * PAGE, page * PAGE + 64);
      bitmap.set(0, kvm);
    }
    this.#round += 1;
    return {
      bitmap,
      pages: { kvm, vmm: 0, deviceLog: null, region: null, container: null, iommufd: null, allOfRam: null },
      failed: [],
    };
  }
  async stop(): Promise<void> {
    this.#machine.diary.note('dirty.stop');
    this.#bitmap = null;
  }
}
