// The kernel between `ferry vfio check` and a scripted device of an older generation (migration-region-device.ts, state-regions-device.ts): as
// legacy-kernel.ts, with the door of a check, a BAR by which the device does DMA and changes inside, and bugs that lie between the two.
// RAM and eventfds are real ones of the addon.
import type { CheckDoor } from '../../devices/vfio/check/check-door.ts';
import type { DevicePlace } from '../../devices/vfio/check/place.ts';
import { kvmNode } from '../../native/addon.ts';
import { SysError } from '../../native/errno.ts';
import { type FakeRegionDevice, FIRST_REGION, LegacyKernel } from './legacy-kernel.ts';
import { regionInfo } from './vfio-kernel.ts';

/** What the rest of a device is to its migration registers. */
export interface LegacyInside {
  running(): boolean;
  /** Its DMA engine wrote this page. */
  wrote(page: number): void;
  /** Another internal state for each seed. */
  mutate(seed: number): void;
  hash(): number;
  /** As a new user finds it. */
  fresh(): void;
}

/** What is wrong with a device: in place of its own reads and writes, or of what it is inside. */
export interface LegacyBug {
  read?(region: number, offset: number, into: Uint8Array): number | null;
  write?(region: number, offset: number, from: Uint8Array): number | null;
  readonly inside?: Partial<LegacyInside>;
  /** It is done instead. */
  reset?(): void;
  /** Closing does nothing. */
  readonly closeKeeps?: boolean;
}

const IOVA = 0x100000;
const RAM_BYTES = 4 * 2 ** 20;
const SHIFT = 2 ** 40;
const PAGE = 4096;
const DEVICE_FD = 300_000;
/** BAR0, as fakeExerciser() of check-kernel.ts has it. */
const REG = { mutate: 0, hash: 4, iova: 8, length: 12, seed: 16 };
const DMA_MS = 15;

export class CheckLegacyKernel extends LegacyKernel implements CheckDoor {
  readonly checkPlace: DevicePlace;
  open = 0;
  readonly #addon = kvmNode();
  readonly #ram = this.#addon.createRam(RAM_BYTES, { hugePages: false, populate: false });
  readonly #inside: LegacyInside;
  readonly #bug: LegacyBug;
  readonly #registers = new DataView(new ArrayBuffer(64));
  #held: (() => void)[] = [];
  #gone = false;

  constructor(device: FakeRegionDevice, inside: LegacyInside, bug: LegacyBug = {}, name = 'fake') {
    super(device);
    this.#inside = { ...inside, ...bug.inside };
    this.#bug = bug;
    this.regions[0] = regionInfo(0, 4096n, 3, [], null);
    for (let index = 1; index < FIRST_REGION; index++) this.regions[index] = regionInfo(index, 0n, 0, [], null);
    this.answers.set('VFIO_DEVICE_FEATURE', 25);
    this.answers.set('VFIO_DEVICE_RESET', () => {
      if (bug.reset !== undefined) bug.reset();
      else device.reset();
      this.#flush();
      return 0;
    });
    this.checkPlace = {
      name,
      door: this,
      ram: this.#ram,
      iova: IOVA,
      tracks: true,
      openDevice: () => {
        this.open++;
        return DEVICE_FD;
      },
      map: async () => {},
      unmap: async () => {},
      mapPeer: () => Promise.reject(new Error('these have no P2P states')),
      close: async () => {
        this.#gone = true;
        this.#ram.close();
      },
    };
  }

  /** What waited for the device to run. */
  #flush(): void {
    if (!this.#inside.running()) return;
    for (const go of this.#held.splice(0)) go();
  }

  override pread(fd: number, offset: bigint | number, into: Uint8Array): number {
    const at = Number(offset);
    if (at < SHIFT) {
      this.#registers.setUint32(REG.hash, this.#inside.hash(), true);
      into.set(new Uint8Array(this.#registers.buffer, at, into.length));
      return into.length;
    }
    const own = this.#bug.read?.(Math.floor(at / SHIFT) - FIRST_REGION, at % SHIFT, into) ?? null;
    return own ?? super.pread(fd, offset, into);
  }

  override pwrite(fd: number, offset: bigint | number, from: Uint8Array): number {
    const at = Number(offset);
    if (at < SHIFT) {
      this.#register(at, from);
      return from.length;
    }
    const own = this.#bug.write?.(Math.floor(at / SHIFT) - FIRST_REGION, at % SHIFT, from) ?? null;
    const done = own ?? super.pwrite(fd, offset, from);
    this.#flush();
    return done;
  }

  #register(at: number, from: Uint8Array): void {
    if (!this.#inside.running()) return;
    new Uint8Array(this.#registers.buffer).set(from, at);
    const value = (register: number) => this.#registers.getUint32(register, true);
    if (at === REG.mutate) this.#inside.mutate(value(REG.mutate));
    if (at === REG.seed) this.#dma(value(REG.iova), value(REG.length), value(REG.seed));
  }

  /** Lands a little later; one that finds the device stopped waits. */
  #dma(iova: number, length: number, seed: number): void {
    const bytes = Uint8Array.from({ length }, (_, i) => (seed + i * 3 + 1) & 0xff);
    const land = () => {
      this.#ram.copyIn(iova - IOVA, bytes);
      for (let page = Math.floor(iova / PAGE); page * PAGE < iova + length; page++) this.#inside.wrote(page);
    };
    setTimeout(() => {
      if (this.#gone) return;
      if (this.#inside.running()) land();
      else this.#held.push(land);
    }, DMA_MS);
  }

  override closeFd(fd: number): void {
    if (fd !== DEVICE_FD) {
      this.#addon.closeFd(fd);
      return;
    }
    this.open--;
    this.#held = [];
    if (this.#bug.closeKeeps === true) return;
    this.device.reset();
    this.#inside.fresh();
  }

  override eventFd(): number {
    return this.#addon.eventFd();
  }
  createRam(size: number, options: { hugePages: boolean; populate: boolean }) {
    return this.#addon.createRam(size, options);
  }
  dupFd(): number {
    throw new SysError('dup', 9);
  }
  async readFd(): Promise<number> {
    throw new SysError('read', 9);
  }
  async writeFd(): Promise<number> {
    throw new SysError('write', 9);
  }
  readable(): boolean {
    return false;
  }
  nonBlocking(): void {}
}

export function sumOf(...parts: readonly Uint8Array[]): number {
  let sum = 7;
  for (const bytes of parts) for (const byte of bytes) sum = (Math.imul(sum, 31) + byte) >>> 0;
  return sum;
}

export function stateOf(seed: number, length: number): Uint8Array {
  return Uint8Array.from({ length }, (_, i) => (seed * 13 + i * (seed + 3) + (i >> 6)) & 0xff);
}
