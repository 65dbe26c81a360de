// The kernel's side of /dev/iommu and of VFIO's character devices for tests of open-cdev.ts, iommufd-dma.ts and migration/iommufd-dirty.ts:
// keeps the objects and their rules as linux/iommufd.h states them. The offsets are written out here, not taken from native/abi.
import { readlinkSync } from 'node:fs';
import type { Patch } from '../../native/addon.ts';
import { SysError } from '../../native/errno.ts';
import { FakeVfioKernel } from './vfio-kernel.ts';

export const EPERM = 1;
const ENOENT = 2;
export const ENOMEM = 12;
export const EBUSY = 16;
const EEXIST = 17;
const EINVAL = 22;
const EBADFD = 77;
const EMSGSIZE = 90;
const EOPNOTSUPP = 95;

interface Mapping {
  readonly iova: bigint;
  readonly length: bigint;
}

interface Bound {
  readonly fd: number;
  readonly unit: number;
  table: number | null;
}

type IommufdObject =
  | { readonly kind: 'ioas'; mappings: Mapping[] }
  /** `unit`: the IOMMU that its format is for. */
  | { readonly kind: 'hwpt'; readonly ioas: number; readonly tracks: boolean; readonly unit: number; on: boolean }
  | ({ readonly kind: 'device' } & Bound)
  | ({ readonly kind: 'access' } & Bound);

export class FakeIommufdKernel extends FakeVfioKernel {
  readonly objects = new Map<number, IommufdObject>();
  /** What the IOMMU can, and what GET_HW_INFO says of it. */
  tracking = false;
  hwInfo: 'true' | 'silent' = 'true';
  /** The devices that are bound from now on are mdevs. */
  emulated = false;
  /** Which IOMMU stands in front of the devices that are bound from now on. */
  unit = 0;
  ranges: readonly { start: bigint; last: bigint }[] = [{ start: 0n, last: 0x7fffffffffn }];
  #nextId = 1;

  override ioctl(
    name: string,
    fd: number,
    request: number,
    arg: number | Uint8Array,
    patches: readonly Patch[] = [],
  ): number {
    const base = name.replace(/\(.*/, '');
    const rule = this.answers.has(base) ? undefined : RULES[base];
    if (rule === undefined || typeof arg === 'number') return super.ioctl(name, fd, request, arg, patches);
    this.calls.push({ name, fd, arg: arg.slice(), patches });
    this.names.push(name);
    const view = new DataView(arg.buffer, arg.byteOffset, arg.byteLength);
    if (view.getUint32(0, true) !== arg.length) throw new SysError(name, EINVAL);
    const errno = rule(this, { view, fd, patches });
    if (errno !== 0) throw new SysError(name, errno);
    return 0;
  }

  /** What closing a file gives back. */
  override closeFd(fd: number): void {
    this.names.push(this.isIommufd(fd) ? 'close iommufd' : `close ${fd}`);
    if (this.isIommufd(fd)) this.objects.clear();
    for (const [id, object] of this.objects) {
      if ((object.kind === 'device' || object.kind === 'access') && object.fd === fd) this.objects.delete(id);
    }
    super.closeFd(fd);
  }

  isIommufd(fd: number): boolean {
    return readlinkSync(`/proc/self/fd/${fd}`).endsWith('/dev/iommu');
  }

  add(object: IommufdObject): number {
    const id = this.#nextId++;
    this.objects.set(id, object);
    return id;
  }

  boundBy(fd: number) {
    for (const object of this.objects.values()) {
      if ((object.kind === 'device' || object.kind === 'access') && object.fd === fd) return object;
    }
    return null;
  }

  of<Kind extends IommufdObject['kind']>(kind: Kind): Extract<IommufdObject, { kind: Kind }>[] {
    return [...this.objects.values()].filter(
      (object): object is Extract<IommufdObject, { kind: Kind }> => object.kind === kind,
    );
  }

  usersOf(id: number): number {
    return [...this.objects.values()].filter(
      (object) =>
        (object.kind === 'hwpt' && object.ioas === id) ||
        ((object.kind === 'device' || object.kind === 'access') && object.table === id),
    ).length;
  }
}

interface Call {
  readonly view: DataView;
  readonly fd: number;
  readonly patches: readonly Patch[];
}

/** Each gives an errno, 0 for success. */
const RULES: Readonly<Record<string, (kernel: FakeIommufdKernel, call: Call) => number>> = {
  VFIO_DEVICE_BIND_IOMMUFD: (kernel, { view, fd }) => {
    if (view.byteLength !== 16 || view.getUint32(4, true) !== 0 || kernel.boundBy(fd) !== null) return EINVAL;
    if (!kernel.isIommufd(view.getInt32(8, true))) return EBADFD;
    const bound = { fd, unit: kernel.unit, table: null };
    const id = kernel.add(kernel.emulated ? { kind: 'access', ...bound } : { kind: 'device', ...bound });
    view.setUint32(12, id, true);
    return 0;
  },

  VFIO_DEVICE_ATTACH_IOMMUFD_PT: (kernel, { view, fd }) => {
    const bound = kernel.boundBy(fd);
    if (view.byteLength !== 12 || bound === null) return EINVAL;
    const id = view.getUint32(8, true);
    const table = kernel.objects.get(id);
    if (table?.kind !== 'ioas' && table?.kind !== 'hwpt') return ENOENT;
    // An access object takes no page table. drivers/vfio/iommufd.c, emulated
    if (table.kind === 'hwpt' && bound.kind === 'access') return ENOENT;
    if (table.kind === 'hwpt' && table.unit !== bound.unit) return EINVAL;
    bound.table = id;
    return 0;
  },

  IOMMU_IOAS_ALLOC: (kernel, { view }) => {
    if (view.byteLength !== 12) return EINVAL;
    view.setUint32(8, kernel.add({ kind: 'ioas', mappings: [] }), true);
    return 0;
  },

  IOMMU_IOAS_IOVA_RANGES: (kernel, { view, patches }) => {
    const patch = patches.find((each) => each.at === 16);
    if (kernel.objects.get(view.getUint32(4, true))?.kind !== 'ioas') return ENOENT;
    if (patch === undefined || !('bytes' in patch)) return EINVAL;
    const room = view.getUint32(8, true);
    view.setUint32(8, kernel.ranges.length, true);
    view.setBigUint64(24, 4096n, true);
    const list = new DataView(patch.bytes.buffer, patch.bytes.byteOffset, patch.bytes.byteLength);
    kernel.ranges.slice(0, room).forEach(({ start, last }, i) => {
      list.setBigUint64(i * 16, start, true);
      list.setBigUint64(i * 16 + 8, last, true);
    });
    return kernel.ranges.length > room ? EMSGSIZE : 0;
  },

  IOMMU_IOAS_MAP: (kernel, { view, patches }) => {
    const ioas = kernel.objects.get(view.getUint32(8, true));
    const length = view.getBigUint64(24, true);
    const iova = view.getBigUint64(32, true);
    if (ioas?.kind !== 'ioas') return ENOENT;
    // FIXED_IOVA, WRITEABLE, READABLE
    const patch = patches.find((each) => each.at === 16);
    if (view.getUint32(4, true) !== 7 || patch === undefined || !('ram' in patch)) return EINVAL;
    if (BigInt(patch.length) !== length) return EINVAL;
    if (ioas.mappings.some((each) => iova < each.iova + each.length && each.iova < iova + length)) return EEXIST;
    ioas.mappings.push({ iova, length });
    return 0;
  },

  IOMMU_IOAS_UNMAP: (kernel, { view }) => {
    const ioas = kernel.objects.get(view.getUint32(4, true));
    if (ioas?.kind !== 'ioas') return ENOENT;
    const left = ioas.mappings.filter(
      ({ iova, length }) => iova !== view.getBigUint64(8, true) || length !== view.getBigUint64(16, true),
    );
    if (left.length === ioas.mappings.length) return ENOENT;
    ioas.mappings = left;
    return 0;
  },

  IOMMU_GET_HW_INFO: (kernel, { view }) => {
    if (view.byteLength !== 40) return EINVAL;
    if (kernel.objects.get(view.getUint32(8, true))?.kind !== 'device') return ENOENT;
    if (kernel.hwInfo === 'silent') return EOPNOTSUPP;
    view.setBigUint64(32, kernel.tracking ? 1n : 0n, true);
    return 0;
  },

  IOMMU_HWPT_ALLOC: (kernel, { view }) => {
    const device = kernel.objects.get(view.getUint32(8, true));
    const ioas = view.getUint32(12, true);
    if (view.byteLength !== 48) return EINVAL;
    if (device?.kind !== 'device' || kernel.objects.get(ioas)?.kind !== 'ioas') return ENOENT;
    const tracks = (view.getUint32(4, true) & 2) !== 0;
    if (tracks && !kernel.tracking) return EOPNOTSUPP;
    view.setUint32(16, kernel.add({ kind: 'hwpt', ioas, tracks, unit: device.unit, on: false }), true);
    return 0;
  },

  IOMMU_HWPT_SET_DIRTY_TRACKING: (kernel, { view }) => {
    const hwpt = kernel.objects.get(view.getUint32(8, true));
    if (view.byteLength !== 16 || hwpt?.kind !== 'hwpt') return ENOENT;
    if (!hwpt.tracks) return EOPNOTSUPP;
    hwpt.on = (view.getUint32(4, true) & 1) !== 0;
    if (hwpt.on) kernel.dirty = [];
    return 0;
  },

  IOMMU_HWPT_GET_DIRTY_BITMAP: (kernel, { view, patches }) => {
    const hwpt = kernel.objects.get(view.getUint32(4, true));
    const patch = patches.find((each) => each.at === 40);
    if (view.byteLength !== 48 || hwpt?.kind !== 'hwpt') return ENOENT;
    if (!hwpt.on || patch === undefined || !('bitmap' in patch)) return EINVAL;
    const iova = view.getBigUint64(16, true);
    const length = view.getBigUint64(24, true);
    const ioas = kernel.objects.get(hwpt.ioas);
    if (ioas?.kind !== 'ioas' || view.getBigUint64(32, true) !== 4096n) return EINVAL;
    if (!ioas.mappings.some((each) => each.iova === iova && each.length === length)) return EINVAL;
    const first = Number(iova) / 4096;
    const pages = Number(length) / 4096;
    const inside = kernel.dirty.filter((page) => page >= first && page < first + pages);
    for (const page of inside) patch.bitmap.set(patch.firstPage + page - first, 1);
    if ((view.getUint32(8, true) & 1) === 0) kernel.dirty = kernel.dirty.filter((page) => !inside.includes(page));
    return 0;
  },

  IOMMU_DESTROY: (kernel, { view }) => {
    const id = view.getUint32(4, true);
    if (view.byteLength !== 8 || !kernel.objects.has(id)) return ENOENT;
    if (kernel.usersOf(id) > 0) return EBUSY;
    kernel.objects.delete(id);
    return 0;
  },
};
