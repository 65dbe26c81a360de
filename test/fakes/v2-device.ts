// A device with migration v2 for tests of `ferry vfio check`: states, sessions, stream, DMA, interrupt, log; written from the comments of
// linux/vfio.h, with nothing of devices/vfio. `quirks` are seeded driver bugs and legal oddities, each a name that the code below asks for.
// test/fakes/check-kernel.ts puts it behind the ioctls.
import { crc32 } from 'node:zlib';
import { SysError } from '../../native/errno.ts';
import { Session } from './v2-session.ts';

export const EIO = 5;
export const EBUSY = 16;
export const ENODEV = 19;
export const EINVAL = 22;

const [ERROR, STOP, RUNNING, STOP_COPY, RESUMING, RUNNING_P2P, PRE_COPY, PRE_COPY_P2P] = [0, 1, 2, 3, 4, 5, 6, 7];

/** The next step from a state (row) to another (column), both in the order 1..7; 0: refused. With all flags. */
const STEPS: Readonly<Record<number, readonly number[]>> = {
  1: [1, 5, 3, 4, 5, 5, 5],
  2: [5, 2, 5, 5, 5, 6, 5],
  3: [1, 1, 3, 1, 1, 0, 0],
  4: [1, 1, 1, 4, 1, 1, 1],
  5: [1, 2, 1, 1, 5, 2, 7],
  6: [2, 2, 7, 2, 2, 6, 7],
  7: [5, 5, 3, 5, 5, 6, 7],
};

export interface DeviceMemory {
  write(iova: number, bytes: Uint8Array): void;
  /** Another device's BAR, not RAM. */
  isPeer(iova: number): boolean;
}

/** Which of several devices of the kind this is. */
export interface WhichDevice {
  /** Nothing of it may be in a stream. */
  readonly instance: number;
  /** Bytes of internal state. */
  readonly size: number;
}

export class V2Device {
  readonly quirks: ReadonlySet<string>;
  readonly flags: number;
  readonly memory: DeviceMemory;
  readonly which: WhichDevice;
  /** Signals the device's vector. */
  signal: () => boolean = () => false;
  readonly complaints: string[] = [];
  state = RUNNING as number;
  inner: Uint8Array;
  session: Session | null = null;
  lastSession: Session | null = null;
  cancelledPrecopy = false;
  logging = false;
  readonly logged = new Set<number>();
  logRanges: readonly { readonly iova: number; readonly length: number }[] = [];
  sessions = 0;
  #dma: Promise<void> | null = null;
  #dmaToPeer = false;
  /** DMA that was begun in a P2P state. */
  #held: (() => void)[] = [];
  #irqPending = false;
  #raised = false;
  #arrivedAt = 0;
  #dead = false;
  #wedged = false;
  #turn: Promise<unknown> = Promise.resolve();
  #busy = 0;

  constructor(quirks: readonly string[], flags: number, memory: DeviceMemory, which: WhichDevice) {
    this.quirks = new Set(quirks);
    this.flags = flags;
    this.memory = memory;
    this.which = which;
    this.inner = new Uint8Array(which.size);
    if (this.has('first-in-stop')) this.state = STOP;
  }

  has(quirk: string): boolean {
    return this.quirks.has(quirk);
  }
  get stopped(): boolean {
    return [STOP, STOP_COPY, RESUMING, ERROR].includes(this.state);
  }
  get preCopying(): boolean {
    return this.state === PRE_COPY || this.state === PRE_COPY_P2P;
  }
  supports(state: number): boolean {
    if (state === RUNNING_P2P) return (this.flags & 2) !== 0;
    if (state === PRE_COPY) return (this.flags & 4) !== 0;
    if (state === PRE_COPY_P2P) return (this.flags & 6) === 6;
    return state >= STOP && state <= RESUMING;
  }

  /** One SET at a time, as a driver's mutex has it. Gives the session whose fd is to be returned. */
  setState(to: number): Promise<Session | null> {
    if (this.has('set-race') && this.#busy > 0) throw new SysError('SET', EBUSY);
    this.#busy++;
    const done = this.#turn.then(() => this.#walk(to)).finally(() => this.#busy--);
    this.#turn = done.catch(() => undefined);
    return done;
  }

  async #walk(to: number): Promise<Session | null> {
    // A driver's own work is never over within the same tick.
    await new Promise((resolve) => setImmediate(resolve));
    if (this.has('bounds') && to > PRE_COPY_P2P) return null;
    if (this.has('error-can-be-asked') && to === ERROR) {
      this.state = ERROR;
      return null;
    }
    if (to === this.state) return this.#same();
    const known = this.supports(to) || (this.has('optional-p2p') && to === RUNNING_P2P);
    if (!known || to === ERROR) throw new SysError('SET', EINVAL);
    if (this.state === ERROR) {
      if (!this.has('error-leavable')) throw new SysError('SET', EINVAL);
      this.state = STOP;
    }
    if (this.#wedged && to === RUNNING) throw new SysError('SET', EIO);
    let opened: Session | null = null;
    while (this.state !== to) {
      const next = this.#next(to);
      opened = await this.#step(next);
      this.state = next;
      this.#arrived();
    }
    return opened;
  }

  #same(): Session | null {
    if (this.has('same-refused')) throw new SysError('SET', EINVAL);
    return this.has('same-reopens') ? this.session : null;
  }

  #next(to: number): number {
    if (this.has('copy-to-precopy') && this.state === STOP_COPY && this.supports(to)) return to;
    let next = this.state;
    do {
      next = STEPS[next]?.[to - 1] ?? 0;
      if (next === 0) throw new SysError('SET', EINVAL);
    } while (!this.supports(next) && next !== to);
    return next;
  }

  /** One arc, while the state is still the old one. */
  async #step(next: number): Promise<Session | null> {
    if (this.has('slow-arcs')) await new Promise((resolve) => setTimeout(resolve, 15));
    const from = this.state;
    if (this.has('stop-fails') && next === STOP && from === (this.supports(RUNNING_P2P) ? RUNNING_P2P : RUNNING)) {
      throw new SysError('SET', EIO);
    }
    if (this.has('fails-elsewhere') && next === RESUMING) {
      this.state = RUNNING;
      throw new SysError('SET', EIO);
    }
    if (this.has('warns') && next === STOP_COPY) this.complaints.push('WARNING: CPU: 0 PID: 1 at drivers/vfio/x.c:1');
    const stops = next === STOP || next === STOP_COPY || next === RUNNING_P2P || next === PRE_COPY_P2P;
    if (stops && !this.#goesOnIn(next)) await this.#dma;
    if (next === STOP && this.has('dies-of-stop')) this.#dead = true;
    if (next === STOP && this.has('log-lost-by-stop')) this.logged.clear();
    if (next === STOP && this.has('irq-lost')) this.#irqPending = false;
    if (from === RESUMING) this.#finishResuming();
    return this.#changeSession(from, next);
  }

  /** What is under way, once it is in that state. */
  #goesOnIn(state: number): boolean {
    if (this.has('late-dma')) return true;
    if (state !== RUNNING_P2P && state !== PRE_COPY_P2P) return false;
    return this.has(this.#dmaToPeer ? 'peer-dma-in-p2p' : 'ram-dma-in-p2p');
  }

  #changeSession(from: number, next: number): Session | null {
    const saving = (state: number) => [STOP_COPY, PRE_COPY, PRE_COPY_P2P].includes(state);
    if (saving(next) && !saving(from)) {
      this.#open('saving');
      if (next === STOP_COPY) this.session?.finish();
      return this.has('no-fd') && next === PRE_COPY ? null : this.session;
    }
    if (saving(from) && saving(next)) {
      if (this.has('group-fd-dies') && next === PRE_COPY_P2P && this.session !== null) this.session.over = 'dead';
      if (next === STOP_COPY) this.session?.finish();
      return this.has('second-fd') && next === STOP_COPY ? this.session : null;
    }
    if (from === PRE_COPY && next === RUNNING) this.cancelledPrecopy = true;
    if (saving(from) || from === RESUMING) this.endSession('set');
    if (next !== RESUMING) return null;
    this.#open('resuming');
    return this.session;
  }

  #open(kind: 'saving' | 'resuming'): void {
    this.sessions++;
    this.session = new Session(this, kind);
  }

  endSession(how: 'set' | 'reset' | 'close'): void {
    if (this.session === null) return;
    this.session.over = how;
    this.lastSession = this.session;
    this.session = null;
  }

  #finishResuming(): void {
    const session = this.session;
    const loaded = session?.loaded() ?? null;
    if (session === null || loaded === null) {
      if (this.has('retry-passes')) session?.forgive();
      if (this.has('refused-to-error') || this.has('error-leavable')) this.#fail();
      if (this.has('refused-to-running')) {
        this.endSession('set');
        this.state = RUNNING;
      }
      throw new SysError('SET', EINVAL);
    }
    if (this.has('refuses-its-own')) throw new SysError('SET', EINVAL);
    this.inner = this.ownView(loaded);
    if (this.has('state-lost')) this.inner[63] = 0;
  }

  /** The state as this instance writes it into a stream, and takes it from one: the same for all of them, but for a bug. */
  ownView(inner: Uint8Array): Uint8Array {
    const bound = this.has('instance-state') ? this.which.instance : 0;
    return inner.map((byte) => byte ^ bound);
  }

  #fail(): void {
    this.endSession('set');
    this.state = ERROR;
  }

  #arrived(): void {
    this.#arrivedAt = performance.now();
    if (this.stopped && this.has('late-irq') && this.#raised) setTimeout(() => this.signal(), 5);
    if (this.stopped) this.#raised = false;
    if (this.state === STOP && this.has('drifts') && this.#dma !== null) {
      setTimeout(() => {
        if (this.stopped) this.inner[1]!++;
      }, 8);
    }
    this.flush();
    this.#release();
  }

  #release(): void {
    if (this.state !== RUNNING && this.state !== PRE_COPY) return;
    for (const go of this.#held.splice(0)) if (!this.has('peer-dma-lost')) go();
  }

  reset(): void {
    if (this.has('reset-stays') && this.state === STOP_COPY) return;
    this.endSession('reset');
    this.state = RUNNING;
    if (!this.has('reset-keeps-inner')) this.inner = new Uint8Array(this.which.size);
    this.#held = [];
    this.logging = false;
    this.#wedged = false;
  }

  closed(): void {
    this.logging = false;
    this.logged.clear();
    this.endSession('close');
    if (!this.has('close-keeps-state')) this.state = RUNNING;
    if (!this.has('close-keeps-inner')) this.inner = new Uint8Array(this.which.size);
    this.#held = [];
    this.#dead = false;
  }

  /** A device that leaves a P2P state when it was left alone for long: tests with that quirk wait longer. */
  stateNow(): number {
    const left = this.has('leaves-p2p') && performance.now() - this.#arrivedAt > 250;
    if (left && this.state === RUNNING_P2P) {
      this.state = RUNNING;
      this.#release();
    }
    return this.state;
  }

  /** A vector was armed, or the device runs again. */
  flush(): void {
    if (!this.stopped && this.#irqPending) this.#irqPending = !this.signal();
  }

  touched(): void {
    if (this.has('access-wedges') && this.stopped) this.#wedged = true;
  }

  mutate(seed: number): void {
    this.inner = this.inner.map((_, i) => (seed * 7 + i) & 0xff);
  }

  hash(): number {
    return crc32(this.inner);
  }

  /** Some milliseconds until it lands; the states wait for it. In the P2P states it waits for them. */
  startDma(iova: number, bytes: Uint8Array): void {
    if (this.#dead) return;
    const go = () => this.#begin(iova, bytes);
    const quiescent = this.state === RUNNING_P2P || this.state === PRE_COPY_P2P;
    const ramGoesOn = this.has('ram-dma-in-p2p') && !this.memory.isPeer(iova);
    if (quiescent && !ramGoesOn && !this.has('p2p-new-dma')) this.#held.push(go);
    else go();
  }

  #begin(iova: number, bytes: Uint8Array): void {
    this.#dmaToPeer = this.memory.isPeer(iova);
    if (this.has('log-at-start')) this.#log(iova, bytes.length);
    this.#dma = new Promise((resolve) => {
      setTimeout(() => {
        this.memory.write(iova, bytes);
        if (!this.has('log-at-start')) this.#log(iova, bytes.length);
        resolve();
      }, 20);
    });
  }

  #log(iova: number, length: number): void {
    if (!this.logging) return;
    for (let page = Math.floor(iova / 4096); page * 4096 < iova + length; page++) {
      const at = page * 4096;
      const ranges = this.has('log-one-range') ? this.logRanges.slice(0, 1) : this.logRanges;
      const covered = ranges.some((range) => at >= range.iova && at < range.iova + range.length);
      if (covered && !(this.has('log-misses') && page % 64 === 0)) this.logged.add(page);
    }
  }

  raise(): void {
    this.#raised = true;
    const send = () => {
      if (this.stopped) this.#irqPending = !this.has('irq-lost');
      else if (!this.signal()) this.#irqPending = true;
    };
    setTimeout(send, 3);
  }
}
