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
import { groupBlockers, groupMembers, type HostPciDevice, listHostPci, parseBdf } from './host-pci.ts';
import { KernelDevice } from './kernel-device.ts';
import type { HostPaths, KernelDoor } from './kernel-door.ts';
import { openDmaLog } from './migration/dma-log.ts';
import { ANY_ABI, openMigration } from './migration/probe-abi.ts';
import { checkOpenable } from './open-group.ts';
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
  /** Why a guest with this device could not be migrated; null: it could. */
  readonly blocker: string | null;
}

/** Opens and closes the device; throws VmmError as opening it for a guest would. */
export async function probeDevice(door: KernelDoor, paths: HostPaths, address: string): Promise<DeviceOffer> {
  const device = checkOpenable(paths, parseBdf(address));
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
    const iommu = readType1Info(door, container);
    const name = Buffer.from(`${device.bdf}\0`, 'latin1');
    const fd = door.ioctl('VFIO_GROUP_GET_DEVICE_FD', group, VFIO_GROUP_GET_DEVICE_FD, name);
    const containerTracks = iommu.dirtyPageSizes !== 0n;
    const found = await openMigration({ door, fd, name: device.bdf, containerTracks }, ANY_ABI);
    const migration = found.port;
    const dmaLog = openDmaLog(door, fd, device.bdf);
    const closed = async () => found.close();
    const opened = new KernelDevice({ kind: 'group', name: device.bdf, door, fd, migration, dmaLog, closed });
    try {
      const flags = ['STOP_COPY', ...(migration?.p2p ? ['P2P'] : []), ...(migration?.preCopy ? ['PRE_COPY'] : [])];
      return {
        device,
        info: opened.info,
        iommu: {
          pageSizes: iommu.pageSizes,
          iovaRanges: iommu.iovaRanges,
          dirtyPages: (iommu.dirtyPageSizes & 4096n) !== 0n,
        },
        migration:
          migration === null ? null : { abi: migration.abi, flags, stopCopySize: await migration.stopCopySize() },
        migrationFacts: found.facts,
        dmaLog: dmaLog !== null,
        blocker: migration === null ? `its driver ${device.driver} offers no VFIO migration` : null,
      };
    } finally {
      await opened.close();
    }
  } finally {
    if (attached !== null) door.ioctl('VFIO_GROUP_UNSET_CONTAINER', attached, VFIO_GROUP_UNSET_CONTAINER, 0);
    for (const fd of fds.reverse()) closeSync(fd);
  }
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
