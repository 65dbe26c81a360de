// A VFIO device fd of the kernel: regions, interrupts, reset. Group and cdev share it; they differ in how the fd is opened.
// Made by device-fd.ts, used through VfioTransport. Region accesses are synchronous (config space, trapped BARs); reset is not.
// linux/vfio.h, VFIO_DEVICE_GET_INFO, VFIO_DEVICE_GET_REGION_INFO, VFIO_DEVICE_SET_IRQS, VFIO_DEVICE_RESET
import {
  VFIO_DEVICE_FLAGS_PCI,
  VFIO_DEVICE_FLAGS_RESET,
  VFIO_DEVICE_GET_INFO,
  VFIO_DEVICE_GET_IRQ_INFO,
  VFIO_DEVICE_GET_REGION_INFO,
  VFIO_DEVICE_RESET,
  VFIO_DEVICE_SET_IRQS,
  VFIO_IRQ_INFO_AUTOMASKED,
  VFIO_IRQ_INFO_MASKABLE,
  VFIO_IRQ_INFO_NORESIZE,
  VFIO_IRQ_SET_ACTION_MASK,
  VFIO_IRQ_SET_ACTION_TRIGGER,
  VFIO_IRQ_SET_ACTION_UNMASK,
  VFIO_IRQ_SET_DATA_EVENTFD,
  VFIO_IRQ_SET_DATA_NONE,
  VFIO_REGION_INFO_CAP_SPARSE_MMAP,
  VFIO_REGION_INFO_CAP_TYPE,
  VFIO_REGION_INFO_FLAG_CAPS,
  VFIO_REGION_INFO_FLAG_MMAP,
  VFIO_REGION_INFO_FLAG_READ,
  VFIO_REGION_INFO_FLAG_WRITE,
  vfio_device_info,
  vfio_irq_info,
  vfio_irq_set,
  vfio_region_info,
  vfio_region_info_cap_sparse_mmap,
  vfio_region_info_cap_type,
  vfio_region_sparse_mmap_area,
} from '../../native/abi/vfio.ts';
import { SysError } from '../../native/errno.ts';
import type { GpaRange, HostMapping } from '../contract.ts';
import { within } from './deadline.ts';
import { capabilitiesOf } from './info-caps.ts';
import type { KernelDoor } from './kernel-door.ts';
import type {
  DmaLogPort,
  VfioInfo,
  VfioIrqInfo,
  VfioIrqs,
  VfioMigrationPort,
  VfioRegionInfo,
  VfioTransport,
} from './transport.ts';

/** A function-level reset takes 100 ms by PCIe 6.6.2, a bus reset a second; drivers add their own firmware's time. */
const RESET_MS = 60_000;

export interface RegionPlace extends VfioRegionInfo {
  /** Where the region starts within the device fd. */
  readonly fdOffset: number;
}

export interface KernelDeviceParts {
  readonly kind: 'group' | 'cdev';
  readonly name: string;
  readonly door: KernelDoor;
  readonly fd: number;
  readonly migration: VfioMigrationPort | null;
  readonly dmaLog: DmaLogPort | null;
  /** Called once, while the device fd is still open: what must be taken back by it; null: nothing. */
  readonly closing: (() => void) | null;
  /** Called once, after the device fd was closed. */
  readonly closed: () => Promise<void>;
}

export class KernelDevice implements VfioTransport {
  readonly kind: 'group' | 'cdev';
  readonly name: string;
  readonly info: VfioInfo;
  readonly irqs: VfioIrqs;
  readonly migration: VfioMigrationPort | null;
  readonly dmaLog: DmaLogPort | null;
  readonly #door: KernelDoor;
  readonly #fd: number;
  readonly #regions: readonly RegionPlace[];
  readonly #closing: (() => void) | null;
  readonly #closed: () => Promise<void>;
  #open = true;

  constructor(parts: KernelDeviceParts) {
    this.kind = parts.kind;
    this.name = parts.name;
    this.migration = parts.migration;
    this.dmaLog = parts.dmaLog;
    this.#door = parts.door;
    this.#fd = parts.fd;
    this.#closing = parts.closing;
    this.#closed = parts.closed;
    const device = readDeviceInfo(parts.door, parts.fd);
    const regions = readRegions(parts.door, parts.fd, device.regions);
    const irqs: VfioIrqInfo[] = [];
    for (let index = 0; index < device.irqs; index++) {
      const irq = readIrqInfo(parts.door, parts.fd, index);
      if (irq !== null) irqs.push(irq);
    }
    this.#regions = regions;
    this.info = { canReset: device.canReset, regions, irqs };
    this.irqs = new KernelIrqs(parts.door, parts.fd);
  }

  readRegion(index: number, offset: number, into: Uint8Array): void {
    const done = this.#door.pread(this.#fd, this.#place(index).fdOffset + offset, into);
    if (done !== into.length) throw new SysError(`pread(${this.name} region ${index})`, EIO);
  }

  writeRegion(index: number, offset: number, from: Uint8Array): void {
    const done = this.#door.pwrite(this.#fd, this.#place(index).fdOffset + offset, from);
    if (done !== from.length) throw new SysError(`pwrite(${this.name} region ${index})`, EIO);
  }

  regionFile(index: number): { fd: number; offset: number } {
    return { fd: this.#fd, offset: this.#place(index).fdOffset };
  }

  mapArea(index: number, area: GpaRange): HostMapping | null {
    const region = this.#place(index);
    try {
      return this.#door.mapFd(this.#fd, region.fdOffset + area.start, area.length, region.writable);
    } catch (error) {
      if (error instanceof SysError) return null;
      throw error;
    }
  }

  async reset(): Promise<void> {
    await within(this.#door.ioctlAsync('VFIO_DEVICE_RESET', this.#fd, VFIO_DEVICE_RESET, 0), {
      ms: RESET_MS,
      what: `${this.name}: resetting the device`,
    });
    this.migration?.wasReset();
  }

  async close(): Promise<void> {
    if (!this.#open) return;
    this.#open = false;
    this.migration?.endSession();
    this.#closing?.();
    this.#door.closeFd(this.#fd);
    await this.#closed();
  }

  #place(index: number): RegionPlace {
    const region = this.#regions.find((each) => each.index === index);
    if (region === undefined) throw new SysError(`${this.name} region ${index}`, EINVAL);
    return region;
  }
}

const EIO = 5;
const EINVAL = 22;

class KernelIrqs implements VfioIrqs {
  readonly #door: KernelDoor;
  readonly #fd: number;

  constructor(door: KernelDoor, fd: number) {
    this.#door = door;
    this.#fd = fd;
  }

  trigger(index: number, start: number, eventFds: readonly (number | null)[]): number {
    return this.#set(VFIO_IRQ_SET_ACTION_TRIGGER, index, start, eventFds);
  }

  disable(index: number): void {
    // linux/vfio.h: DATA_NONE | ACTION_TRIGGER with count 0 takes the whole index down.
    this.#set(VFIO_IRQ_SET_ACTION_TRIGGER, index, 0, 0);
  }

  mask(index: number, start: number): void {
    this.#set(VFIO_IRQ_SET_ACTION_MASK, index, start, 1);
  }

  unmask(index: number, start: number): void {
    this.#set(VFIO_IRQ_SET_ACTION_UNMASK, index, start, 1);
  }

  unmaskBy(index: number, start: number, eventFd: number | null): void {
    this.#set(VFIO_IRQ_SET_ACTION_UNMASK, index, start, [eventFd]);
  }

  /** `what`: eventfds, or the count of a DATA_NONE action. */
  #set(action: number, index: number, start: number, what: readonly (number | null)[] | number): number {
    const fds = typeof what === 'number' ? [] : what;
    const arg = new Uint8Array(vfio_irq_set.data + fds.length * 4);
    const view = new DataView(arg.buffer);
    const data = typeof what === 'number' ? VFIO_IRQ_SET_DATA_NONE : VFIO_IRQ_SET_DATA_EVENTFD;
    view.setUint32(vfio_irq_set.argsz, arg.length, true);
    view.setUint32(vfio_irq_set.flags, data | action, true);
    view.setUint32(vfio_irq_set.index, index, true);
    view.setUint32(vfio_irq_set.start, start, true);
    view.setUint32(vfio_irq_set.count, typeof what === 'number' ? what : fds.length, true);
    fds.forEach((fd, i) => {
      view.setInt32(vfio_irq_set.data + i * 4, fd ?? -1, true);
    });
    return this.#door.ioctl('VFIO_DEVICE_SET_IRQS', this.#fd, VFIO_DEVICE_SET_IRQS, arg);
  }
}

export interface DeviceInfo {
  readonly canReset: boolean;
  readonly isPci: boolean;
  readonly regions: number;
  readonly irqs: number;
}

export function readDeviceInfo(door: KernelDoor, fd: number): DeviceInfo {
  const arg = new Uint8Array(vfio_device_info.size);
  const view = new DataView(arg.buffer);
  view.setUint32(vfio_device_info.argsz, arg.length, true);
  door.ioctl('VFIO_DEVICE_GET_INFO', fd, VFIO_DEVICE_GET_INFO, arg);
  const flags = view.getUint32(vfio_device_info.flags, true);
  return {
    canReset: (flags & VFIO_DEVICE_FLAGS_RESET) !== 0,
    isPci: (flags & VFIO_DEVICE_FLAGS_PCI) !== 0,
    regions: view.getUint32(vfio_device_info.num_regions, true),
    irqs: view.getUint32(vfio_device_info.num_irqs, true),
  };
}

/** Those of the first `count` indexes that exist. */
export function readRegions(door: KernelDoor, fd: number, count: number): RegionPlace[] {
  const regions: RegionPlace[] = [];
  for (let index = 0; index < count; index++) {
    const region = readRegionInfo(door, fd, index);
    if (region !== null) regions.push(region);
  }
  return regions;
}

/** null: this index does not exist for the device (VGA, for instance: EINVAL). */
function readRegionInfo(door: KernelDoor, fd: number, index: number): RegionPlace | null {
  let arg = new Uint8Array(vfio_region_info.size);
  for (;;) {
    const view = new DataView(arg.buffer);
    view.setUint32(vfio_region_info.argsz, arg.length, true);
    view.setUint32(vfio_region_info.index, index, true);
    try {
      door.ioctl('VFIO_DEVICE_GET_REGION_INFO', fd, VFIO_DEVICE_GET_REGION_INFO, arg);
    } catch (error) {
      if (error instanceof SysError && (error.errno === EINVAL || error.code === 'ENODEV')) return null;
      throw error;
    }
    const wanted = view.getUint32(vfio_region_info.argsz, true);
    if (wanted <= arg.length) return parseRegionInfo(view, index);
    arg = new Uint8Array(wanted);
  }
}

/** Answer of VFIO_DEVICE_GET_REGION_INFO with its capabilities. */
function parseRegionInfo(view: DataView, index: number): RegionPlace {
  const flags = view.getUint32(vfio_region_info.flags, true);
  const size = Number(view.getBigUint64(vfio_region_info.size_at, true));
  const mappable = (flags & VFIO_REGION_INFO_FLAG_MMAP) !== 0 && size > 0;
  let areas: readonly GpaRange[] = mappable ? [{ start: 0, length: size }] : [];
  const first = (flags & VFIO_REGION_INFO_FLAG_CAPS) === 0 ? 0 : view.getUint32(vfio_region_info.cap_offset, true);
  let type: VfioRegionInfo['type'] = null;
  for (const cap of capabilitiesOf(view, first)) {
    if (cap.id === VFIO_REGION_INFO_CAP_SPARSE_MMAP && mappable) areas = sparseAreas(view, cap.offset);
    if (cap.id === VFIO_REGION_INFO_CAP_TYPE) type = typeAt(view, cap.offset);
  }
  return {
    index,
    size,
    readable: (flags & VFIO_REGION_INFO_FLAG_READ) !== 0,
    writable: (flags & VFIO_REGION_INFO_FLAG_WRITE) !== 0,
    areas,
    type,
    fdOffset: Number(view.getBigUint64(vfio_region_info.offset, true)),
  };
}

/** null: the capability is cut off. */
function typeAt(view: DataView, base: number): VfioRegionInfo['type'] {
  if (base + vfio_region_info_cap_type.size > view.byteLength) return null;
  return {
    type: view.getUint32(base + vfio_region_info_cap_type.type, true),
    subtype: view.getUint32(base + vfio_region_info_cap_type.subtype, true),
  };
}

function sparseAreas(view: DataView, base: number): GpaRange[] {
  const count = view.getUint32(base + vfio_region_info_cap_sparse_mmap.nr_areas, true);
  const areas: GpaRange[] = [];
  for (let i = 0; i < count; i++) {
    const at = base + vfio_region_info_cap_sparse_mmap.areas + i * vfio_region_sparse_mmap_area.size;
    if (at + vfio_region_sparse_mmap_area.size > view.byteLength) break;
    const start = Number(view.getBigUint64(at + vfio_region_sparse_mmap_area.offset, true));
    const length = Number(view.getBigUint64(at + vfio_region_sparse_mmap_area.size_at, true));
    if (length > 0) areas.push({ start, length });
  }
  return areas;
}

function readIrqInfo(door: KernelDoor, fd: number, index: number): VfioIrqInfo | null {
  const arg = new Uint8Array(vfio_irq_info.size);
  const view = new DataView(arg.buffer);
  view.setUint32(vfio_irq_info.argsz, arg.length, true);
  view.setUint32(vfio_irq_info.index, index, true);
  try {
    door.ioctl('VFIO_DEVICE_GET_IRQ_INFO', fd, VFIO_DEVICE_GET_IRQ_INFO, arg);
  } catch (error) {
    if (error instanceof SysError && error.errno === EINVAL) return null;
    throw error;
  }
  const flags = view.getUint32(vfio_irq_info.flags, true);
  return {
    index,
    count: view.getUint32(vfio_irq_info.count, true),
    maskable: (flags & VFIO_IRQ_INFO_MASKABLE) !== 0,
    automasked: (flags & VFIO_IRQ_INFO_AUTOMASKED) !== 0,
    noResize: (flags & VFIO_IRQ_INFO_NORESIZE) !== 0,
  };
}
