// The device under check, as every rule handles it whichever generation of the interface it speaks: the fd, opened, reset and opened anew, and
// what an exerciser may use. Base of bench.ts (v2), bench-region.ts (v1, v7) and bench-states.ts (device state regions). JS thread.
// linux/vfio.h, VFIO_GROUP_GET_DEVICE_FD, VFIO_DEVICE_RESET
import { VFIO_DEVICE_RESET } from '../../../native/abi/vfio.ts';
import type { GuestRam } from '../../../native/addon.ts';
import { SysError } from '../../../native/errno.ts';
import { KernelDevice } from '../kernel-device.ts';
import type { CheckDoor } from './check-door.ts';
import type { Exerciser, ExerciserPort } from './exerciser.ts';
import type { KernelLog } from './kernel-log.ts';
import type { DevicePlace } from './place.ts';
import { type Beside, type DriverNeed, Unreachable } from './rule.ts';

const CONFIG = 7;
const COMMAND = 4;
/** Memory decode and bus mastering: drivers cannot save a device that does not decode. */
const DECODE_AND_MASTER = 0x6;

/** A device that is there for a rule beside the one under check. */
export interface BesideDevice {
  readonly place: DevicePlace;
  readonly exerciser: Exerciser | null;
  /** Its ids are those of the device under check. */
  readonly sameKind: boolean;
}

export interface BenchHost {
  readonly place: DevicePlace;
  readonly exerciser: Exerciser | null;
  /** null: the user named none. */
  readonly beside: Readonly<Record<Beside, BesideDevice | null>>;
  /** How long something forbidden is waited for. */
  readonly settleMs: number;
  /** The host's /proc. */
  readonly proc: string;
  readonly kernel: KernelLog;
  /** Migrations in one batch of the rule about leaks, at most. */
  readonly loops: number;
}

export abstract class OpenedDevice {
  readonly host: BenchHost;
  readonly door: CheckDoor;
  #device: KernelDevice;
  #fd: number;

  protected constructor(host: BenchHost, fd: number) {
    this.host = host;
    this.door = host.place.door;
    this.#fd = fd;
    this.#device = this.#wrap(fd);
  }

  get fd(): number {
    return this.#fd;
  }
  get device(): KernelDevice {
    return this.#device;
  }
  get ram(): GuestRam {
    return this.host.place.ram;
  }
  get kernel(): KernelLog {
    return this.host.kernel;
  }
  /** What a rule's needs have made sure of. */
  get exerciser(): Exerciser {
    if (this.host.exerciser === null) throw new Unreachable('no exerciser');
    return this.host.exerciser;
  }
  get port(): ExerciserPort {
    const { place } = this.host;
    return {
      readRegion: (index, offset, into) => this.#device.readRegion(index, offset, into),
      writeRegion: (index, offset, from) => this.#device.writeRegion(index, offset, from),
      ram: place.ram,
      iova: place.iova,
      sleep,
    };
  }
  settle(): Promise<void> {
    return sleep(this.host.settleMs);
  }

  /** What the report says of it. */
  abstract offers(): string[];

  /** Whether driver and kernel have what a rule is about. */
  has(need: DriverNeed): boolean {
    return need === 'reset' && this.#device.info.canReset;
  }

  /** Back to where a device is when it was opened, by whatever leads there. */
  abstract home(): Promise<void>;

  /** null, or the errno's name. */
  async reset(): Promise<string | null> {
    try {
      await this.door.ioctlAsync('VFIO_DEVICE_RESET', this.#fd, VFIO_DEVICE_RESET, 0);
    } catch (error) {
      return codeOf(error);
    }
    this.decode();
    return null;
  }

  /** Data fds stay open, as a user might leave them. */
  async reopen(): Promise<void> {
    this.door.closeFd(this.#fd);
    this.#fd = -1;
    this.#fd = this.host.place.openDevice();
    this.#device = this.#wrap(this.#fd);
    this.decode();
  }

  async close(): Promise<void> {
    if (this.#fd >= 0) this.door.closeFd(this.#fd);
    this.#fd = -1;
  }

  #wrap(fd: number): KernelDevice {
    const { door, name } = this.host.place;
    const closed = async () => {};
    return new KernelDevice({ kind: 'group', name, door, fd, migration: null, dmaLog: null, closing: null, closed });
  }

  /** PCI devices: open and reset take PCI_COMMAND away. */
  decode(): void {
    const config = this.#device.info.regions.find((each) => each.index === CONFIG);
    if (config === undefined || config.size < 64) return;
    const command = new Uint8Array(2);
    this.#device.readRegion(CONFIG, COMMAND, command);
    command[0] = (command[0] as number) | DECODE_AND_MASTER;
    this.#device.writeRegion(CONFIG, COMMAND, command);
  }
}

export const ALONE: BenchHost['beside'] = { second: null, 'other-size': null };

/** A device fd of its own, decoding. */
export function openWith<B extends OpenedDevice>(host: BenchHost, make: (fd: number) => B): B {
  const fd = host.place.openDevice();
  try {
    const bench = make(fd);
    bench.decode();
    return bench;
  } catch (error) {
    host.place.door.closeFd(fd);
    throw error;
  }
}

export function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

export function codeOf(error: unknown): string {
  if (error instanceof SysError) return error.code;
  throw error;
}
