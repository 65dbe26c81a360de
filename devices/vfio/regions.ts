// The BARs of a passed-through function: windows mapped into memory slots, everything else trapped and sent to the device fd.
// The pages that hold the MSI-X table or the PBA are never mapped, for the guest must not program the device's vectors itself.
// Called by pci-function.ts; the guest's accesses to trapped bytes are passed on to the device fd by the vCPU thread where nobody must see
// them, and come here through the bus where somebody must. linux/vfio.h, VFIO_REGION_INFO
import { SysError } from '../../native/errno.ts';
import type { FastWindow, GpaRange, HostMapping, Region, SlotHandle, SlotPort, Width } from '../contract.ts';
import type { BarKind, BarMapping, BarSpec } from '../pci/bars.ts';
import { HEADER } from '../pci/config-space.ts';
import type { Msix, MsixShape } from '../pci/msix.ts';
import type { PeerBars } from './peer-bars.ts';
import type { VfioRegionInfo, VfioTransport } from './transport.ts';

const PAGE = 4096;
const BAR_COUNT = 6;
/** PCI 3.0, 6.2.5.1 says 256 bytes at most for an I/O BAR. */
const LARGEST_IO = 256;

/** The guest's MSI-X table and PBA, and what must happen before the PBA is read. */
export interface MsixWindow {
  readonly shape: MsixShape;
  readonly msix: Msix;
  beforePbaRead(): void;
}

export interface BarHost {
  readonly id: string;
  readonly transport: VfioTransport;
  readonly slots: SlotPort;
  readonly window: MsixWindow | null;
  /** false: everything is trapped (x-no-mmap). */
  readonly mmap: boolean;
  /** Null: nothing has to be done before a trapped access reaches the device, and the vCPU thread may do it. Asked when a BAR is placed. */
  readonly beforeAccess: (() => void) | null;
  /** false: every access is to be seen by this thread (a trace). */
  readonly vcpuAccess: boolean;
  /** Null: the guest's other devices cannot reach its BARs. */
  readonly peers: PeerBars | null;
}

/** Every BAR that the device has, ready for Bars.add(). `raw`: the device's own configuration header. */
export function barsOf(host: BarHost, raw: DataView): DeviceBar[] {
  const bars: DeviceBar[] = [];
  for (let index = 0; index < BAR_COUNT; index++) {
    const info = host.transport.info.regions.find((region) => region.index === index);
    if (info === undefined || info.size === 0) continue;
    const register = raw.getUint32(HEADER.bar0 + 4 * index, true);
    const kind: BarKind = (register & 1) === 1 ? 'io' : (register & 6) === 4 ? 'mem64' : 'mem32';
    if (kind === 'io' && info.size > LARGEST_IO) continue;
    bars.push(new DeviceBar(host, info, kind, kind !== 'io' && (register & 8) !== 0));
    if (kind === 'mem64') index += 1;
  }
  return bars;
}

export class DeviceBar implements BarMapping {
  readonly spec: BarSpec;
  readonly windows: readonly GpaRange[];
  readonly #slots: SlotPort;
  readonly #peers: PeerBars | null;
  readonly #mappings: { readonly window: GpaRange; readonly mapping: HostMapping }[] = [];
  #placed: SlotHandle[] = [];

  constructor(host: BarHost, info: VfioRegionInfo, kind: BarKind, prefetchable: boolean) {
    this.#slots = host.slots;
    this.#peers = host.peers;
    const shape = host.window?.shape ?? null;
    this.windows = host.mmap && kind !== 'io' ? mappableWindows(info, shape, host.window?.msix ?? null) : [];
    for (const window of this.windows) {
      const mapping = host.transport.mapArea(info.index, window);
      if (mapping !== null) this.#mappings.push({ window, mapping });
    }
    this.spec = {
      index: info.index,
      kind,
      size: info.size,
      prefetchable,
      region: new TrappedBar(host, info),
      mapping: this,
    };
  }

  placed(base: number): void {
    for (const { window, mapping } of this.#mappings) {
      this.#placed.push(this.#slots.map(base + window.start, mapping, 0, window.length, false));
      this.#peers?.place(base + window.start, mapping);
    }
  }

  removed(): void {
    for (const { mapping } of this.#mappings) this.#peers?.remove(mapping);
    for (const slot of this.#placed) slot.unmap();
    this.#placed = [];
  }

  /** After the BAR was given back, and its peers no longer reach it. */
  close(): void {
    for (const { mapping } of this.#mappings.splice(0)) mapping.unmap();
  }
}

/** The device's mmap areas, in whole pages, without the pages of the MSI-X table and PBA. */
export function mappableWindows(
  info: VfioRegionInfo,
  shape: MsixShape | null,
  sizes: Pick<Msix, 'tableSize' | 'pbaSize'> | null,
): GpaRange[] {
  // A window below a page would show the guest its neighbour on the host.
  let windows: GpaRange[] = info.areas
    .map(({ start, length }) => wholePages(start, length))
    .filter((window) => window.length > 0);
  if (shape !== null && sizes !== null) {
    if (shape.tableBar === info.index)
      windows = windows.flatMap((window) => without(window, shape.tableOffset, sizes.tableSize));
    if (shape.pbaBar === info.index)
      windows = windows.flatMap((window) => without(window, shape.pbaOffset, sizes.pbaSize));
  }
  return windows;
}

/** What mmap() can take of a window: nothing (length 0) of one below a page. */
export function wholePages(start: number, length: number): GpaRange {
  const first = Math.ceil(start / PAGE) * PAGE;
  const end = Math.floor((start + length) / PAGE) * PAGE;
  return { start: first, length: Math.max(0, end - first) };
}

function without(window: GpaRange, offset: number, size: number): GpaRange[] {
  const from = Math.floor(offset / PAGE) * PAGE;
  const to = Math.ceil((offset + size) / PAGE) * PAGE;
  const end = window.start + window.length;
  if (to <= window.start || from >= end) return [window];
  const pieces: GpaRange[] = [];
  if (from > window.start) pieces.push({ start: window.start, length: from - window.start });
  if (to < end) pieces.push({ start: to, length: end - to });
  return pieces;
}

/** What exits: registers that cannot be mapped, I/O ports, and the MSI-X table and PBA, which are the guest's view. */
class TrappedBar implements Region {
  readonly name: string;
  readonly size: number;
  readonly wide: { read(offset: number): bigint; write(offset: number, value: bigint): void } | null;
  readonly #transport: VfioTransport;
  readonly #index: number;
  readonly #host: BarHost;
  readonly #window: MsixWindow | null;
  readonly #tableAt: number;
  readonly #tableEnd: number;
  readonly #pbaAt: number;
  readonly #pbaEnd: number;
  readonly #bytes = new Uint8Array(8);
  readonly #view = new DataView(this.#bytes.buffer);
  readonly #parts = {
    1: this.#bytes.subarray(0, 1),
    2: this.#bytes.subarray(0, 2),
    4: this.#bytes.subarray(0, 4),
  } as const;

  constructor(host: BarHost, info: VfioRegionInfo) {
    this.name = `${host.id}.bar${info.index}`;
    this.size = info.size;
    this.#transport = host.transport;
    this.#index = info.index;
    this.#host = host;
    const window = host.window;
    this.#window = window;
    const hasTable = window !== null && window.shape.tableBar === info.index;
    const hasPba = window !== null && window.shape.pbaBar === info.index;
    this.#tableAt = hasTable ? window.shape.tableOffset : 0;
    this.#tableEnd = hasTable ? window.shape.tableOffset + window.msix.tableSize : 0;
    this.#pbaAt = hasPba ? window.shape.pbaOffset : 0;
    this.#pbaEnd = hasPba ? window.shape.pbaOffset + window.msix.pbaSize : 0;
    this.wide = {
      read: (offset) => this.#readWide(offset),
      write: (offset, value) => this.#writeWide(offset, value),
    };
  }

  /** All but the MSI-X structures; null while this thread must see every access. */
  get fast(): FastWindow | null {
    const { vcpuAccess, beforeAccess } = this.#host;
    const file = vcpuAccess && beforeAccess === null ? this.#transport.regionFile(this.#index) : null;
    if (file === null) return null;
    const except = [
      { start: this.#tableAt, length: this.#tableEnd - this.#tableAt },
      { start: this.#pbaAt, length: this.#pbaEnd - this.#pbaAt },
    ].filter(({ length }) => length > 0);
    return { shadow: null, reads: [], posts: [], file: { ...file, except } };
  }

  read(offset: number, width: Width): number {
    const window = this.#window;
    if (window !== null && offset >= this.#tableAt && offset < this.#tableEnd) {
      return window.msix.readTable(offset - this.#tableAt, width);
    }
    if (window !== null && offset >= this.#pbaAt && offset < this.#pbaEnd) {
      window.beforePbaRead();
      return window.msix.readPba(offset - this.#pbaAt, width);
    }
    const bytes = this.#parts[width];
    if (!this.#fromDevice(offset, bytes)) bytes.fill(0xff);
    if (width === 4) return this.#view.getUint32(0, true);
    return width === 2 ? this.#view.getUint16(0, true) : this.#bytes[0]!;
  }

  write(offset: number, width: Width, value: number): void {
    const window = this.#window;
    if (window !== null && offset >= this.#tableAt && offset < this.#tableEnd) {
      window.msix.writeTable(offset - this.#tableAt, width, value);
      return;
    }
    // Pending bits are read-only. PCI 3.0, 6.8.2
    if (window !== null && offset >= this.#pbaAt && offset < this.#pbaEnd) return;
    if (width === 4) this.#view.setUint32(0, value >>> 0, true);
    else if (width === 2) this.#view.setUint16(0, value & 0xffff, true);
    else this.#bytes[0] = value & 0xff;
    this.#toDevice(offset, this.#parts[width]);
  }

  #readWide(offset: number): bigint {
    if (this.#isOurs(offset)) {
      return BigInt(this.read(offset, 4) >>> 0) | (BigInt(this.read(offset + 4, 4) >>> 0) << 32n);
    }
    if (!this.#fromDevice(offset, this.#bytes)) this.#bytes.fill(0xff);
    return this.#view.getBigUint64(0, true);
  }

  #writeWide(offset: number, value: bigint): void {
    if (this.#isOurs(offset)) {
      this.write(offset, 4, Number(value & 0xffffffffn));
      this.write(offset + 4, 4, Number((value >> 32n) & 0xffffffffn));
      return;
    }
    this.#view.setBigUint64(0, BigInt.asUintN(64, value), true);
    this.#toDevice(offset, this.#bytes);
  }

  /** Whether any of eight bytes belongs to the MSI-X structures. */
  #isOurs(offset: number): boolean {
    return (
      (offset + 8 > this.#tableAt && offset < this.#tableEnd) || (offset + 8 > this.#pbaAt && offset < this.#pbaEnd)
    );
  }

  /** false: the device did not answer (decode off, gone): the guest reads all-ones, as from any bus. */
  #fromDevice(offset: number, into: Uint8Array): boolean {
    this.#host.beforeAccess?.();
    try {
      this.#transport.readRegion(this.#index, offset, into);
      return true;
    } catch (error) {
      if (error instanceof SysError) return false;
      throw error;
    }
  }

  #toDevice(offset: number, from: Uint8Array): void {
    this.#host.beforeAccess?.();
    try {
      this.#transport.writeRegion(this.#index, offset, from);
    } catch (error) {
      if (!(error instanceof SysError)) throw error;
    }
  }
}
