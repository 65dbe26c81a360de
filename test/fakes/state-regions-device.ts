// A device with the device state regions of February 2019, written from that patch and from GVT-g's, and from nothing of devices/vfio.
// It writes a page of guest memory whenever it is active and somebody touches its registers: that is its DMA. `gvtG` makes it as lenient
// and as odd as GVT-g is. What no driver could tolerate is noted in `violations`, what would harm GVT-g's host in `harm`.
import type { GpaRange } from '../../devices/contract.ts';
import { SysError } from '../../native/errno.ts';
import { EINVAL, EIO, ENODEV, type FakeRegion, type FakeRegionDevice } from './legacy-kernel.ts';
import { RegionBytes } from './region-bytes.ts';

const STOP = 1;
const LOGGING = 2;
const GET = 1;
const SET = 2;
const PAGE = 4096;
const ENOMEM = 12;

/** Offset, width; who may do what by the text. */
const FIELDS = {
  version: [0, 4, 'r'],
  device_state: [4, 4, 'w'],
  caps: [8, 4, 'r'],
  'config.action': [12, 4, 'w'],
  'config.size': [20, 8, 'rw'],
  'memory.action': [28, 4, 'w'],
  'memory.size': [36, 8, 'rw'],
  'memory.pos': [44, 8, 'rw'],
  system_memory: [52, 16, 'w'],
} as const;
export type CtlField = keyof typeof FIELDS;
export type CtlFault = CtlField | 'config' | 'memory' | 'bitmap';

export interface StateDeviceOptions {
  readonly gvtG?: boolean;
  /** Telling does not empty what is told: GVT-g's cache of guest pages. Default: as gvtG. */
  readonly cached?: boolean;
  readonly config?: Uint8Array;
  /** null: it has none (cap 1 is off). */
  readonly memory?: Uint8Array | null;
  readonly configRegion?: number;
  readonly memoryRegion?: number;
  readonly bitmapRegion?: number;
  /** Cap 2. */
  readonly tracks?: boolean;
  readonly mapped?: boolean;
  /** GET_BUFFER makes the config this much longer than its size said before. */
  readonly configGrows?: number;
  readonly version?: number;
  readonly extraCaps?: number;
  readonly ctlSize?: number;
  /** Memory of a device with more or less of it is refused. */
  readonly sameSize?: boolean;
  /** A number that is no state is an error. */
  readonly strictStates?: boolean;
}

export interface CtlFailure {
  readonly op: 'read' | 'write';
  readonly field: CtlFault;
  readonly nth: number;
  readonly short?: number;
}

export class StateRegionsDevice implements FakeRegionDevice {
  readonly regions: readonly FakeRegion[];
  readonly violations: string[] = [];
  readonly harm: string[] = [];
  readonly states: number[] = [];
  /** "config get", "memory set 4096" and so on. */
  readonly actions: string[] = [];
  readonly fail: CtlFailure[] = [];
  readonly refuse: { readonly from: number; readonly to: number }[] = [];
  config: Uint8Array;
  deviceMemory: Uint8Array | null;
  /** Device memory has changed, which LOGGING tells. */
  memoryTouched = false;
  state = 0;
  active = true;
  gone = false;
  resets = 0;
  resetFails = false;
  /** Pages of guest memory that it wrote and nobody was told of; and every page that it ever wrote. */
  readonly untold = new Set<number>();
  readonly ever = new Set<number>();
  /** The page that its next DMA writes; null: it writes none. */
  nextPage: number | null = null;
  readonly #options: StateDeviceOptions;
  readonly #bytes: RegionBytes[];
  readonly #caps: number;
  readonly #counts = new Map<string, number>();
  #snapshot: Uint8Array | null = null;
  #loading: { config: number; memory: Uint8Array | null } = { config: 0, memory: null };
  #pos = 0;
  #configSize: number;

  constructor(options: StateDeviceOptions = {}) {
    this.#options = options;
    this.config = options.config ?? Uint8Array.from({ length: 900 }, (_, i) => (i * 5) & 0xff);
    this.deviceMemory = options.memory ?? null;
    this.#configSize = this.config.length;
    const hasMemory = options.memory !== undefined && options.memory !== null;
    const tracks = options.tracks ?? true;
    this.#caps = (hasMemory ? 1 : 0) | (tracks ? 2 : 0) | (options.extraCaps ?? 0);
    const region = (subtype: number, size: number): FakeRegion => {
      const whole = options.mapped === true && subtype > 1 ? [{ start: 0, length: size }] : [];
      return { type: [2, subtype], size, areas: whole };
    };
    this.regions = [
      region(1, options.ctlSize ?? 68),
      region(2, options.configRegion ?? PAGE),
      ...(hasMemory ? [region(3, options.memoryRegion ?? PAGE)] : []),
      ...(tracks ? [region(4, options.bitmapRegion ?? PAGE)] : []),
    ];
    this.#bytes = this.regions.map(({ size, areas }) => new RegionBytes(size, areas));
  }

  index(subtype: number): number {
    return this.regions.findIndex(({ type }) => type[1] === subtype);
  }

  memory(region: number, area: GpaRange): ArrayBuffer {
    return this.#bytes[region]!.area(area);
  }

  reset(): void {
    this.resets += 1;
    if (this.gone) throw new SysError('VFIO_DEVICE_RESET', ENODEV);
    if (this.resetFails) throw new SysError('VFIO_DEVICE_RESET', EIO);
    this.state = 0;
    this.active = true;
  }

  read(region: number, offset: number, into: Uint8Array): number {
    if (this.gone) throw new SysError('pread', ENODEV);
    if (region !== 0) return this.#data('read', region, offset, into, () => this.#bytes[region]!.copyOut(offset, into));
    const field = this.#field(offset, into.length, 'r');
    if (field === null) return into.length;
    const short = this.#fault('read', field);
    if (short !== null) return short;
    const value = this.#value(field);
    const view = new DataView(into.buffer, into.byteOffset, into.length);
    if (into.length === 4) view.setUint32(0, value, true);
    else view.setBigUint64(0, BigInt(value), true);
    return into.length;
  }

  write(region: number, offset: number, from: Uint8Array): number {
    if (this.gone) throw new SysError('pwrite', ENODEV);
    if (region !== 0) return this.#data('write', region, offset, from, () => this.#bytes[region]!.copyIn(offset, from));
    const field = this.#field(offset, from.length, 'w');
    if (field === null) return from.length;
    const short = this.#fault('write', field);
    if (short !== null) return short;
    const view = new DataView(from.buffer, from.byteOffset, from.length);
    if (field === 'system_memory') this.#tell(Number(view.getBigUint64(0, true)), Number(view.getBigUint64(8, true)));
    else this.#set(field, from.length === 4 ? view.getUint32(0, true) : Number(view.getBigUint64(0, true)));
    return from.length;
  }

  /** null: GVT-g does nothing and says that all is well. */
  #field(offset: number, length: number, way: 'r' | 'w'): CtlField | null {
    this.#dma();
    const found = (Object.keys(FIELDS) as CtlField[]).find((name) => FIELDS[name][0] === offset);
    const right = found !== undefined && FIELDS[found][1] === length && FIELDS[found][2].includes(way);
    if (right) return found;
    this.violations.push(`${way} of ${length} bytes at ${offset}`);
    if (this.#options.gvtG === true) return null;
    throw new SysError('a driver would say', EINVAL);
  }

  #dma(): void {
    if (!this.active || this.nextPage === null) return;
    this.untold.add(this.nextPage);
    this.ever.add(this.nextPage);
    this.nextPage += 1;
  }

  #value(field: CtlField): number {
    if (field === 'version') return this.#options.version ?? 1;
    if (field === 'caps') return this.#caps;
    // GVT-g's config has one size, and that is the region's.
    if (field === 'config.size') return this.#options.gvtG === true ? this.regions[1]!.size : this.#configSize;
    if (field === 'memory.size' && this.deviceMemory !== null) {
      this.actions.push(`memory snapshot in ${this.state}`);
      const told = (this.state & LOGGING) === 0 || this.memoryTouched;
      this.memoryTouched = false;
      this.#snapshot = told ? this.deviceMemory.slice() : new Uint8Array(0);
      return this.#snapshot.length;
    }
    throw new SysError('a driver would say', EINVAL);
  }

  #set(field: CtlField, value: number): void {
    if (field === 'device_state') this.#goTo(value);
    else if (field === 'config.size') this.#loading.config = value;
    else if (field === 'config.action') this.#configAction(value);
    else if (this.deviceMemory === null) throw new SysError('a driver would say', EINVAL);
    // A driver has no room for what a damaged stream says.
    else if (field === 'memory.size' && value > 2 ** 24) throw new SysError('pwrite', ENOMEM);
    else if (field === 'memory.size') this.#expectMemory(value);
    else if (field === 'memory.pos') this.#pos = value;
    else if (field === 'memory.action') this.#memoryAction(value);
  }

  #expectMemory(length: number): void {
    const other = this.deviceMemory === null || length !== this.deviceMemory.length;
    if (this.#options.sameSize === true && other) throw new SysError('pwrite', EINVAL);
    this.#loading.memory = new Uint8Array(length);
  }

  #goTo(to: number): void {
    const from = this.state;
    if (this.refuse.some((each) => each.from === from && each.to === to)) throw new SysError('pwrite', EIO);
    this.states.push(to);
    if (to > 3 || to === from) this.violations.push(`state ${from} -> ${to}`);
    if (to > 3 && this.#options.strictStates === true) throw new SysError('pwrite', EINVAL);
    this.state = to;
    if (this.#options.gvtG !== true) this.active = (to & STOP) === 0;
    else if (to === STOP) this.active = false;
    else if (to === 0) this.active = true;
    // Logging that has ended has forgotten.
    if (this.#options.gvtG !== true && (to & LOGGING) === 0) this.untold.clear();
  }

  #configAction(action: number): void {
    const region = this.#bytes[1]!;
    if (action === SET) {
      if (this.state !== STOP) this.violations.push(`config is set in state ${this.state}`);
      const length = this.#options.gvtG === true ? this.regions[1]!.size : this.#loading.config;
      const bytes = new Uint8Array(length);
      region.copyOut(0, bytes);
      this.actions.push('config set');
      if (bytes.every((byte) => byte === 0)) throw new SysError('pwrite', EINVAL);
      this.config = bytes;
      return;
    }
    this.actions.push('config get');
    const grown = new Uint8Array(this.config.length + (this.#options.configGrows ?? 0));
    grown.set(this.config);
    this.config = grown;
    this.#configSize = grown.length;
    if (grown.length <= this.regions[1]!.size) region.copyIn(0, grown);
  }

  #memoryAction(action: number): void {
    const index = this.index(3);
    const room = this.regions[index]!.size;
    if (this.#pos % room !== 0) {
      this.violations.push(`memory at ${this.#pos}, which is no multiple of ${room}`);
      throw new SysError('pwrite', EINVAL);
    }
    if (action === GET) {
      if (this.#snapshot === null || this.#pos >= this.#snapshot.length) throw new SysError('pwrite', EINVAL);
      this.actions.push(`memory get ${this.#pos}`);
      this.#bytes[index]!.copyIn(0, this.#snapshot.subarray(this.#pos, this.#pos + room));
      return;
    }
    const whole = this.#loading.memory;
    if (whole === null || this.#pos >= whole.length || this.state !== STOP) throw new SysError('pwrite', EINVAL);
    this.actions.push(`memory set ${this.#pos}`);
    this.#bytes[index]!.copyOut(0, whole.subarray(this.#pos, this.#pos + room));
    if (this.#pos + room >= whole.length) this.deviceMemory = whole;
  }

  /** The bitmap of a range. */
  #tell(start: number, pages: number): void {
    const index = this.index(4);
    const room = this.regions[index]!.size;
    if (pages > room * 8) {
      this.harm.push(`${pages} pages into a bitmap of ${room} bytes`);
      if (this.#options.gvtG !== true) throw new SysError('pwrite', EINVAL);
    }
    const bitmap = new Uint8Array(room);
    const telling = this.#options.gvtG === true || (this.state & LOGGING) !== 0;
    for (const page of telling ? [...this.untold] : []) {
      const bit = page - start / PAGE;
      if (bit < 0 || bit >= pages) continue;
      bitmap[bit >> 3]! |= 1 << (bit & 7);
      if (!(this.#options.cached ?? this.#options.gvtG ?? false)) this.untold.delete(page);
    }
    this.#bytes[index]!.copyIn(0, bitmap);
  }

  #data(op: 'read' | 'write', region: number, offset: number, bytes: Uint8Array, go: () => void): number {
    const name = (['', 'config', 'memory', 'bitmap'] as const)[this.regions[region]!.type[1] - 1]!;
    const short = this.#fault(op, name as CtlFault);
    if (short !== null) return short;
    if (name === 'bitmap' && (op === 'write' || offset !== 0)) throw new SysError(op, EINVAL);
    if (offset + bytes.length > this.regions[region]!.size) {
      this.harm.push(`${op} of ${bytes.length} bytes at ${offset} of ${name}`);
      return bytes.length;
    }
    go();
    return bytes.length;
  }

  #fault(op: 'read' | 'write', field: CtlFault): number | null {
    const key = `${op} ${field}`;
    const count = (this.#counts.get(key) ?? 0) + 1;
    this.#counts.set(key, count);
    const fault = this.fail.find((each) => each.op === op && each.field === field && each.nth === count);
    if (fault === undefined) return null;
    if (fault.short !== undefined) return fault.short;
    throw new SysError(op === 'read' ? 'pread' : 'pwrite', EIO);
  }
}
