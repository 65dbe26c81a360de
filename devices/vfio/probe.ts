// What this host's PCI devices offer, as plain data for `ferry vfio list` and `ferry vfio info BDF`. Called by cli/vfio.ts.
// list reads sysfs only; info opens the device (it must be bound to a VFIO driver and free) and asks it.
import { closeSync, constants, existsSync, openSync } from 'node:fs';
import { join } from 'node:path';
import {
  VFIO_GROUP_GET_DEVICE_FD,
  VFIO_GROUP_SET_CONTAINER,
  VFIO_GROUP_UNSET_CONTAINER,
  VFIO_SET_IOMMU,
  VFIO_TYPE1v2_IOMMU,
} from '../../native/abi/vfio.ts';
import { VmmError } from '../../native/errno.ts';
import type { GpaRange } from '../contract.ts';
import { listRecords } from './bind.ts';
import { type DeviceOnFd, deviceOnFd } from './device-fd.ts';
import {
  type Bdf,
  groupBlockers,
  groupMembers,
  type HostPciDevice,
  listHostPci,
  parseSysfsDevice,
} from './host-pci.ts';
import type { HostPaths, KernelDoor } from './kernel-door.ts';
import { ANY_ABI } from './migration/probe-abi.ts';
import { type BoundDevice, checkBound, checkOpenable } from './open-checks.ts';
import { chooseWay } from './open-device.ts';
import { attachEmpty, type IommufdOffer, probeIommufd, withCdev } from './probe-cdev.ts';
import type { VfioInfo } from './transport.ts';
import { readType1Info } from './type1-dma.ts';

export interface ListedDevice extends HostPciDevice {
  /** Other addresses in its IOMMU group. */
  readonly groupOthers: readonly string[];
  /** Those that keep the group from being used. */
  readonly groupBlockers: readonly string[];
  /** The driver that `ferry vfio bind` took it from; null: not bound by ferry. */
  readonly takenFrom: string | null;
}

export function listDevices(paths: HostPaths): ListedDevice[] {
  const records = new Map(listRecords(paths).map((record) => [record.bdf, record]));
  return listHostPci(paths).map((device) => ({
    ...device,
    groupOthers:
      device.group === null
        ? []
        : groupMembers(paths, device.group)
            .map((each) => each.bdf)
            .filter((bdf) => bdf !== device.bdf),
    groupBlockers: device.group === null ? [] : groupBlockers(paths, device.group).map((each) => each.bdf),
    takenFrom: records.get(device.bdf)?.driver ?? null,
  }));
}

export interface DeviceOffer {
  readonly device: HostPciDevice;
  readonly info: VfioInfo;
  readonly iommu: {
    readonly pageSizes: bigint;
    readonly iovaRanges: readonly GpaRange[];
    readonly dirtyPages: boolean;
  };
  readonly migration: {
    readonly abi: string;
    readonly flags: readonly string[];
    readonly stopCopySize: number | null;
  } | null;
  /** What was found of the generations of the migration interface, as sentences. */
  readonly migrationFacts: readonly string[];
  readonly dmaLog: boolean;
  readonly iommufd: IommufdOffer;
  /** Why a guest with this device could not be migrated; null: it could. */
  readonly blocker: string | null;
}

/** Opens and closes the device; throws VmmError as opening it for a guest would. */
export async function probeDevice(door: KernelDoor, paths: HostPaths, address: string): Promise<DeviceOffer> {
  const bdf = parseSysfsDevice(address);
  const { by } = chooseWay(paths, { bdf, fd: null, iommufd: null });
  const asked = by === 'group' ? await byGroup(door, paths, checkOpenable(paths, bdf)) : await byCdev(door, paths, bdf);
  return { ...asked, iommufd: await probeIommufd(door, paths, bdf) };
}

type Asked = Omit<DeviceOffer, 'iommufd'>;

async function byGroup(door: KernelDoor, paths: HostPaths, device: BoundDevice): Promise<Asked> {
  const fds: number[] = [];
  let attached: number | null = null;
  try {
    const container = open(join(paths.dev, 'vfio/vfio'), device.bdf, fds);
    const group = open(join(paths.dev, 'vfio', String(device.group)), device.bdf, fds);
    const arg = new Uint8Array(4);
    new DataView(arg.buffer).setInt32(0, container, true);
    door.ioctl('VFIO_GROUP_SET_CONTAINER', group, VFIO_GROUP_SET_CONTAINER, arg);
    attached = group;
    door.ioctl('VFIO_SET_IOMMU', container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU);
    const { pageSizes, iovaRanges, dirtyPageSizes } = readType1Info(door, container);
    const name = Buffer.from(`${device.bdf}\0`, 'latin1');
    const fd = door.ioctl('VFIO_GROUP_GET_DEVICE_FD', group, VFIO_GROUP_GET_DEVICE_FD, name);
    const closed = async () => {};
    const parts = { kind: 'group', name: device.bdf, door, fd, closing: null, closed } as const;
    const opened = await deviceOnFd({ ...parts, wish: ANY_ABI, tracks: dirtyPageSizes !== 0n });
    try {
      return await ask(device, opened, { pageSizes, iovaRanges, dirtyPages: (dirtyPageSizes & 4096n) !== 0n });
    } finally {
      await opened.device.close();
    }
  } finally {
    if (attached !== null) door.ioctl('VFIO_GROUP_UNSET_CONTAINER', attached, VFIO_GROUP_UNSET_CONTAINER, 0);
    for (const fd of fds.reverse()) closeSync(fd);
  }
}

/** Where the kernel has no groups for user space. The device fd is closed by withCdev(). */
function byCdev(door: KernelDoor, paths: HostPaths, bdf: Bdf): Promise<Asked> {
  const device = checkBound(paths, bdf);
  return withCdev(door, paths, bdf, async (session) => {
    await attachEmpty(session);
    const { ranges, alignment } = session.ioas.reach();
    const closed = async () => {};
    const parts = { kind: 'cdev', name: bdf, door, fd: session.fd, closing: null, closed } as const;
    const opened = await deviceOnFd({ ...parts, wish: ANY_ABI, tracks: true });
    return ask(device, opened, { pageSizes: alignment, iovaRanges: ranges, dirtyPages: false });
  });
}

async function ask(device: HostPciDevice, opened: DeviceOnFd, iommu: DeviceOffer['iommu']): Promise<Asked> {
  const { migration, dmaLog, info } = opened.device;
  const flags = ['STOP_COPY', ...(migration?.p2p ? ['P2P'] : []), ...(migration?.preCopy ? ['PRE_COPY'] : [])];
  return {
    device,
    info,
    iommu,
    migration: migration === null ? null : { abi: migration.abi, flags, stopCopySize: await migration.stopCopySize() },
    migrationFacts: opened.facts,
    dmaLog: dmaLog !== null,
    blocker: migration === null ? `its driver ${device.driver} offers no VFIO migration` : null,
  };
}

function open(path: string, bdf: string, fds: number[]): number {
  if (!existsSync(path))
    throw new VmmError('no-vfio', `${bdf}: ${path} is missing: load VFIO with \`modprobe vfio-pci\``);
  try {
    const fd = openSync(path, constants.O_RDWR);
    fds.push(fd);
    return fd;
  } catch (cause) {
    const code = cause instanceof Error && 'code' in cause ? String(cause.code) : String(cause);
    const remedy = code === 'EBUSY' ? 'a guest is using it' : 'run this as root';
    throw new VmmError('vfio-open', `${bdf}: ${path} cannot be opened (${code}): ${remedy}`, { cause });
  }
}
