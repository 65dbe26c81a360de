// Where a device's character device is (/dev/vfio/devices/vfioN), and whose one an fd from outside is. Called by open-cdev.ts,
// open-device.ts and probe-cdev.ts; reads sysfs and fstat only.
// /sys/bus/pci/devices/BDF/vfio-dev/vfioN, since Linux 6.1; the node since 6.6
import { existsSync, fstatSync, readdirSync, realpathSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { VmmError } from '../../native/errno.ts';
import { type Bdf, devicePath } from './host-pci.ts';
import type { HostPaths } from './kernel-door.ts';
import { codeOf } from './open-checks.ts';

/** null: no driver of VFIO has the device, or this kernel's VFIO makes no character devices. */
export function cdevOf(paths: HostPaths, bdf: Bdf): string | null {
  const sysfs = join(devicePath(paths, bdf), 'vfio-dev');
  const name = existsSync(sysfs) ? readdirSync(sysfs).find((each) => /^vfio\d+$/.test(each)) : undefined;
  if (name === undefined) return null;
  const path = join(paths.dev, 'vfio/devices', name);
  return existsSync(path) ? path : null;
}

/** The name of the device that fd= of --device stands for: its PCI address (a UUID for an mdev), or "fd N" where sysfs is silent. */
export function nameOfFd(paths: HostPaths, fd: number): string {
  const device = deviceNumber(fd);
  let path: string;
  try {
    path = realpathSync(join(paths.sys, 'dev/char', device));
  } catch {
    return `fd ${fd}`;
  }
  const directory = dirname(path);
  if (basename(directory) === 'vfio-dev') return basename(dirname(directory));
  throw new VmmError(
    'device-fd',
    `fd=${fd} of --device is ${basename(path)}, no VFIO device: pass an open /dev/vfio/devices/vfioN`,
  );
}

/** "MAJOR:MINOR" of an open character device. linux/kdev_t.h, new_encode_dev */
function deviceNumber(fd: number): string {
  let stat: ReturnType<typeof fstatSync>;
  try {
    stat = fstatSync(fd);
  } catch (cause) {
    throw new VmmError(
      'device-fd',
      `fd=${fd} of --device is not open in this process (${codeOf(cause)}): the parent must open /dev/vfio/devices/vfioN and let it be inherited`,
      { cause },
    );
  }
  if (!stat.isCharacterDevice()) {
    throw new VmmError('device-fd', `fd=${fd} of --device is no device: pass an open /dev/vfio/devices/vfioN`);
  }
  const major = (stat.rdev >>> 8) & 0xfff;
  const minor = (stat.rdev & 0xff) | ((stat.rdev >>> 12) & 0xfff00);
  return `${major}:${minor}`;
}
