// What opening a device has in common however it is done: the checks before anything is touched, and files opened or refused with a
// remedy. Called by open-group.ts, open-cdev.ts and probe.ts on the JS thread; every failure is one VmmError line.
import { constants, existsSync, openSync } from 'node:fs';
import { join } from 'node:path';
import { VmmError } from '../../native/errno.ts';
import { type Bdf, groupBlockers, type HostPciDevice, readHostPci } from './host-pci.ts';
import type { HostPaths } from './kernel-door.ts';

export type BoundDevice = HostPciDevice & { readonly group: number };

/** Checks, without touching the device, that VFIO has it. */
export function checkBound(paths: HostPaths, bdf: Bdf): BoundDevice {
  const device = readHostPci(paths, bdf);
  if (device.group === null) {
    throw new VmmError(
      'no-iommu',
      `${bdf} has no IOMMU group: switch the IOMMU on in the firmware and boot this host with intel_iommu=on (Intel) or amd_iommu=on (AMD)`,
    );
  }
  if (!device.isVfio) {
    const found = device.driver === null ? 'bound to no driver' : `bound to driver ${device.driver}`;
    throw new VmmError('not-vfio', `${bdf} is ${found}, not to a VFIO one: run \`ferry vfio bind ${bdf}\` first`);
  }
  return { ...device, group: device.group };
}

/** The same for the way through /dev/vfio/GROUP. */
export function checkOpenable(paths: HostPaths, bdf: Bdf): BoundDevice {
  const device = checkBound(paths, bdf);
  if (!existsSync(join(paths.dev, 'vfio/vfio'))) {
    throw new VmmError('no-vfio', '/dev/vfio/vfio is missing: load VFIO with `modprobe vfio-pci`');
  }
  return device;
}

/** What keeps the group from a guest, by name where sysfs shows it. */
export function notViable(paths: HostPaths, device: BoundDevice): VmmError {
  const others = groupBlockers(paths, device.group).filter((each) => each.bdf !== device.bdf);
  const named = others.map((each) => `${each.bdf} (${each.driver})`).join(', ');
  const commands = others.map((each) => `\`ferry vfio bind ${each.bdf}\``).join(', ');
  return new VmmError(
    'group-not-viable',
    others.length === 0
      ? `${device.bdf}: IOMMU group ${device.group} is not viable: another device of the group is in use by this host, see /sys/kernel/iommu_groups/${device.group}/devices`
      : `${device.bdf}: IOMMU group ${device.group} is not viable, for it also holds ${named}, in use by this host: run ${commands} too, or use a device in a group of its own`,
  );
}

/** The remedy where a file of VFIO is missing. */
export const LOAD_VFIO = 'load VFIO with `modprobe vfio-pci`';

/** `who`: whose file this is, for the message. `missing`: what to do when it is not there. */
export function openFile(path: string, who: string, missing: string): number {
  try {
    return openSync(path, constants.O_RDWR);
  } catch (cause) {
    const code = codeOf(cause);
    if (code === 'EACCES' || code === 'EPERM') {
      throw new VmmError(
        'vfio-denied',
        `${who}: no permission for ${path}: run as root, or give your user the file with \`chown $USER ${path}\``,
        { cause },
      );
    }
    if (code === 'EBUSY') {
      throw new VmmError('vfio-busy', `${who}: ${path} is in use by another process (\`fuser -v ${path}\` names it)`, {
        cause,
      });
    }
    if (code === 'ENOENT') throw new VmmError('no-vfio', `${who}: ${path} is missing: ${missing}`, { cause });
    throw new VmmError('vfio-open', `${who}: ${path} cannot be opened (${code})`, { cause });
  }
}

export function codeOf(error: unknown): string {
  return error instanceof Error && 'code' in error ? String(error.code) : String(error);
}
