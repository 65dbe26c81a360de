// What the fds of a trace are: a kind, which decides what an ioctl number means, and a word that stays the same for as long as the file lives.
// Used by tracing-door.ts (through /proc/self/fd) and foreign.ts (paths come from the tracer).
import { existsSync, readlinkSync } from 'node:fs';
import { constants } from 'node:os';
import { basename, join } from 'node:path';
import { cdevOf } from '../cdev-path.ts';
import { readHostPci } from '../host-pci.ts';
import type { HostPaths } from '../kernel-door.ts';
import type { FdKind } from './request.ts';
import type { TracedDevice } from './trace-file.ts';

export interface TracedFile {
  readonly kind: FdKind;
  readonly on: string;
}

/** How /proc/PID/fd shows a device fd that came from a group. linux: drivers/vfio/group.c, vfio_device_open_file */
export const DEVICE_INODE = 'anon_inode:[vfio-device]';

/** `path`: as /proc/PID/fd has it. null: not a file of VFIO. */
export function fileOfPath(paths: HostPaths, path: string): TracedFile | null {
  if (path === DEVICE_INODE) return { kind: 'device', on: 'device' };
  if (path === join(paths.dev, 'iommu')) return { kind: 'iommufd', on: 'iommufd' };
  if (path === join(paths.dev, 'vfio/vfio')) return { kind: 'container', on: 'container' };
  const cdevs = join(paths.dev, 'vfio/devices/');
  if (path.startsWith(cdevs)) {
    return { kind: 'device', on: `device ${addressOfCdev(paths, path.slice(cdevs.length))}` };
  }
  const groups = join(paths.dev, 'vfio/');
  return path.startsWith(groups) ? { kind: 'group', on: `group ${path.slice(groups.length)}` } : null;
}

/** vfio0 itself where sysfs does not know it any more. */
function addressOfCdev(paths: HostPaths, name: string): string {
  try {
    return basename(readlinkSync(join(paths.sys, 'class/vfio-dev', name, 'device')));
  } catch {
    return name;
  }
}

/** What sysfs says of a device; null: it is not a PCI device, or is gone. */
export function describeDevice(paths: HostPaths, bdf: string): TracedDevice | null {
  try {
    const cdev = cdevName(paths, bdf);
    return { ...readHostPci(paths, bdf), cdev, iommufd: existsSync(join(paths.dev, 'iommu')) };
  } catch {
    return null;
  }
}

/** Only where it can be opened too. */
function cdevName(paths: HostPaths, bdf: string): string | null {
  const path = cdevOf(paths, bdf);
  return path === null ? null : basename(path);
}

/** The kind of a file that the trace calls `on`. */
export function kindOf(on: string): FdKind {
  const [word = ''] = on.split(' ');
  return word === 'device' || word === 'data' || word === 'group' || word === 'container' || word === 'iommufd'
    ? word
    : 'other';
}

/** "SIGSEGV" for 11. */
export function signalName(signal: number): string {
  return Object.entries(constants.signals).find(([, number]) => number === signal)?.[0] ?? `signal ${signal}`;
}
