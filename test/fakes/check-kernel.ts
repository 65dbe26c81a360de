// The kernel between `ferry vfio check` and test/fakes/v2-device.ts: device and data fds, the ioctls byte by byte as linux/vfio.h lays them out
// (offsets written out here), read and write. RAM and eventfds are real ones of the addon.
import type { CheckDoor } from '../../devices/vfio/check/check-door.ts';
import type { Exerciser } from '../../devices/vfio/check/exerciser.ts';
import type { DevicePlace } from '../../devices/vfio/check/place.ts';
import type { HostMapping, Patch } from '../../native/addon.ts';
import { kvmNode } from '../../native/addon.ts';
import { SysError } from '../../native/errno.ts';
import { V2Device, type WhichDevice } from './v2-device.ts';
import type { Session } from './v2-session.ts';

const EINVAL = 22;
const ENOTTY = 25;
const EBADF = 9;
const EFAULT = 14;
const EIO = 5;
const IOVA = 0x100000;
const PAGE = 4096;
const CONFIG = 7;
/** A page that keeps what is written to it, and may be mapped. */
const MAILBOX = 2;
const PEER_IOVA = 0x4000000;
/** BAR0 of the fake device, one write each. */
const REG = { mutate: 0, hash: 4, iova: 8, length: 12, seed: 16, raise: 20 };

export interface FakeOptions {
  readonly quirks?: readonly string[];
  /** 1 STOP_COPY, 2 P2P, 4 PRE_COPY. */
  readonly flags?: number;
  readonly log?: boolean;
  readonly dataSize?: boolean;
  readonly reset?: boolean;
  readonly which?: WhichDevice;
  /** mmap of the mailbox fails. */
  readonly unmappable?: boolean;
}

export class CheckKernel implements CheckDoor {
  readonly device: V2Device;
  readonly place: DevicePlace;
  /** Called when a session was opened; a test leaks memory there. */
  onSession: () => void = () => {};
  readonly #options: Required<FakeOptions>;
  readonly #addon = kvmNode();
  readonly #open = new Map<number, 'device' | Session>();
  readonly #registers = new DataView(new ArrayBuffer(64));
  readonly #ram = this.#addon.createRam(4 * 2 ** 20, { hugePages: false, populate: false });
  #next = 100_000;
  #faulting: ArrayBuffer | null = null;
  #vector = -1;
  #reading = 0;
  #mapped = true;
  readonly #mailbox = new Uint8Array(PAGE);
  /** The BAR that its DMA reaches. */
  #peer: Uint8Array | null = null;

  constructor(options: FakeOptions = {}) {
    const which = { instance: 0, size: 64 };
    const all = { quirks: [], flags: 7, log: true, dataSize: true, reset: true, which, unmappable: false };
    this.#options = { ...all, ...options };
    const memory = {
      write: (iova: number, bytes: Uint8Array) => this.#write(iova, bytes),
      isPeer: (iova: number) => iova >= PEER_IOVA,
    };
    this.device = new V2Device(this.#options.quirks, this.#options.flags, memory, this.#options.which);
    this.device.signal = () => {
      if (this.#vector >= 0) this.#addon.eventSignal(this.#vector);
      return this.#vector >= 0;
    };
    this.place = {
      name: `fake${this.#options.which.instance}`,
      door: this,
      ram: this.#ram,
      iova: IOVA,
      tracks: true,
      openDevice: () => this.#number('device'),
      map: async () => {
        this.#mapped = true;
      },
      unmap: async () => {
        this.#mapped = false;
      },
      mapPeer: async (bar) => {
        this.#peer = new Uint8Array(bar.view);
        return {
          iova: PEER_IOVA,
          unmap: async () => {
            this.#peer = null;
          },
        };
      },
      close: async () => this.#ram.close(),
    };
  }

  #write(iova: number, bytes: Uint8Array): void {
    if (iova >= PEER_IOVA && this.#peer !== null) this.#peer.set(bytes, iova - PEER_IOVA);
    else if (iova < PEER_IOVA && this.#mapped) this.#ram.copyIn(iova - IOVA, bytes);
    else this.device.complaints.push('DMAR: [DMA Write NO_PASID] Request device fault addr');
  }

  /** Fds that nobody closed. */
  get open(): number {
    return this.#open.size;
  }

  #number(what: 'device' | Session): number {
    this.#open.set(this.#next, what);
    return this.#next++;
  }

  #has(quirk: string): boolean {
    return this.device.has(quirk);
  }

  ioctl(name: string, fd: number, request: number, arg: number | Uint8Array, patches: readonly Patch[] = []): number {
    const what = this.#open.get(fd);
    if (what !== 'device') throw new SysError(name, EBADF);
    if (typeof arg === 'number') throw new SysError(name, ENOTTY);
    const view = new DataView(arg.buffer, arg.byteOffset, arg.byteLength);
    if (request === 0x3b6b) this.#deviceInfo(view);
    else if (request === 0x3b6c) this.#regionInfo(name, view);
    else if (request === 0x3b6d) this.#irqInfo(view);
    else if (request === 0x3b6e) this.#setIrqs(name, view);
    else if (request === 0x3b75) this.#feature(name, view, patches);
    else throw new SysError(name, ENOTTY);
    return 0;
  }

  async ioctlAsync(
    name: string,
    fd: number,
    request: number,
    arg: number | Uint8Array,
    patches: readonly Patch[] = [],
  ) {
    const what = this.#open.get(fd);
    if (what === undefined) throw new SysError(name, EBADF);
    if (request === 0x3b6f) return this.#reset(name);
    if (typeof arg === 'number') throw new SysError(name, ENOTTY);
    const view = new DataView(arg.buffer, arg.byteOffset, arg.byteLength);
    if (what !== 'device') return request === 0x3b79 ? this.#info(what, view) : this.ioctl(name, fd, request, arg);
    const set = request === 0x3b75 && (view.getUint32(4, true) & 0x2ffff) === 0x20002;
    if (!set) return this.ioctl(name, fd, request, arg, patches);
    if (this.#has('leave-busy') && this.#reading > 0) throw new SysError(name, 16);
    const session = await this.device.setState(view.getUint32(8, true));
    view.setInt32(12, session === null ? -1 : this.#number(session), true);
    if (session !== null) this.onSession();
    return 0;
  }

  #reset(name: string): number {
    if (!this.#options.reset && !this.#has('reset-unannounced')) throw new SysError(name, ENOTTY);
    this.device.reset();
    return 0;
  }

  #info(session: Session, view: DataView): number {
    const { initial, dirty } = session.info(view.getUint32(0, true));
    view.setBigUint64(8, BigInt(initial), true);
    view.setBigUint64(16, BigInt(dirty), true);
    return 0;
  }

  #deviceInfo(view: DataView): void {
    view.setUint32(4, 2 | (this.#options.reset ? 1 : 0), true);
    view.setUint32(8, 9, true);
    view.setUint32(12, 5, true);
  }

  #regionInfo(name: string, view: DataView): void {
    const index = view.getUint32(8, true);
    if (index === 8) throw new SysError(name, EINVAL);
    view.setUint32(4, index === MAILBOX ? 7 : 3, true);
    view.setBigUint64(16, BigInt([0, MAILBOX, CONFIG].includes(index) ? 4096 : 0), true);
    view.setBigUint64(24, BigInt(index) << 40n, true);
  }

  #irqInfo(view: DataView): void {
    view.setUint32(4, 9, true);
    view.setUint32(12, view.getUint32(8, true) === 1 ? 1 : 0, true);
  }

  #setIrqs(name: string, view: DataView): void {
    if (this.#has('irqs-dead') && this.device.stopped) throw new SysError(name, EIO);
    this.#vector = view.getUint32(16, true) === 0 ? -1 : view.getInt32(20, true);
    this.device.flush();
  }

  #feature(name: string, view: DataView, patches: readonly Patch[]): void {
    const flags = view.getUint32(4, true);
    const feature = flags & 0xffff;
    const offered =
      feature === 9 ? this.#options.dataSize : feature < 6 ? !this.#has('no-migration') : this.#options.log;
    if (!offered) throw new SysError(name, ENOTTY);
    if ((flags & 0x40000) !== 0) return;
    if (feature === 1) view.setBigUint64(8, BigInt(this.#options.flags & (this.#has('no-stop-copy') ? ~1 : ~0)), true);
    else if (feature === 2) this.#getState(view);
    else if (feature === 9) this.#dataSize(name, view);
    else this.#log(name, feature, view, patches);
  }

  #getState(view: DataView): void {
    view.setUint32(8, this.device.stateNow(), true);
    const leaks = this.#has('get-gives-fd') && this.device.session !== null;
    view.setInt32(12, leaks ? this.#number(this.device.session as Session) : -1, true);
  }

  #dataSize(name: string, view: DataView): void {
    if (this.#has('size-refused') && this.device.stopped) throw new SysError(name, EINVAL);
    view.setBigUint64(8, this.#has('size-zero') ? 0n : 99n, true);
  }

  #log(name: string, feature: number, view: DataView, patches: readonly Patch[]): void {
    const { device } = this;
    if (feature === 8 && this.#has('no-report')) throw new SysError(name, 95);
    if (feature !== 7 && this.#has('log-running-only') && device.stopped) throw new SysError(name, EIO);
    if (feature === 7) device.logging = false;
    if (feature === 7) device.logged.clear();
    if (feature === 6) this.#startLog(name, view, patches);
    if (feature === 8) this.#report(name, view, patches);
  }

  #startLog(name: string, view: DataView, patches: readonly Patch[]): void {
    if (this.device.logging && !this.#has('log-twice')) throw new SysError(name, EBADF);
    if (view.getUint32(16, true) > 64 && this.#has('log-few-ranges')) throw new SysError(name, EINVAL);
    const patch = patches.find((each) => 'bytes' in each);
    if (patch === undefined || !('bytes' in patch)) throw new SysError(name, EFAULT);
    const list = new DataView(patch.bytes.buffer);
    this.device.logRanges = Array.from({ length: view.getUint32(16, true) }, (_, i) => ({
      iova: Number(list.getBigUint64(i * 16, true)),
      length: Number(list.getBigUint64(i * 16 + 8, true)),
    }));
    this.device.logging = true;
    view.setBigUint64(8, this.#has('log-no-page-size') ? 0n : this.#has('log-64k') ? 65536n : 4096n, true);
  }

  #report(name: string, view: DataView, patches: readonly Patch[]): void {
    if (!this.device.logging && !this.#has('log-off')) throw new SysError(name, EINVAL);
    const [iova, length, size] = [8, 16, 24].map((at) => Number(view.getBigUint64(at, true))) as [
      number,
      number,
      number,
    ];
    const patch = patches.find((each) => 'bytes' in each);
    if (patch === undefined || !('bytes' in patch)) throw new SysError(name, EFAULT);
    const bits = patch.bytes;
    if (this.#has('log-clears')) bits.fill(0);
    if (this.#has('over-report')) bits.fill(0xff);
    for (const page of this.device.logged) {
      const at = page * PAGE;
      if (at < iova || at >= iova + length) continue;
      const coarse = this.#has('log-64k') ? Math.floor(at / 65536) * 65536 : at;
      for (let each = coarse; each < coarse + (this.#has('log-64k') ? 65536 : 1); each += PAGE) {
        const bit = Math.floor((Math.max(each, iova) - iova) / (this.#has('log-fixed-size') ? PAGE : size));
        bits[bit >> 3] = (bits[bit >> 3] ?? 0) | (1 << (bit & 7));
      }
      this.device.logged.delete(page);
    }
    if (this.#has('log-clears-all')) this.device.logged.clear();
  }

  pread(fd: number, offset: bigint | number, into: Uint8Array): number {
    const { index, at } = this.#place(fd, offset, into.length);
    if (index === MAILBOX) into.set(this.#mailbox.subarray(at, at + into.length));
    else if (index === CONFIG)
      into.set(Uint8Array.of(0x34, 0x12, 0x99, 0x99, 6, 0, 0, 0).subarray(at, at + into.length));
    else {
      this.device.touched();
      this.#registers.setUint32(REG.hash, this.device.hash(), true);
      into.set(new Uint8Array(this.#registers.buffer, at, into.length));
    }
    return into.length;
  }

  pwrite(fd: number, offset: bigint | number, from: Uint8Array): number {
    const { index, at } = this.#place(fd, offset, from.length);
    if (index === MAILBOX) this.#mailbox.set(from, at);
    if (index !== 0 || this.device.stopped) return from.length;
    new Uint8Array(this.#registers.buffer).set(from, at);
    const value = (register: number) => this.#registers.getUint32(register, true);
    if (at === REG.mutate) this.device.mutate(value(REG.mutate));
    if (at === REG.raise) this.device.raise();
    if (at === REG.seed) this.device.startDma(value(REG.iova), fakePattern(value(REG.seed), value(REG.length)));
    return from.length;
  }

  #place(fd: number, offset: bigint | number, length: number): { index: number; at: number } {
    if (this.#open.get(fd) !== 'device') throw new SysError('pread', EBADF);
    const index = Number(BigInt(offset) >> 40n);
    const at = Number(BigInt(offset) & 0xffffffffffn);
    if (index === CONFIG && this.#has('config-dead') && this.device.stopped) throw new SysError('pread', EIO);
    const room = index === MAILBOX ? PAGE : 64;
    if (![0, MAILBOX, CONFIG].includes(index) || at + length > room) throw new SysError('pread', EINVAL);
    return { index, at };
  }

  async preadAsync(fd: number, offset: bigint | number, into: Uint8Array): Promise<number> {
    return this.pread(fd, offset, into);
  }
  async pwriteAsync(fd: number, offset: bigint | number, from: Uint8Array): Promise<number> {
    return this.pwrite(fd, offset, from);
  }

  #session(fd: number): Session {
    const what = this.#open.get(fd);
    if (what === undefined || what === 'device') throw new SysError('data fd', EBADF);
    return what;
  }

  async readFd(fd: number, into: Uint8Array, offset: number | null): Promise<number> {
    const session = this.#session(fd);
    this.#reading++;
    await new Promise((resolve) => setImmediate(resolve));
    this.#reading--;
    const bytes = session.read(into.length, offset);
    const room = into.buffer === this.#faulting ? PAGE - into.byteOffset : bytes.length;
    into.set(bytes.subarray(0, room));
    if (bytes.length > room && !this.#has('fault-loses')) session.unread(bytes.subarray(room));
    return Math.min(room, bytes.length);
  }

  async writeFd(fd: number, from: Uint8Array): Promise<number> {
    return this.#session(fd).write(from);
  }

  readable(fd: number): boolean {
    return this.#session(fd).readable;
  }
  nonBlocking(fd: number): void {
    this.#session(fd).setNonBlocking();
  }

  closeFd(fd: number): void {
    const what = this.#open.get(fd);
    if (what === undefined) this.#addon.closeFd(fd);
    this.#open.delete(fd);
    if (what === 'device') this.device.closed();
  }
  dupFd(fd: number): number {
    return this.#number(this.#session(fd));
  }

  /** Of a device: its mailbox. Else one whose second page is not there. */
  mapFd(fd: number, _offset: number, size: number): HostMapping {
    if (this.#open.get(fd) === 'device') {
      if (this.#options.unmappable) throw new SysError('mmap', EINVAL);
      return { size, view: this.#mailbox.buffer, unmap: () => {} };
    }
    const view = new ArrayBuffer(size);
    this.#faulting = view;
    return { size, view, unmap: () => {} };
  }
  createBitmap(pages: number) {
    return this.#addon.createBitmap(pages);
  }
  createRam(size: number, options: { hugePages: boolean; populate: boolean }) {
    return this.#addon.createRam(size, options);
  }
  eventFd(): number {
    return this.#addon.eventFd();
  }
  eventTake(fd: number): bigint {
    return this.#addon.eventTake(fd);
  }
}

function fakePattern(seed: number, length: number): Uint8Array {
  return Uint8Array.from({ length }, (_, i) => (seed + i * 3 + 1) & 0xff);
}

/** As an author would write one for this device. */
export function fakeExerciser(claims: Exerciser['claims']): Exerciser {
  const set = (port: Parameters<NonNullable<Exerciser['inner']>['hash']>[0], register: number, value: number) => {
    const bytes = new Uint8Array(4);
    new DataView(bytes.buffer).setUint32(0, value, true);
    port.writeRegion(0, register, bytes);
  };
  return {
    name: 'fake',
    matches: () => true,
    claims,
    dma: {
      ms: 30,
      maxBytes: 4096,
      pattern: fakePattern,
      async startWrite(port, iova, length, seed) {
        set(port, REG.iova, iova);
        set(port, REG.length, length);
        set(port, REG.seed, seed);
      },
    },
    peer: null,
    target: { region: MAILBOX, offset: 0, length: PAGE },
    interrupt: { index: 1, vector: 0, raise: async (port) => set(port, REG.raise, 1) },
    inner: {
      mutate: async (port, seed) => set(port, REG.mutate, seed),
      async hash(port) {
        const bytes = new Uint8Array(4);
        port.readRegion(0, REG.hash, bytes);
        return Buffer.from(bytes).toString('hex');
      },
    },
  };
}
