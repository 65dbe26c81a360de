// A device with the device state regions of February 2019 under check: its state, config, memory and bitmap, what came of each access. Made anew
// for each rule by run-rule.ts. device_state cannot be read, so that the last one is kept here. Shares nothing with migration/.
// struct vfio_device_state_ctl of that patch
import {
  VFIO_DEVICE_DATA_ACTION_GET_BUFFER,
  VFIO_DEVICE_DATA_ACTION_SET_BUFFER,
  VFIO_DEVICE_DATA_CAP_DEVICE_MEMORY,
  VFIO_REGION_SUBTYPE_DEVICE_STATE_CTL,
  VFIO_REGION_SUBTYPE_DEVICE_STATE_DATA_CONFIG,
  VFIO_REGION_SUBTYPE_DEVICE_STATE_DATA_DIRTYBITMAP,
  VFIO_REGION_SUBTYPE_DEVICE_STATE_DATA_MEMORY,
  VFIO_REGION_TYPE_DEVICE_STATE,
  vfio_device_state_ctl,
} from '../../../native/abi/vfio-legacy.ts';
import { VmmError } from '../../../native/errno.ts';
import { type CheckRegion, regionOf, u64Bytes } from './check-region.ts';
import { type BenchHost, OpenedDevice, openWith } from './opened.ts';
import { type DriverNeed, Unreachable } from './rule.ts';

export const RUNNING = 0;
export const STOP = 1;
export const LOGGING = 2;
const NAMES = ['RUNNING', 'STOP', 'RUNNING & LOGGING', 'STOP & LOGGING'];
const MOST_BYTES = 512 * 2 ** 20;

export const CTL = {
  version: vfio_device_state_ctl.version,
  state: vfio_device_state_ctl.device_state,
  caps: vfio_device_state_ctl.caps,
  configAction: vfio_device_state_ctl.device_config.action,
  configSize: vfio_device_state_ctl.device_config.size_at,
  memoryAction: vfio_device_state_ctl.device_memory.action,
  memorySize: vfio_device_state_ctl.device_memory.size_at,
  memoryPos: vfio_device_state_ctl.device_memory.pos,
  query: vfio_device_state_ctl.system_memory.start_addr,
} as const;

export function ctlName(state: number): string {
  return NAMES[state] ?? `state ${state}`;
}

export interface SavedParts {
  readonly config: Uint8Array;
  /** Snapshots of device memory in the order in which they were taken. */
  readonly memory: readonly Uint8Array[];
}

export class StatesBench extends OpenedDevice {
  readonly ctl: CheckRegion;
  readonly config: CheckRegion;
  readonly memory: CheckRegion | null;
  readonly bitmap: CheckRegion | null;
  #state = RUNNING;
  #caps: number | null = null;

  private constructor(host: BenchHost, fd: number) {
    super(host, fd);
    const part = (subtype: number) => regionOf(this, VFIO_REGION_TYPE_DEVICE_STATE, subtype);
    const ctl = part(VFIO_REGION_SUBTYPE_DEVICE_STATE_CTL);
    const config = part(VFIO_REGION_SUBTYPE_DEVICE_STATE_DATA_CONFIG);
    if (ctl === null || config === null || ctl.size < vfio_device_state_ctl.size) {
      throw new VmmError('migration-abi', `${host.place.name} has no control and config regions of device state`);
    }
    this.ctl = ctl;
    this.config = config;
    this.memory = part(VFIO_REGION_SUBTYPE_DEVICE_STATE_DATA_MEMORY);
    this.bitmap = part(VFIO_REGION_SUBTYPE_DEVICE_STATE_DATA_DIRTYBITMAP);
  }

  static open(host: BenchHost): StatesBench {
    return openWith(host, (fd) => new StatesBench(host, fd));
  }

  offers(): string[] {
    return [
      'CONFIG',
      ...(this.memory === null ? [] : ['DEVICE_MEMORY']),
      ...(this.bitmap === null ? [] : ['DIRTY_BITMAP']),
      ...(this.device.info.canReset ? ['RESET'] : []),
    ];
  }

  override has(need: DriverNeed): boolean {
    if (need === 'device-memory') return this.memory !== null;
    if (need === 'system-memory') return this.bitmap !== null;
    return super.has(need);
  }

  /** Where the last write that succeeded led. */
  get state(): number {
    return this.#state;
  }

  async caps(): Promise<number> {
    this.#caps ??= await this.ctl.u32(CTL.caps, 'caps');
    return this.#caps;
  }
  async hasMemory(): Promise<boolean> {
    return this.memory !== null && ((await this.caps()) & VFIO_DEVICE_DATA_CAP_DEVICE_MEMORY) !== 0;
  }

  async put(state: number): Promise<string | null> {
    const error = await this.ctl.setU32(CTL.state, state);
    if (error === null && state <= (STOP | LOGGING)) this.#state = state;
    return error;
  }

  /** A state that the device is in already is not written: that is no transition of the text. */
  async go(...way: readonly number[]): Promise<void> {
    for (const state of way) {
      const from = this.#state;
      if (from === state) continue;
      const error = await this.put(state);
      if (error !== null) throw new Unreachable(`${ctlName(from)} -> ${ctlName(state)} did not work (${error})`);
    }
  }

  async home(): Promise<void> {
    if (this.#state === RUNNING || (await this.put(RUNNING)) === null) return;
    if (!this.device.info.canReset || (await this.reset()) !== null) await this.reopen();
  }

  override async reset(): Promise<string | null> {
    const error = await super.reset();
    if (error === null) this.#state = RUNNING;
    return error;
  }

  override async reopen(): Promise<void> {
    await super.reopen();
    this.#state = RUNNING;
  }

  /** The whole of it, by the size that holds once the driver has put it there. */
  async getConfig(): Promise<Uint8Array> {
    await this.#act(CTL.configAction, VFIO_DEVICE_DATA_ACTION_GET_BUFFER, 'GET_BUFFER of device config');
    const size = await this.ctl.u64(CTL.configSize, 'device_config.size');
    if (size > BigInt(this.config.size)) throw new Unreachable('the config data are larger than their region');
    return this.config.read(0, Number(size), 'device config');
  }

  /** null, or how it was refused. */
  async setConfig(config: Uint8Array): Promise<string | null> {
    return (
      (await this.ctl.setU64(CTL.configSize, BigInt(config.length))) ??
      (await this.config.tryWrite(0, config)) ??
      (await this.ctl.setU32(CTL.configAction, VFIO_DEVICE_DATA_ACTION_SET_BUFFER))
    );
  }

  /** Reading the size takes the snapshot, and under LOGGING uses up what is dirty. */
  async getMemory(): Promise<Uint8Array> {
    const region = this.#memoryRegion();
    const size = await this.ctl.u64(CTL.memorySize, 'device_memory.size');
    if (size > BigInt(MOST_BYTES)) throw new Unreachable(`device memory has ${size} bytes`);
    const whole = new Uint8Array(Number(size));
    for (let pos = 0; pos < whole.length; pos += region.size) {
      const error = await this.ctl.setU64(CTL.memoryPos, BigInt(pos));
      if (error !== null) throw new Unreachable(`writing device_memory.pos failed (${error})`);
      await this.#act(CTL.memoryAction, VFIO_DEVICE_DATA_ACTION_GET_BUFFER, `GET_BUFFER of device memory at ${pos}`);
      whole.set(await region.read(0, Math.min(region.size, whole.length - pos), 'device memory'), pos);
    }
    return whole;
  }

  async setMemory(whole: Uint8Array): Promise<string | null> {
    if (whole.length === 0) return null;
    const region = this.#memoryRegion();
    let refused = await this.ctl.setU64(CTL.memorySize, BigInt(whole.length));
    for (let pos = 0; refused === null && pos < whole.length; pos += region.size) {
      refused =
        (await region.tryWrite(0, whole.subarray(pos, pos + region.size))) ??
        (await this.ctl.setU64(CTL.memoryPos, BigInt(pos))) ??
        (await this.ctl.setU32(CTL.memoryAction, VFIO_DEVICE_DATA_ACTION_SET_BUFFER));
    }
    return refused;
  }

  /** All of it, stopped; leaves the device where it began. */
  async save(): Promise<SavedParts> {
    const from = this.#state;
    await this.go(STOP);
    const memory = (await this.hasMemory()) ? [await this.getMemory()] : [];
    const config = await this.getConfig();
    await this.go(from);
    return { config, memory };
  }

  /** Into STOP; null, or how it was refused. */
  async load({ config, memory }: SavedParts): Promise<string | null> {
    await this.go(STOP);
    for (const snapshot of memory) {
      const refused = await this.setMemory(snapshot);
      if (refused !== null) return `device memory: ${refused}`;
    }
    const refused = await this.setConfig(config);
    return refused === null ? null : `device config: ${refused}`;
  }

  /** Start and count in one write, as GVT-g wants it; a driver that knows fields only is asked by fields. */
  async query(start: number, pages: number): Promise<string | null> {
    const error = await this.ctl.tryWrite(CTL.query, u64Bytes(BigInt(start), BigInt(pages)));
    if (error === null) return null;
    return (await this.ctl.setU64(CTL.query, BigInt(start))) ?? (await this.ctl.setU64(CTL.query + 8, BigInt(pages)));
  }

  /** The pages of [start, start + pages) that the bitmap names, by number from `start`. */
  async dirtyPages(start: number, pages: number): Promise<Set<number>> {
    const { bitmap } = this;
    if (bitmap === null || pages > bitmap.size * 8) throw new Unreachable('the bitmap region is too small to ask');
    const error = await this.query(start, pages);
    if (error !== null) throw new Unreachable(`asking for the dirty bitmap failed (${error})`);
    return bitsOf(await bitmap.read(0, Math.ceil(pages / 64) * 8, 'the dirty bitmap'), pages);
  }

  #memoryRegion(): CheckRegion {
    if (this.memory === null || this.memory.size === 0) throw new Unreachable('there is no region of device memory');
    return this.memory;
  }

  async #act(field: number, action: number, what: string): Promise<void> {
    const error = await this.ctl.setU32(field, action);
    if (error !== null) throw new Unreachable(`${what} failed (${error})`);
  }
}

export function bitsOf(bytes: Uint8Array, count: number): Set<number> {
  const set = new Set<number>();
  for (let bit = 0; bit < count; bit++) {
    if (((bytes[bit >> 3] as number) & (1 << (bit & 7))) !== 0) set.add(bit);
  }
  return set;
}
