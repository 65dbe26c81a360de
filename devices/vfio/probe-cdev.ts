// What iommufd offers for one device, as plain data for `ferry vfio info`: is there a character device, /dev/iommu, and does the IOMMU track
// dirty pages. Called by probe.ts; opens and closes the device, maps nothing.
// linux/iommufd.h, IOMMU_HWPT_ALLOC_DIRTY_TRACKING
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { SysError, VmmError } from '../../native/errno.ts';
import { cdevOf } from './cdev-path.ts';
import type { Bdf } from './host-pci.ts';
import { allocHwpt, attachDevice, bindDevice, hwTracking, Ioas, type IommufdDoor } from './iommufd-dma.ts';
import type { HostPaths, KernelDoor } from './kernel-door.ts';
import { openFile } from './open-checks.ts';

export interface IommufdOffer {
  /** /dev/vfio/devices/vfioN; null: this kernel's VFIO makes none. */
  readonly cdev: string | null;
  /** /dev/iommu is there. */
  readonly iommufd: boolean;
  /** The IOMMU tracks what the device writes; null: it could not be asked, `note` says why. */
  readonly dirtyTracking: boolean | null;
  readonly note: string | null;
}

export interface CdevSession {
  readonly fd: number;
  readonly on: IommufdDoor;
  /** The device's id in the iommufd. */
  readonly device: number;
  readonly ioas: Ioas;
}

/** Binds the device to an iommufd of its own for the length of `work`. */
export async function withCdev<T>(
  door: KernelDoor,
  paths: HostPaths,
  bdf: Bdf,
  work: (session: CdevSession) => Promise<T>,
): Promise<T> {
  const path = cdevOf(paths, bdf);
  if (path === null) throw new VmmError('no-cdev', `${bdf} has no character device under /dev/vfio/devices`);
  const iommufd = openFile(join(paths.dev, 'iommu'), bdf, 'load it with `modprobe iommufd`');
  const fds = [iommufd];
  try {
    const fd = openFile(path, bdf, 'bind the device again');
    fds.push(fd);
    const on = { door, fd: iommufd };
    const device = await bindDevice(door, fd, iommufd);
    return await work({ fd, on, device, ioas: Ioas.alloc(on) });
  } finally {
    // The device first: its bond holds what the iommufd gives back when it is closed.
    for (const fd of fds.reverse()) door.closeFd(fd);
  }
}

/** Attached as for a guest, so that its reach is known. */
export async function attachEmpty({ fd, on, device, ioas }: CdevSession): Promise<void> {
  const emulated = hwTracking(on, device) === 'emulated';
  const wish = { device, ioas: ioas.id, tracking: false, bytes: 0 };
  await attachDevice(on.door, fd, emulated ? ioas.id : await allocHwpt(on, wish), 0);
}

export async function probeIommufd(door: KernelDoor, paths: HostPaths, bdf: Bdf): Promise<IommufdOffer> {
  const cdev = cdevOf(paths, bdf);
  const iommufd = existsSync(join(paths.dev, 'iommu'));
  if (cdev === null || !iommufd) return { cdev, iommufd, dirtyTracking: null, note: null };
  try {
    const dirtyTracking = await withCdev(door, paths, bdf, tracks);
    return { cdev, iommufd, dirtyTracking, note: null };
  } catch (error) {
    if (!(error instanceof SysError || error instanceof VmmError)) throw error;
    return { cdev, iommufd, dirtyTracking: null, note: error.message };
  }
}

/** Tried rather than read off GET_HW_INFO, which kernels before 6.7 answer without it. */
async function tracks({ on, device, ioas }: CdevSession): Promise<boolean> {
  if (hwTracking(on, device) === 'emulated') return false;
  try {
    await allocHwpt(on, { device, ioas: ioas.id, tracking: true, bytes: 0 });
    return true;
  } catch (error) {
    if (error instanceof SysError && error.code === 'EOPNOTSUPP') return false;
    throw error;
  }
}
