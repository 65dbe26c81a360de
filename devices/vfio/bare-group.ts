// A device's group in a container of its own, with nothing mapped and no guest: for asking a device (probe.ts) and for checking its driver
// (check/place.ts). Guests' devices share a container: open-group.ts. JS thread.
// Documentation/driver-api/vfio.rst ("VFIO Usage Example"); linux/vfio.h
import { closeSync } from 'node:fs';
import { join } from 'node:path';
import {
  VFIO_GROUP_GET_DEVICE_FD,
  VFIO_GROUP_SET_CONTAINER,
  VFIO_GROUP_UNSET_CONTAINER,
  VFIO_SET_IOMMU,
  VFIO_TYPE1v2_IOMMU,
} from '../../native/abi/vfio.ts';
import { VmmError } from '../../native/errno.ts';
import type { HostPaths, KernelDoor } from './kernel-door.ts';
import { codeOf, LOAD_VFIO, openFile } from './open-checks.ts';

export interface GroupMember {
  /** What VFIO_GROUP_GET_DEVICE_FD wants: a PCI address, or the UUID of a mediated device. */
  readonly name: string;
  readonly group: number;
}

export interface BareGroup {
  readonly container: number;
  /** A new fd of the device, which is the caller's. */
  openDevice(): number;
  /** After the device's fds. */
  leave(): void;
}

/** Throws VmmError with the remedy, having put everything back. */
export function openBareGroup(door: Pick<KernelDoor, 'ioctl'>, paths: HostPaths, member: GroupMember): BareGroup {
  const { name, group: number } = member;
  const container = openFile(join(paths.dev, 'vfio/vfio'), name, LOAD_VFIO);
  const undo: (() => void)[] = [() => closeSync(container)];
  const leave = () => {
    for (const step of undo.splice(0).reverse()) step();
  };
  try {
    const group = openFile(join(paths.dev, 'vfio', String(number)), name, LOAD_VFIO);
    undo.push(() => closeSync(group));
    attach(door, { container, group }, member);
    undo.push(() => door.ioctl('VFIO_GROUP_UNSET_CONTAINER', group, VFIO_GROUP_UNSET_CONTAINER, 0));
    door.ioctl('VFIO_SET_IOMMU', container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU);
    return { container, openDevice: () => openDevice(door, group, name), leave };
  } catch (error) {
    leave();
    throw error;
  }
}

function attach(
  door: Pick<KernelDoor, 'ioctl'>,
  { container, group }: { readonly container: number; readonly group: number },
  member: GroupMember,
): void {
  const arg = new Uint8Array(4);
  new DataView(arg.buffer).setInt32(0, container, true);
  try {
    door.ioctl('VFIO_GROUP_SET_CONTAINER', group, VFIO_GROUP_SET_CONTAINER, arg);
  } catch (cause) {
    throw new VmmError(
      'group-not-viable',
      `${member.name}: its IOMMU group ${member.group} cannot be used (${codeOf(cause)}): \`ferry vfio list\` says what is in the way`,
      { cause },
    );
  }
}

function openDevice(door: Pick<KernelDoor, 'ioctl'>, group: number, name: string): number {
  try {
    return door.ioctl('VFIO_GROUP_GET_DEVICE_FD', group, VFIO_GROUP_GET_DEVICE_FD, Buffer.from(`${name}\0`, 'latin1'));
  } catch (cause) {
    throw new VmmError('vfio-open', `${name} cannot be opened (${codeOf(cause)}): see dmesg`, { cause });
  }
}
