// What this host's PCI devices offer, as plain data for `ferry vfio list` and `ferry vfio info BDF`. Called by cli/vfio.ts.
// list reads sysfs only; info opens the device (it must be bound to a VFIO driver and free) and asks it.
import type { GpaRange } from '../contract.ts';
import { openBareGroup } from './bare-group.ts';
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
  const group = openBareGroup(door, paths, { name: device.bdf, group: device.group });
  try {
    const { pageSizes, iovaRanges, dirtyPageSizes } = readType1Info(door, group.container);
    const fd = group.openDevice();
    const closed = async () => {};
    const parts = { kind: 'group', name: device.bdf, door, fd, closing: null, closed } as const;
    let opened: DeviceOnFd;
    try {
      opened = await deviceOnFd({ ...parts, wish: ANY_ABI, tracks: dirtyPageSizes !== 0n });
    } catch (error) {
      door.closeFd(fd);
      throw error;
    }
    try {
      return await ask(device, opened, { pageSizes, iovaRanges, dirtyPages: (dirtyPageSizes & 4096n) !== 0n });
    } finally {
      await opened.device.close();
    }
  } finally {
    group.leave();
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
