// A device opened for `ferry vfio check`: its group in a container of its own, one buffer of RAM mapped for DMA, and device fds as often as a
// rule likes to open and close them. Called by the child of a check. JS thread; MAP and UNMAP go through Type1Dma.
// Documentation/driver-api/vfio.rst; linux/vfio.h
import { closeSync, constants, existsSync, openSync, readlinkSync, realpathSync } from 'node:fs';
import { basename, join } from 'node:path';
import {
  VFIO_GROUP_GET_DEVICE_FD,
  VFIO_GROUP_SET_CONTAINER,
  VFIO_GROUP_UNSET_CONTAINER,
  VFIO_SET_IOMMU,
  VFIO_TYPE1v2_IOMMU,
} from '../../../native/abi/vfio.ts';
import type { GuestRam } from '../../../native/addon.ts';
import { SysError, VmmError } from '../../../native/errno.ts';
import type { RamRange } from '../../contract.ts';
import { isMediated, parseBdf } from '../host-pci.ts';
import type { HostPaths } from '../kernel-door.ts';
import { checkOpenable } from '../open-checks.ts';
import { readType1Info, Type1Dma } from '../type1-dma.ts';
import type { CheckDoor } from './check-door.ts';

/** Low enough for a device that reaches 28 bits (edu's default), and with more pages below it than one answer about dirty pfns covers. */
const IOVA = 0x1000000;
const RAM_BYTES = 4 * 2 ** 20;

export interface CheckedDevice {
  /** What VFIO_GROUP_GET_DEVICE_FD wants: a PCI address, or the UUID of a mediated device. */
  readonly name: string;
  readonly group: number;
}

export interface DevicePlace {
  readonly name: string;
  readonly door: CheckDoor;
  readonly ram: GuestRam;
  /** Where `ram` begins for the device. */
  readonly iova: number;
  /** The container has dirty tracking, which came with v1 of the migration region. */
  readonly tracks: boolean;
  openDevice(): number;
  map(): Promise<void>;
  unmap(): Promise<void>;
  close(): Promise<void>;
}

/** A PCI address, or the directory of any device under /sys (mediated: /sys/bus/mdev/devices/UUID). Touches nothing. */
export function findDevice(paths: HostPaths, text: string): CheckedDevice {
  if (!text.includes('/')) {
    const { bdf, group } = checkOpenable(paths, parseBdf(text));
    return { name: bdf, group };
  }
  if (!existsSync(text))
    throw new VmmError('no-device', `there is no ${text}: give a PCI address or a device's directory`);
  const path = realpathSync(text);
  const link = join(path, 'iommu_group');
  if (!existsSync(link)) {
    throw new VmmError('not-vfio', `${text} has no iommu_group, so no VFIO driver serves it: bind it to one first`);
  }
  return { name: basename(path), group: Number(basename(readlinkSync(link))) };
}

export async function openPlace(door: CheckDoor, paths: HostPaths, device: CheckedDevice): Promise<DevicePlace> {
  const fds: number[] = [];
  let attached = false;
  const group = () => fds[1] as number;
  const leave = () => {
    if (attached) door.ioctl('VFIO_GROUP_UNSET_CONTAINER', group(), VFIO_GROUP_UNSET_CONTAINER, 0);
    for (const fd of fds.reverse()) closeSync(fd);
  };
  try {
    fds.push(open(join(paths.dev, 'vfio/vfio'), device.name));
    fds.push(open(join(paths.dev, 'vfio', String(device.group)), device.name));
    const container = fds[0] as number;
    const arg = new Uint8Array(4);
    new DataView(arg.buffer).setInt32(0, container, true);
    attach(door, group(), arg, device);
    attached = true;
    door.ioctl('VFIO_SET_IOMMU', container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU);
    const dma = new Type1Dma(door, container, readType1Info(door, container), {
      coarse: !isMediated(device.name),
    });
    const ram = door.createRam(RAM_BYTES, { hugePages: false, populate: true });
    const range: RamRange = { gpa: IOVA, size: RAM_BYTES, slice: { ram, offset: 0, size: RAM_BYTES } };
    await dma.map(range);
    return {
      name: device.name,
      door,
      ram,
      iova: IOVA,
      tracks: dma.dirty !== null,
      openDevice: () => openDevice(door, group(), device.name),
      map: () => dma.map(range),
      unmap: () => dma.unmap(range),
      close: async () => {
        await dma.unmap(range);
        leave();
        ram.close();
      },
    };
  } catch (error) {
    leave();
    throw error;
  }
}

function attach(door: CheckDoor, group: number, container: Uint8Array, device: CheckedDevice): void {
  try {
    door.ioctl('VFIO_GROUP_SET_CONTAINER', group, VFIO_GROUP_SET_CONTAINER, container);
  } catch (cause) {
    throw new VmmError(
      'group-not-viable',
      `${device.name}: its IOMMU group ${device.group} cannot be used: \`ferry vfio info ${device.name}\` says what is in the way`,
      { cause },
    );
  }
}

function openDevice(door: CheckDoor, group: number, name: string): number {
  try {
    return door.ioctl('VFIO_GROUP_GET_DEVICE_FD', group, VFIO_GROUP_GET_DEVICE_FD, Buffer.from(`${name}\0`, 'latin1'));
  } catch (cause) {
    const code = cause instanceof SysError ? cause.code : String(cause);
    throw new VmmError('vfio-open', `${name} cannot be opened (${code}): see dmesg`, { cause });
  }
}

function open(path: string, name: string): number {
  try {
    return openSync(path, constants.O_RDWR);
  } catch (cause) {
    const code = cause instanceof Error && 'code' in cause ? String(cause.code) : String(cause);
    const remedy =
      code === 'EBUSY' ? 'it is in use by another process' : code === 'ENOENT' ? 'load VFIO first' : 'run this as root';
    throw new VmmError('vfio-open', `${name}: ${path} cannot be opened (${code}): ${remedy}`, { cause });
  }
}
