// The device under check, as the rules handle it: raw migration calls that report instead of throwing, ways from state to state, sessions.
// Made anew for each rule by run-rule.ts; JS thread, what may block goes to native threads. What a rule presupposes and cannot have is
// Unreachable. linux/vfio.h, VFIO_DEVICE_FEATURE_MIGRATION, VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, VFIO_DEVICE_FEATURE_MIG_DATA_SIZE
import {
  VFIO_DEVICE_FEATURE,
  VFIO_DEVICE_FEATURE_MIG_DATA_SIZE,
  VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE,
  VFIO_DEVICE_FEATURE_MIGRATION,
  VFIO_MIGRATION_P2P,
  VFIO_MIGRATION_PRE_COPY,
} from '../../../native/abi/vfio.ts';
import { callFeature, FEATURE_DATA, featureArg, probeFeature } from '../migration/feature-arg.ts';
import { DataFd } from './data-fd.ts';
import { hasDmaLog } from './dma-log.ts';
import { type BenchHost, codeOf, OpenedDevice, openWith } from './opened.ts';
import { type Able, ERROR, RESUMING, RUNNING, STOP_COPY, stateName, statesOf } from './oracle.ts';
import { type DriverNeed, Unreachable } from './rule.ts';

export interface SetAnswer {
  /** Name of the errno; null: it succeeded. */
  readonly error: string | null;
  /** What came back in data_fd; -1: none. */
  readonly fd: number;
  /** By a GET right afterwards. */
  readonly state: number;
}

export class Bench extends OpenedDevice {
  readonly flags: bigint;
  readonly able: Able;
  readonly hasDataSize: boolean;
  readonly #data: DataFd[] = [];
  #stream: Uint8Array | null = null;

  private constructor(host: BenchHost, fd: number) {
    super(host, fd);
    const arg = featureArg(VFIO_DEVICE_FEATURE_MIGRATION, 'get', 8);
    this.door.ioctl('VFIO_DEVICE_FEATURE(MIGRATION)', fd, VFIO_DEVICE_FEATURE, arg.bytes);
    this.flags = arg.view.getBigUint64(FEATURE_DATA, true);
    const has = (flag: number) => (this.flags & BigInt(flag)) !== 0n;
    this.able = { preCopy: has(VFIO_MIGRATION_PRE_COPY), p2p: has(VFIO_MIGRATION_P2P) };
    this.hasDataSize = probeFeature({ door: this.door, fd }, VFIO_DEVICE_FEATURE_MIG_DATA_SIZE, 'get');
  }

  static open(host: BenchHost): Bench {
    return openWith(host, (fd) => new Bench(host, fd));
  }

  offers(): string[] {
    return [
      ...((this.flags & 1n) === 0n ? [] : ['STOP_COPY']),
      ...(this.able.p2p ? ['P2P'] : []),
      ...(this.able.preCopy ? ['PRE_COPY'] : []),
      ...(this.hasDataSize ? ['MIG_DATA_SIZE'] : []),
      ...(hasDmaLog(this) ? ['DMA_LOGGING'] : []),
      ...(this.device.info.canReset ? ['RESET'] : []),
    ];
  }

  override has(need: DriverNeed): boolean {
    if (need === 'pre-copy') return this.able.preCopy;
    if (need === 'p2p') return this.able.p2p;
    if (need === 'data-size') return this.hasDataSize;
    if (need === 'dma-log') return hasDmaLog(this);
    return super.has(need);
  }

  get states(): number[] {
    return statesOf(this.able);
  }
  get(): number {
    return this.getWhole().state;
  }

  getWhole(): { readonly state: number; readonly fd: number } {
    const arg = featureArg(VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, 'get', 8);
    this.door.ioctl('VFIO_DEVICE_FEATURE(GET MIG_DEVICE_STATE)', this.fd, VFIO_DEVICE_FEATURE, arg.bytes);
    return { state: arg.view.getUint32(FEATURE_DATA, true), fd: arg.view.getInt32(FEATURE_DATA + 4, true) };
  }

  /** One SET, whatever comes of it. A data fd that comes back is closed with the bench. */
  async set(to: number): Promise<SetAnswer> {
    const arg = featureArg(VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, 'set', 8);
    arg.view.setUint32(FEATURE_DATA, to >>> 0, true);
    arg.view.setInt32(FEATURE_DATA + 4, -1, true);
    let error: string | null = null;
    try {
      await callFeature({ door: this.door, fd: this.fd }, `MIG_DEVICE_STATE=${stateName(to)}`, arg);
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

  /** Back to RUNNING by whatever leads there: SET, reset, a new device fd, a reset that the driver has not announced. */
  async home(): Promise<void> {
    const from = this.get();
    if (from === RUNNING) return this.closeData();
    if (from !== RESUMING && from !== ERROR && (await this.set(RUNNING)).state === RUNNING) return this.closeData();
    if (!this.device.info.canReset || (await this.reset()) !== null) await this.reopen();
    if (this.get() !== RUNNING) await this.reset();
    if (this.get() !== RUNNING) throw new Unreachable(`nothing led back to RUNNING from ${stateName(from)}`);
    this.closeData();
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

  override async close(): Promise<void> {
    this.closeData();
    await super.close();
  }
}
