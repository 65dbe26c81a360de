// The kernel's side of /dev/vfio for tests of open-group.ts, kernel-device.ts, type1-dma.ts and migration/feature-v2.ts: answers the
// ioctls byte by byte as linux/vfio.h lays them out. The offsets are written out here, not taken from native/abi.
import { closeSync, openSync } from 'node:fs';
import type { KernelDoor } from '../../devices/vfio/kernel-door.ts';
import type { HostMapping, PageBitmap, Patch } from '../../native/addon.ts';
import { SysError } from '../../native/errno.ts';

export interface KernelCall {
  readonly name: string;
  readonly fd: number;
  readonly arg: Uint8Array | number;
  readonly patches: readonly Patch[];
}

export const ENOTTY = 25;
export const EINVAL = 22;
const EOPNOTSUPP = 95;

/** linux/vfio.h, enum vfio_device_mig_state. */
const STOP_COPY = 3;
const RESUMING = 4;
const PRE_COPY = 6;
const PRE_COPY_P2P = 7;
const SAVING = [STOP_COPY, PRE_COPY, PRE_COPY_P2P];

/** A migration v2 device behind the ioctls. */
export interface FakeMigration {
  flags: bigint;
  state: number;
  /** null: no VFIO_DEVICE_FEATURE_MIG_DATA_SIZE. */
  dataSize: bigint | null;
  /** The next SET fails with this errno and leaves the device in `state`. */
  fail: { errno: number; state: number } | null;
  /** The next SET is answered only when this is resolved. */
  hold: Promise<void> | null;
  /** A data fd comes back although none is due. */
  secondFd: boolean;
  withholdFd: boolean;
  /** The driver has VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2, and whether it was SET. */
  precopyInfo2: boolean;
  optedIn: boolean;
  /** VFIO_PRECOPY_INFO_REINIT, once opted in. */
  reinit: boolean;
}

export class FakeVfioKernel implements KernelDoor {
  readonly calls: KernelCall[] = [];
  /** By ioctl name (without what is in parentheses): another answer than the usual one. A number is an errno. */
  readonly answers = new Map<string, number | ((call: KernelCall) => number)>();
  readonly closed: number[] = [];
  viable = true;
  migration: FakeMigration | null = null;
  dmaLogging: 'none' | 'works' | 'no report' = 'none';
  /** Pages, by bitmap index, that the next report sets. */
  dirty: number[] = [];
  /** Bytes of VFIO_IOMMU_GET_INFO's whole answer. */
  iommuInfo = type1Info([{ start: 0n, end: 0x7fffffffffn }], true);
  /** [index]: the whole answer of VFIO_DEVICE_GET_REGION_INFO. */
  regions: Uint8Array[] = [];
  irqs: { flags: number; count: number }[] = [];
  /** VFIO_DEVICE_FLAGS_RESET | VFIO_DEVICE_FLAGS_PCI. */
  deviceFlags = 3;
  readonly names: string[] = [];

  ioctl(name: string, fd: number, _request: number, arg: number | Uint8Array, patches: readonly Patch[] = []): number {
    const call = { name, fd, arg: typeof arg === 'number' ? arg : arg.slice(), patches };
    this.calls.push(call);
    this.names.push(name);
    const own = this.answers.get(name.replace(/\(.*/, ''));
    if (typeof own === 'number') throw new SysError(name, own);
    if (own !== undefined) return own({ ...call, arg });
    return this.#answer(name, arg, patches);
  }

  async ioctlAsync(
    name: string,
    fd: number,
    request: number,
    arg: number | Uint8Array,
    patches: readonly Patch[] = [],
  ): Promise<number> {
    const hold = this.migration?.hold ?? null;
    if (hold !== null && name.includes('MIG_DEVICE_STATE=')) await hold;
    return this.ioctl(name, fd, request, arg, patches);
  }

  #answer(name: string, arg: number | Uint8Array, patches: readonly Patch[]): number {
    if (name === 'VFIO_CHECK_EXTENSION') return 1;
    if (name === 'VFIO_GROUP_GET_DEVICE_FD') return openSync('/dev/null', 'r+');
    if (typeof arg === 'number') return 0;
    const view = new DataView(arg.buffer, arg.byteOffset, arg.byteLength);
    if (name === 'VFIO_GROUP_GET_STATUS') view.setUint32(4, this.viable ? 1 : 0, true);
    if (name === 'VFIO_IOMMU_GET_INFO') answerSized(arg, this.iommuInfo);
    if (name === 'VFIO_DEVICE_GET_INFO') {
      view.setUint32(4, this.deviceFlags, true);
      view.setUint32(8, this.regions.length, true);
      view.setUint32(12, this.irqs.length, true);
    }
    if (name === 'VFIO_DEVICE_GET_REGION_INFO') this.#regionInfo(arg, view);
    if (name === 'VFIO_DEVICE_GET_IRQ_INFO') {
      const irq = this.irqs[view.getUint32(8, true)]!;
      view.setUint32(4, irq.flags, true);
      view.setUint32(12, irq.count, true);
    }
    if (name.startsWith('VFIO_DEVICE_FEATURE')) this.#feature(name, arg, view, patches);
    if (name === 'VFIO_MIG_GET_PRECOPY_INFO') {
      view.setBigUint64(8, 4096n, true);
      view.setBigUint64(16, 12n, true);
      // Before the opt-in the flags are whatever the caller had there, or worse.
      view.setUint32(4, this.migration?.optedIn ? (this.migration.reinit ? 1 : 0) : 0xffff, true);
    }
    if (name === 'VFIO_IOMMU_DIRTY_PAGES(GET)' || name === 'VFIO_IOMMU_UNMAP_DMA(GET)') this.#setDirty(patches);
    return 0;
  }

  #regionInfo(arg: Uint8Array, view: DataView): void {
    const region = this.regions[view.getUint32(8, true)]!;
    if (region.length === 0) throw new SysError('VFIO_DEVICE_GET_REGION_INFO', EINVAL);
    answerSized(arg, region);
  }

  #feature(name: string, arg: Uint8Array, view: DataView, patches: readonly Patch[]): void {
    const flags = view.getUint32(4, true);
    const feature = flags & 0xffff;
    const probe = (flags & 0x40000) !== 0;
    if (feature >= 6 && feature <= 8) {
      if (this.dmaLogging === 'none') throw new SysError(name, ENOTTY);
      if (probe || feature !== 8) return;
      if (this.dmaLogging === 'no report') throw new SysError(name, EOPNOTSUPP);
      this.#setDirty(patches);
      return;
    }
    const migration = this.migration;
    if (migration === null) throw new SysError(name, ENOTTY);
    if (probe) return;
    if (feature === 12) {
      if (!migration.precopyInfo2) throw new SysError(name, ENOTTY);
      if (!probe) migration.optedIn = true;
      return;
    }
    if (feature === 1) view.setBigUint64(8, migration.flags, true);
    if (feature === 9) {
      if (migration.dataSize === null) throw new SysError(name, ENOTTY);
      view.setBigUint64(8, migration.dataSize, true);
    }
    if (feature !== 2) return;
    if ((flags & 0x10000) !== 0) {
      view.setUint32(8, migration.state, true);
      view.setInt32(12, -1, true);
    } else this.#setState(name, arg, view, migration);
  }

  #setState(name: string, _arg: Uint8Array, view: DataView, migration: FakeMigration): void {
    const from = migration.state;
    const to = view.getUint32(8, true);
    if (migration.fail !== null) {
      const { errno, state } = migration.fail;
      migration.fail = null;
      migration.state = state;
      throw new SysError(name, errno);
    }
    migration.state = to;
    const opens = to === RESUMING || (SAVING.includes(to) && !SAVING.includes(from));
    const gives = (opens && !migration.withholdFd) || migration.secondFd;
    view.setInt32(12, gives ? openSync('/dev/null', 'r+') : -1, true);
  }

  #setDirty(patches: readonly Patch[]): void {
    const patch = patches.find((each) => 'bitmap' in each);
    if (patch === undefined || !('bitmap' in patch)) throw new SysError('no bitmap', EINVAL);
    for (const page of this.dirty) if (page < patch.pages) patch.bitmap.set(patch.firstPage + page, 1);
  }

  mapFd(_fd: number, _offset: number, _size: number, _writable: boolean): HostMapping {
    throw new SysError('mmap', EINVAL);
  }
  pread(_fd: number, _offset: bigint | number, into: Uint8Array): number {
    into.fill(0xab);
    return into.length;
  }
  pwrite(_fd: number, _offset: bigint | number, from: Uint8Array): number {
    return from.length;
  }
  async preadAsync(fd: number, offset: bigint | number, into: Uint8Array): Promise<number> {
    return this.pread(fd, offset, into);
  }
  async pwriteAsync(fd: number, offset: bigint | number, from: Uint8Array): Promise<number> {
    return this.pwrite(fd, offset, from);
  }
  closeFd(fd: number): void {
    this.closed.push(fd);
    closeSync(fd);
  }
  createBitmap(_pages: number): PageBitmap {
    throw new Error('not here');
  }
  eventFd(): number {
    return openSync('/dev/null', 'r+');
  }
  eventTake(): bigint {
    return 0n;
  }
}

/** As the kernel: what fits is copied, argsz says how much there is. */
function answerSized(arg: Uint8Array, whole: Uint8Array): void {
  const fits = arg.length >= whole.length;
  arg.set(whole.subarray(0, fits ? whole.length : Math.min(arg.length, 24)));
  const view = new DataView(arg.buffer, arg.byteOffset);
  view.setUint32(0, whole.length, true);
  if (!fits && whole.length > 24 && arg.length >= 20)
    view.setUint32(16, arg.length === 24 ? 0 : view.getUint32(16, true), true);
}

/** struct vfio_iommu_type1_info with an IOVA range capability and, if `dirty`, a migration one. */
export function type1Info(ranges: readonly { start: bigint; end: bigint }[], dirty: boolean): Uint8Array {
  const rangeCap = 24;
  const migrationCap = rangeCap + 16 + ranges.length * 16;
  const bytes = new Uint8Array(migrationCap + (dirty ? 32 : 0));
  const view = new DataView(bytes.buffer);
  view.setUint32(0, bytes.length, true);
  view.setUint32(4, 3, true);
  view.setBigUint64(8, 0x40201000n, true);
  view.setUint32(16, rangeCap, true);
  view.setUint16(rangeCap, 1, true);
  view.setUint16(rangeCap + 2, 1, true);
  view.setUint32(rangeCap + 4, dirty ? migrationCap : 0, true);
  view.setUint32(rangeCap + 8, ranges.length, true);
  ranges.forEach(({ start, end }, i) => {
    view.setBigUint64(rangeCap + 16 + i * 16, start, true);
    view.setBigUint64(rangeCap + 24 + i * 16, end, true);
  });
  if (dirty) {
    view.setUint16(migrationCap, 2, true);
    view.setBigUint64(migrationCap + 16, 0x1000n, true);
    view.setBigUint64(migrationCap + 24, 1n << 28n, true);
  }
  return bytes;
}

/** struct vfio_region_info, with a sparse mmap capability when `areas` is given and a type capability when `type` is. */
export function regionInfo(
  index: number,
  size: bigint,
  flags: number,
  areas: readonly [bigint, bigint][] = [],
  type: readonly [number, number] | null = null,
): Uint8Array {
  const typeAt = 32 + (areas.length > 0 ? 16 + areas.length * 16 : 0);
  const bytes = new Uint8Array(typeAt + (type === null ? 0 : 16));
  const view = new DataView(bytes.buffer);
  view.setUint32(0, bytes.length, true);
  view.setUint32(4, flags | (bytes.length > 32 ? 8 : 0), true);
  view.setUint32(8, index, true);
  view.setBigUint64(16, size, true);
  view.setBigUint64(24, BigInt(index) << 40n, true);
  if (type !== null) {
    view.setUint32(12, typeAt, true);
    view.setUint16(typeAt, 2, true);
    view.setUint16(typeAt + 2, 1, true);
    view.setUint32(typeAt + 8, type[0], true);
    view.setUint32(typeAt + 12, type[1], true);
  }
  if (areas.length === 0) return bytes;
  view.setUint32(12, 32, true);
  view.setUint16(32, 1, true);
  view.setUint16(34, 1, true);
  if (type !== null) view.setUint32(36, typeAt, true);
  view.setUint32(40, areas.length, true);
  areas.forEach(([offset, length], i) => {
    view.setBigUint64(48 + i * 16, offset, true);
    view.setBigUint64(56 + i * 16, length, true);
  });
  return bytes;
}

export function migratable(): FakeMigration {
  return {
    flags: 7n,
    state: 2,
    dataSize: 5000n,
    fail: null,
    hold: null,
    secondFd: false,
    withholdFd: false,
    precopyInfo2: false,
    optedIn: false,
    reinit: false,
  };
}
