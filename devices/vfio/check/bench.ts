// The device under check, as the rules handle it: raw migration calls that report instead of throwing, ways from state to state, sessions.
// Made anew for each rule by run-rule.ts; JS thread, what may block goes to native threads. What a rule presupposes and cannot have is
// Unreachable. linux/vfio.h, VFIO_DEVICE_FEATURE_MIGRATION, VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, VFIO_DEVICE_FEATURE_MIG_DATA_SIZE
import {
  VFIO_DEVICE_FEATURE,
  VFIO_DEVICE_FEATURE_MIG_DATA_SIZE,
  VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE,
  VFIO_DEVICE_FEATURE_MIGRATION,
  VFIO_DEVICE_RESET,
  VFIO_MIGRATION_P2P,
  VFIO_MIGRATION_PRE_COPY,
} from '../../../native/abi/vfio.ts';
import type { GuestRam } from '../../../native/addon.ts';
import { SysError, VmmError } from '../../../native/errno.ts';
import { KernelDevice } from '../kernel-device.ts';
import { callFeature, FEATURE_DATA, featureArg, probeFeature } from '../migration/feature-arg.ts';
import type { CheckDoor } from './check-door.ts';
import { DataFd } from './data-fd.ts';
import type { Exerciser, ExerciserPort } from './exerciser.ts';
import type { KernelLog } from './kernel-log.ts';
import { type Able, ERROR, RESUMING, RUNNING, STOP_COPY, stateName, statesOf } from './oracle.ts';
import type { DevicePlace } from './place.ts';
import { Unreachable } from './rule.ts';

const CONFIG = 7;
const COMMAND = 4;
/** Memory decode and bus mastering: drivers cannot save a device that does not decode. */
const DECODE_AND_MASTER = 0x6;

export interface SetAnswer {
  /** Name of the errno; null: it succeeded. */
  readonly error: string | null;
  /** What came back in data_fd; -1: none. */
  readonly fd: number;
  /** By a GET right afterwards. */
  readonly state: number;
}

export interface BenchHost {
  readonly place: DevicePlace;
  readonly exerciser: Exerciser | null;
  /** How long something forbidden is waited for. */
  readonly settleMs: number;
  /** The host's /proc. */
  readonly proc: string;
  readonly kernel: KernelLog;
  /** Migrations in one batch of the rule about leaks, at most. */
  readonly loops: number;
}

export class Bench {
  readonly host: BenchHost;
  readonly flags: bigint;
  readonly able: Able;
  readonly hasDataSize: boolean;
  readonly door: CheckDoor;
  #device: KernelDevice;
  #fd: number;
  readonly #data: DataFd[] = [];
  #stream: Uint8Array | null = null;

  private constructor(host: BenchHost, fd: number) {
    this.host = host;
    this.door = host.place.door;
    this.#fd = fd;
    this.#device = this.#wrap(fd);
    this.flags = migrationFlags(host.place, fd);
    const has = (flag: number) => (this.flags & BigInt(flag)) !== 0n;
    this.able = { preCopy: has(VFIO_MIGRATION_PRE_COPY), p2p: has(VFIO_MIGRATION_P2P) };
    this.hasDataSize = probeFeature({ door: this.door, fd }, VFIO_DEVICE_FEATURE_MIG_DATA_SIZE, 'get');
  }

  static open(host: BenchHost): Bench {
    const fd = host.place.openDevice();
    try {
      const bench = new Bench(host, fd);
      bench.#decode();
      return bench;
    } catch (error) {
      host.place.door.closeFd(fd);
      throw error;
    }
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
  get states(): number[] {
    return statesOf(this.able);
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

  get(): number {
    return this.getWhole().state;
  }

  getWhole(): { readonly state: number; readonly fd: number } {
    const arg = featureArg(VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, 'get', 8);
    this.door.ioctl('VFIO_DEVICE_FEATURE(GET MIG_DEVICE_STATE)', this.#fd, VFIO_DEVICE_FEATURE, arg.bytes);
    return { state: arg.view.getUint32(FEATURE_DATA, true), fd: arg.view.getInt32(FEATURE_DATA + 4, true) };
  }

  /** One SET, whatever comes of it. A data fd that comes back is closed with the bench. */
  async set(to: number): Promise<SetAnswer> {
    const arg = featureArg(VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, 'set', 8);
    arg.view.setUint32(FEATURE_DATA, to >>> 0, true);
    arg.view.setInt32(FEATURE_DATA + 4, -1, true);
    let error: string | null = null;
    try {
      await callFeature({ door: this.door, fd: this.#fd }, `MIG_DEVICE_STATE=${stateName(to)}`, arg);
    } catch (cause) {
      error = codeOf(cause);
    }
    const fd = error === null ? arg.view.getInt32(FEATURE_DATA + 4, true) : -1;
    if (fd >= 0) this.#data.push(new DataFd(this.door, fd));
    return { error, fd, state: this.get() };
  }

  /** From where it is. */
  async go(to: number): Promise<SetAnswer> {
    const from = this.get();
    if (from === to) return { error: null, fd: -1, state: to };
    const answer = await this.set(to);
    if (answer.error !== null || answer.state !== to) {
      const how = answer.error ?? `it is in ${stateName(answer.state)}`;
      throw new Unreachable(`${stateName(from)} -> ${stateName(to)} did not work (${how})`);
    }
    return answer;
  }

  /** From RUNNING. */
  async enter(to: number): Promise<void> {
    await this.home();
    await this.go(to);
  }

  /** The same where a data fd is what it is about. */
  async session(to: number): Promise<DataFd> {
    await this.home();
    return this.resume(to);
  }

  /** From where it is, into a session of `to`. */
  async resume(to: number): Promise<DataFd> {
    const answer = await this.go(to);
    if (answer.fd < 0) throw new Unreachable(`no data fd came back for ${stateName(to)}`);
    return this.#latest();
  }

  #latest(): DataFd {
    return this.#data.at(-1) as DataFd;
  }

  /** Back to RUNNING by whatever leads there: SET, reset, a new device fd. */
  async home(): Promise<void> {
    const from = this.get();
    if (from === RUNNING) return this.closeData();
    if (from !== RESUMING && from !== ERROR && (await this.set(RUNNING)).state === RUNNING) return this.closeData();
    if (!this.#device.info.canReset || (await this.reset()) !== null) await this.reopen();
    if (this.get() !== RUNNING) throw new Unreachable(`nothing led back to RUNNING from ${stateName(from)}`);
    this.closeData();
  }

  /** null, or the errno's name. */
  async reset(): Promise<string | null> {
    try {
      await this.door.ioctlAsync('VFIO_DEVICE_RESET', this.#fd, VFIO_DEVICE_RESET, 0);
    } catch (error) {
      return codeOf(error);
    }
    this.#decode();
    return null;
  }

  /** Data fds stay open, as a user might leave them. */
  async reopen(): Promise<void> {
    this.door.closeFd(this.#fd);
    this.#fd = -1;
    this.#fd = this.host.place.openDevice();
    this.#device = this.#wrap(this.#fd);
    this.#decode();
  }

  /** A whole stream of this device as it was at the first call, for rules about loading. */
  async stream(): Promise<Uint8Array> {
    if (this.#stream === null) {
      const data = await this.session(STOP_COPY);
      this.#stream = await data.readToEnd();
      await this.home();
    }
    if (this.#stream.length === 0) throw new Unreachable('the device has an empty stream: there is nothing to load');
    return this.#stream;
  }

  /** Enters RESUMING and writes; gives the errno with which a write was refused. */
  async load(stream: Uint8Array, sizes: readonly number[] = []): Promise<string | null> {
    const data = await this.session(RESUMING);
    return data.writeAll(stream, sizes);
  }

  closeData(): void {
    for (const data of this.#data.splice(0)) data.close();
  }

  async close(): Promise<void> {
    this.closeData();
    if (this.#fd >= 0) this.door.closeFd(this.#fd);
    this.#fd = -1;
  }

  #wrap(fd: number): KernelDevice {
    const { door, name } = this.host.place;
    const closed = async () => {};
    return new KernelDevice({ kind: 'group', name, door, fd, migration: null, dmaLog: null, closing: null, closed });
  }

  /** PCI devices: open and reset take PCI_COMMAND away. */
  #decode(): void {
    const config = this.#device.info.regions.find((each) => each.index === CONFIG);
    if (config === undefined || config.size < 64) return;
    const command = new Uint8Array(2);
    this.#device.readRegion(CONFIG, COMMAND, command);
    command[0] = (command[0] as number) | DECODE_AND_MASTER;
    this.#device.writeRegion(CONFIG, COMMAND, command);
  }
}

export function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

function migrationFlags({ door, name }: DevicePlace, fd: number): bigint {
  const arg = featureArg(VFIO_DEVICE_FEATURE_MIGRATION, 'get', 8);
  try {
    door.ioctl('VFIO_DEVICE_FEATURE(MIGRATION)', fd, VFIO_DEVICE_FEATURE, arg.bytes);
  } catch (cause) {
    if (codeOf(cause) !== 'ENOTTY') throw cause;
    throw new VmmError(
      'no-migration',
      `${name}: its driver offers no migration of version 2 (VFIO_DEVICE_FEATURE_MIGRATION: ENOTTY), so there is nothing to check; docs/bring-up.md says how it gets one`,
      { cause },
    );
  }
  return arg.view.getBigUint64(FEATURE_DATA, true);
}

export function codeOf(error: unknown): string {
  if (error instanceof SysError) return error.code;
  throw error;
}
