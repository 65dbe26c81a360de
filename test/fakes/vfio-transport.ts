// A VFIO device in this process, with faults to order: for the tests of the recovery ladder, of vfio-pci's function and of migration/.
// Its states follow the text of linux/vfio.h (enum vfio_device_mig_state), written here a second time on purpose: nothing of
// devices/vfio/migration/states.ts is used. It has no data fd; bytes go by read() and write().

import type {
  ChunkSink,
  ChunkSource,
  GpaRange,
  HostMapping,
  PageBitmap,
  PumpResult,
  RamRange,
} from '../../devices/contract.ts';
import type {
  DmaLogPort,
  PrecopyInfo,
  VfioInfo,
  VfioIrqs,
  VfioMigrationPort,
  VfioState,
  VfioTransport,
} from '../../devices/vfio/transport.ts';
import { SysError, VmmError } from '../../native/errno.ts';
import { fakeConfig } from './vfio-config.ts';

const EIO = 5;
const EINVAL = 22;

/** What goes wrong, and when. Faults stay until they are taken out of the array. */
export type Fault =
  /** The driver refuses to enter `target`; the device is in `lands` afterwards. */
  | { readonly kind: 'refuse'; readonly target: VfioState; readonly lands: VfioState }
  /** The state change takes this long. */
  | { readonly kind: 'block'; readonly target: VfioState; readonly ms: number }
  /** A second session appears where the first should have gone on: the device was reset behind our back. */
  | { readonly kind: 'second-fd'; readonly target: VfioState }
  /** The stream ends after that many bytes. */
  | { readonly kind: 'short-read'; readonly after: number }
  /** read() says ENOMSG in STOP_COPY. */
  | { readonly kind: 'enomsg-in-stop-copy' }
  /** What was loaded is refused when RESUMING is left. */
  | { readonly kind: 'validation' }
  /** VFIO_DEVICE_RESET fails. */
  | { readonly kind: 'reset' };

export interface FakeOptions {
  readonly preCopy?: boolean;
  readonly p2p?: boolean;
  readonly dmaLog?: boolean;
  /** null: the device has no migration at all. */
  readonly migration?: boolean;
  readonly canReset?: boolean;
  /** 256 or 4096 bytes of configuration space; see vfio-config.ts. */
  readonly config?: Uint8Array;
  readonly regions?: VfioInfo['regions'];
  readonly irqs?: VfioInfo['irqs'];
  readonly name?: string;
  /** As if its regions lay in this fd. */
  readonly fd?: number;
}

const SAVING: readonly VfioState[] = ['stop-copy', 'pre-copy', 'pre-copy-p2p'];

/** Each line of the uAPI text that names an arc. */
function arcsByText(preCopy: boolean, p2p: boolean): [VfioState, VfioState][] {
  const arcs: [VfioState, VfioState][] = [
    ['stop', 'stop-copy'],
    ['stop-copy', 'stop'],
    ['stop', 'resuming'],
    ['resuming', 'stop'],
  ];
  if (p2p) {
    arcs.push(['running', 'running-p2p'], ['running-p2p', 'running'], ['running-p2p', 'stop'], ['stop', 'running-p2p']);
  } else arcs.push(['running', 'stop'], ['stop', 'running']);
  if (preCopy) arcs.push(['running', 'pre-copy'], ['pre-copy', 'running']);
  if (preCopy && !p2p) arcs.push(['pre-copy', 'stop-copy']);
  if (preCopy && p2p) {
    arcs.push(['pre-copy', 'pre-copy-p2p'], ['pre-copy-p2p', 'pre-copy'], ['pre-copy-p2p', 'stop-copy']);
    arcs.push(['running-p2p', 'pre-copy-p2p'], ['pre-copy-p2p', 'running-p2p']);
  }
  return arcs;
}

/** "The kernel chooses the shortest path … with the rule that a saving group state is never passed through …": all simple paths are
 *  enumerated and the shortest allowed one taken. null: -EINVAL. */
export function walkByText(from: VfioState, to: VfioState, preCopy: boolean, p2p: boolean): VfioState[] | null {
  if (from === 'error' || to === 'error') return null;
  if (from === to) return [];
  // "STOP_COPY -> PRE_COPY*: not supported, going back would begin another session".
  if (from === 'stop-copy' && to.startsWith('pre-copy')) return null;
  const arcs = arcsByText(preCopy, p2p);
  let best: VfioState[] | null = null;
  const visit = (path: VfioState[]): void => {
    const at = path.at(-1) as VfioState;
    if (at === to) {
      const middle = path.slice(1, -1);
      const savingWithin =
        SAVING.includes(from) && SAVING.includes(to) && path.every((state) => SAVING.includes(state));
      const clean = !middle.some((state) => SAVING.includes(state) || state === 'resuming');
      if ((clean || savingWithin) && (best === null || path.length - 1 < best.length)) best = path.slice(1);
      return;
    }
    for (const [a, b] of arcs) if (a === at && !path.includes(b)) visit([...path, b]);
  };
  visit([from]);
  return best;
}

export class FakeVfio implements VfioTransport {
  readonly kind = 'fake';
  readonly name: string;
  readonly info: VfioInfo;
  readonly irqs: FakeIrqs;
  readonly migration: FakePort | null;
  readonly dmaLog: FakeDmaLog | null;
  readonly faults: Fault[] = [];
  /** Every call that changes something, in order. */
  readonly calls: string[] = [];
  readonly config: Uint8Array;
  /** Contents of the BARs. */
  readonly memory = new Map<number, Uint8Array>();
  mapped: { index: number; area: GpaRange }[] = [];
  isOpen = true;
  readonly #fd: number | null;

  constructor(options: FakeOptions = {}) {
    this.#fd = options.fd ?? null;
    this.name = options.name ?? '0000:65:00.0';
    this.config = (options.config ?? fakeConfig()).slice();
    const regions = options.regions ?? [bar(0, 0x4000, [{ start: 0, length: 0x4000 }])];
    this.info = {
      canReset: options.canReset ?? true,
      regions: [
        ...regions,
        { index: 7, size: this.config.length, readable: true, writable: true, areas: [], type: null },
      ],
      irqs: options.irqs ?? [irq(0, 1), irq(1, 1), irq(2, 4)],
    };
    for (const region of regions) this.memory.set(region.index, new Uint8Array(region.size));
    this.irqs = new FakeIrqs(this.calls);
    const able = { preCopy: options.preCopy ?? true, p2p: options.p2p ?? true };
    this.migration = (options.migration ?? true) ? new FakePort(this, able) : null;
    this.dmaLog = (options.dmaLog ?? true) ? new FakeDmaLog(this.calls) : null;
  }

  readRegion(index: number, offset: number, into: Uint8Array): void {
    const bytes = this.#bytes(index);
    if (offset + into.length > bytes.length) throw new SysError(`pread(${this.name} region ${index})`, EIO);
    into.set(bytes.subarray(offset, offset + into.length));
  }

  writeRegion(index: number, offset: number, from: Uint8Array): void {
    const bytes = this.#bytes(index);
    if (offset + from.length > bytes.length) throw new SysError(`pwrite(${this.name} region ${index})`, EIO);
    bytes.set(from, offset);
    this.calls.push(
      `write ${index}+0x${offset.toString(16)}=${[...from].map((byte) => byte.toString(16).padStart(2, '0')).join('')}`,
    );
  }

  regionFile(index: number): { fd: number; offset: number } | null {
    return this.#fd === null ? null : { fd: this.#fd, offset: index * 2 ** 40 };
  }

  mapArea(index: number, area: GpaRange): HostMapping | null {
    this.mapped.push({ index, area });
    return {
      size: area.length,
      view: new ArrayBuffer(0),
      unmap: () => {
        this.mapped = this.mapped.filter((each) => each.area !== area);
      },
    };
  }

  async reset(): Promise<void> {
    this.calls.push('reset');
    if (this.faults.some((fault) => fault.kind === 'reset')) throw new SysError('VFIO_DEVICE_RESET', EIO);
    // The kernel puts the function's configuration back except what a reset clears: decode, bus mastering.
    this.config[4] = 0;
    this.config[5] = 0;
    this.migration?.wasReset();
  }

  async close(): Promise<void> {
    this.isOpen = false;
    this.calls.push('close');
  }

  #bytes(index: number): Uint8Array {
    const bytes = index === 7 ? this.config : this.memory.get(index);
    if (bytes === undefined) throw new SysError(`${this.name} region ${index}`, EINVAL);
    return bytes;
  }
}

export class FakeIrqs implements VfioIrqs {
  /** What is armed now: "index:vector" -> eventfd. */
  readonly armed = new Map<string, number>();
  /** Vectors that the host can give per index; more asked for gives this number back. */
  readonly limits = new Map<number, number>();
  unmaskEventFd: number | null = null;
  refuseUnmaskBy = false;
  readonly #calls: string[];

  constructor(calls: string[]) {
    this.#calls = calls;
  }

  trigger(index: number, start: number, eventFds: readonly (number | null)[]): number {
    const limit = this.limits.get(index);
    if (limit !== undefined && start + eventFds.length > limit) return limit;
    this.#calls.push(`irq ${index} trigger ${start}+${eventFds.length}`);
    eventFds.forEach((fd, i) => {
      if (fd === null) this.armed.delete(`${index}:${start + i}`);
      else this.armed.set(`${index}:${start + i}`, fd);
    });
    return 0;
  }

  disable(index: number): void {
    this.#calls.push(`irq ${index} disable`);
    for (const key of [...this.armed.keys()]) if (key.startsWith(`${index}:`)) this.armed.delete(key);
  }

  mask(index: number, start: number): void {
    this.#calls.push(`irq ${index} mask ${start}`);
  }

  unmask(index: number, start: number): void {
    this.#calls.push(`irq ${index} unmask ${start}`);
  }

  unmaskBy(index: number, _start: number, eventFd: number | null): void {
    if (this.refuseUnmaskBy) throw new SysError('VFIO_DEVICE_SET_IRQS', EINVAL);
    this.#calls.push(`irq ${index} unmaskBy`);
    this.unmaskEventFd = eventFd;
  }
}

/** "FAKE", length of the rest (u32 LE), bytes, sum of the bytes (u32 LE): refused on leaving RESUMING when it does not hold. */
export function fakeStream(contents: Uint8Array): Uint8Array {
  const stream = new Uint8Array(12 + contents.length);
  stream.set(Buffer.from('FAKE'));
  const view = new DataView(stream.buffer);
  view.setUint32(4, contents.length, true);
  stream.set(contents, 8);
  view.setUint32(8 + contents.length, sumOf(contents), true);
  return stream;
}

function sumOf(bytes: Uint8Array): number {
  let sum = 0;
  for (const byte of bytes) sum = (sum + byte) >>> 0;
  return sum;
}

export class FakePort implements VfioMigrationPort {
  readonly abi = 'fake';
  readonly dirtyPages = null;
  readonly preCopy: boolean;
  readonly p2p: boolean;
  /** The device's own memory: what a migration must carry. */
  contents = Uint8Array.from({ length: 5000 }, (_, i) => (i * 7) & 0xff);
  /** Bytes of the stream that pre-copy offers before STOP_COPY. */
  preCopyBytes = 1000;
  #state: VfioState = 'running';
  #session: 'none' | 'saving' | 'resuming' = 'none';
  #stream: Uint8Array = new Uint8Array(0);
  #read = 0;
  #written: Uint8Array[] = [];
  readonly #device: FakeVfio;

  constructor(device: FakeVfio, able: { preCopy: boolean; p2p: boolean }) {
    this.#device = device;
    this.preCopy = able.preCopy;
    this.p2p = able.p2p;
  }

  get state(): VfioState {
    return this.#state;
  }

  get sessionOpen(): boolean {
    return this.#session !== 'none';
  }

  /** As the ERROR state comes in life: by itself. */
  fail(): void {
    this.#state = 'error';
  }

  async setState(target: VfioState): Promise<void> {
    if (target === this.#state) return;
    this.#device.calls.push(`state ${target}`);
    const path = walkByText(this.#state, target, this.preCopy, this.p2p);
    if (path === null) throw this.#refused(target);
    for (const fault of this.#device.faults) {
      if (fault.kind === 'block' && fault.target === target) await new Promise((done) => setTimeout(done, fault.ms));
      if (fault.kind === 'refuse' && fault.target === target) {
        this.#state = fault.lands;
        if (!SAVING.includes(fault.lands) && fault.lands !== 'resuming') this.endSession();
        throw this.#refused(target);
      }
    }
    for (const next of path) this.#step(next);
    if (this.#device.faults.some((fault) => fault.kind === 'second-fd' && fault.target === target)) {
      this.endSession();
      throw new VmmError('vfio-data', `${this.#device.name}: a second data fd`, { exitCode: 1 });
    }
  }

  async stopCopySize(): Promise<number | null> {
    return 12 + this.contents.length - this.#read;
  }

  async precopyInfo(): Promise<PrecopyInfo | null> {
    if (this.#state !== 'pre-copy' && this.#state !== 'pre-copy-p2p') return null;
    return { initial: Math.max(0, this.preCopyBytes - this.#read), dirty: 0, reinit: false };
  }

  async save(sink: ChunkSink, budget: number): Promise<PumpResult> {
    for (let bytes = 0; ; ) {
      if (bytes >= budget) return { bytes, end: 'more' };
      const chunk = new Uint8Array(Math.min(budget - bytes, 2 ** 20));
      const got = this.#take(chunk);
      if (typeof got === 'string') return { bytes, end: got };
      await sink.put(chunk.slice(0, got));
      bytes += got;
    }
  }

  #take(into: Uint8Array): number | 'drained' | 'end' {
    if (this.#session !== 'saving') throw new SysError('read(data fd)', EINVAL);
    const running = this.#state !== 'stop-copy';
    const short = this.#device.faults.find((fault) => fault.kind === 'short-read');
    const available = running ? Math.min(this.preCopyBytes, this.#stream.length) : this.#stream.length;
    const end = short === undefined ? available : Math.min(available, short.after);
    const count = Math.min(into.length, end - this.#read);
    if (count <= 0) {
      const enomsg = this.#device.faults.some((fault) => fault.kind === 'enomsg-in-stop-copy');
      return running || enomsg ? 'drained' : 'end';
    }
    into.set(this.#stream.subarray(this.#read, this.#read + count));
    this.#read += count;
    return count;
  }

  async load(source: ChunkSource, length: number): Promise<void> {
    const from = await source.take(length);
    if (this.#session !== 'resuming') throw new SysError('write(data fd)', EINVAL);
    this.#written.push(from.slice());
  }

  async finishLoad(): Promise<'validated'> {
    await this.setState('stop');
    return 'validated';
  }

  endSession(): void {
    this.#session = 'none';
  }

  wasReset(): void {
    this.endSession();
    this.#state = 'running';
  }

  #step(next: VfioState): void {
    const before = this.#state;
    if (SAVING.includes(next) && !SAVING.includes(before)) {
      this.#session = 'saving';
      this.#read = 0;
      this.#stream = fakeStream(this.contents);
    }
    if (next === 'resuming') {
      this.#session = 'resuming';
      this.#written = [];
    }
    if (before === 'resuming') this.#validate();
    this.#state = next;
    if (!SAVING.includes(next) && next !== 'resuming') this.endSession();
  }

  #validate(): void {
    const stream = Buffer.concat(this.#written);
    const length = stream.length >= 12 ? stream.readUInt32LE(4) : -1;
    const whole = stream.subarray(0, 4).toString() === 'FAKE' && stream.length === length + 12;
    const contents = stream.subarray(8, 8 + Math.max(0, length));
    const sums = whole && stream.readUInt32LE(8 + length) === sumOf(contents);
    if (!sums || this.#device.faults.some((fault) => fault.kind === 'validation')) throw this.#refused('stop');
    this.contents = Uint8Array.from(contents);
  }

  #refused(target: VfioState): VmmError {
    const cause = new SysError('VFIO_DEVICE_FEATURE', EINVAL);
    return new VmmError('vfio-state', `${this.#device.name}: the device refused to go to ${target} (EINVAL)`, {
      cause,
      exitCode: 1,
    });
  }
}

export class FakeDmaLog implements DmaLogPort {
  /** Guest-physical pages that the device has written since the last report. */
  readonly written = new Set<number>();
  failReport = false;
  started = false;
  ranges: readonly GpaRange[] = [];
  readonly #calls: string[];

  constructor(calls: string[]) {
    this.#calls = calls;
  }

  async start(ranges: readonly GpaRange[], pageSize: number): Promise<number> {
    if (this.started) throw new SysError('VFIO_DEVICE_FEATURE(DMA_LOGGING_START)', EINVAL);
    this.#calls.push('log start');
    this.started = true;
    this.ranges = ranges;
    return pageSize;
  }

  async report(range: RamRange, into: PageBitmap): Promise<void> {
    this.#calls.push('log report');
    if (!this.started || this.failReport) throw new SysError('VFIO_DEVICE_FEATURE(DMA_LOGGING_REPORT)', 95);
    for (const gpa of this.written) {
      if (gpa < range.gpa || gpa >= range.gpa + range.size) continue;
      into.set((range.slice.offset + gpa - range.gpa) / 4096, 1);
      this.written.delete(gpa);
    }
  }

  async stop(): Promise<void> {
    this.#calls.push('log stop');
    this.started = false;
  }
}

export function bar(index: number, size: number, areas: readonly GpaRange[]): VfioInfo['regions'][number] {
  return { index, size, readable: true, writable: true, areas, type: null };
}

export function irq(index: number, count: number, noResize = true): VfioInfo['irqs'][number] {
  return { index, count, maskable: index === 0, automasked: index === 0, noResize };
}
