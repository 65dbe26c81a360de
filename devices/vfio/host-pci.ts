// What sysfs and procfs say of a PCI device and of this host's room for pinned memory. Called by open-group.ts, bind.ts and probe.ts.
// Pure readers with the tree's root as a parameter; nothing is changed here.
// Documentation/ABI/testing/sysfs-bus-pci, Documentation/ABI/testing/sysfs-kernel-iommu_groups
import { existsSync, readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { basename, join } from 'node:path';
import { VmmError } from '../../native/errno.ts';
import type { HostPaths } from './kernel-door.ts';

/** Full PCI address, lower case: 0000:65:00.0; or the UUID of a mediated device. */
export type Bdf = string;

export interface HostPciDevice {
  readonly bdf: Bdf;
  readonly vendor: number;
  readonly device: number;
  readonly classCode: number;
  /** Name of the bound driver; null: none. */
  readonly driver: string | null;
  /** A VFIO driver is bound: /dev/vfio will serve it. */
  readonly isVfio: boolean;
  readonly driverOverride: string | null;
  readonly group: number | null;
}

const BDF = /^(?:([0-9a-fA-F]{4}):)?([0-9a-fA-F]{2}):([01][0-9a-fA-F])\.([0-7])$/;

/** Accepts 0000:65:00.0 and 65:00.0. */
export function parseBdf(text: string): Bdf {
  const match = BDF.exec(text);
  if (match === null) {
    throw new VmmError(
      'pci-address',
      `'${text}' is not a PCI address: write it as 0000:65:00.0 (\`ferry vfio list\` shows them)`,
    );
  }
  return `${match[1] ?? '0000'}:${match[2]}:${match[3]}.${match[4]}`.toLowerCase();
}

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

/** A device that a driver makes in software over another one (or none), with an IOMMU that is emulated. driver-api/vfio-mediated-device.rst */
export function isMediated(name: Bdf): boolean {
  return UUID.test(name);
}

/** The device that sysfsdev= names: a PCI function, or a mediated device. */
export function parseSysfsDevice(path: string): Bdf {
  const name = path.split('/').filter(Boolean).at(-1) ?? '';
  return isMediated(name.toLowerCase()) ? name.toLowerCase() : parseBdf(name);
}

export function devicePath(paths: HostPaths, bdf: Bdf): string {
  return join(paths.sys, isMediated(bdf) ? 'bus/mdev/devices' : 'bus/pci/devices', bdf);
}

export function readHostPci(paths: HostPaths, bdf: Bdf): HostPciDevice {
  const path = devicePath(paths, bdf);
  if (!existsSync(path) && isMediated(bdf)) {
    throw new VmmError(
      'no-mdev',
      `there is no mediated device ${bdf} on this host: write its UUID to a \`create\` file below /sys/class/mdev_bus/*/mdev_supported_types`,
    );
  }
  if (!existsSync(path)) {
    throw new VmmError(
      'no-pci-device',
      `there is no PCI device ${bdf} on this host: \`ferry vfio list\` shows those there are`,
    );
  }
  const driver = linkName(join(path, 'driver'));
  const group = linkName(join(path, 'iommu_group'));
  return {
    bdf,
    vendor: hexFile(join(path, 'vendor')),
    device: hexFile(join(path, 'device')),
    classCode: hexFile(join(path, 'class')),
    driver,
    // Kernels from 6.0 on give every VFIO device a vfio-dev directory; before that the name has to do.
    isVfio: driver !== null && (existsSync(join(path, 'vfio-dev')) || /vfio/.test(driver)),
    driverOverride: overrideOf(join(path, 'driver_override')),
    group: group === null ? null : Number(group),
  };
}

export function listHostPci(paths: HostPaths): HostPciDevice[] {
  const path = join(paths.sys, 'bus/pci/devices');
  if (!existsSync(path)) return [];
  return readdirSync(path)
    .sort()
    .map((bdf) => readHostPci(paths, bdf));
}

/** The devices of one IOMMU group, bridges included. */
export function groupMembers(paths: HostPaths, group: number): HostPciDevice[] {
  const path = join(paths.sys, 'kernel/iommu_groups', String(group), 'devices');
  if (!existsSync(path)) return [];
  return readdirSync(path)
    .sort()
    .filter((name) => BDF.test(name))
    .map((bdf) => readHostPci(paths, bdf));
}

/** Drivers that may stay in a group without making it unviable: they do no DMA of their own (drivers/vfio, vfio_dev_viable). */
const HARMLESS = new Set(['pci-stub', 'pcieport', 'shpchp']);

/** The other devices that keep a group from being viable. */
export function groupBlockers(paths: HostPaths, group: number): HostPciDevice[] {
  return groupMembers(paths, group).filter(
    (each) => each.driver !== null && !each.isVfio && !HARMLESS.has(each.driver),
  );
}

/** Bytes this process may lock; null: as many as it likes (CAP_IPC_LOCK). */
export function lockableBytes(paths: HostPaths): number | null {
  const capabilities = /^CapEff:\s*([0-9a-f]+)/m.exec(readFileSync(join(paths.proc, 'self/status'), 'utf8'))?.[1];
  // linux/capability.h, CAP_IPC_LOCK 14
  if (capabilities !== undefined && ((BigInt(`0x${capabilities}`) >> 14n) & 1n) === 1n) return null;
  const limits = readFileSync(join(paths.proc, 'self/limits'), 'utf8');
  const soft = /^Max locked memory\s+(\S+)/m.exec(limits)?.[1];
  return soft === undefined || soft === 'unlimited' ? null : Number(soft);
}

export function availableBytes(paths: HostPaths): number {
  const kib = /^MemAvailable:\s*(\d+) kB/m.exec(readFileSync(join(paths.proc, 'meminfo'), 'utf8'))?.[1];
  return kib === undefined ? Number.POSITIVE_INFINITY : Number(kib) * 1024;
}

function linkName(path: string): string | null {
  try {
    return basename(readlinkSync(path));
  } catch {
    return null;
  }
}

function hexFile(path: string): number {
  try {
    return Number.parseInt(readFileSync(path, 'utf8'), 16);
  } catch {
    return 0;
  }
}

function overrideOf(path: string): string | null {
  try {
    const text = readFileSync(path, 'utf8').trim();
    return text === '' || text === '(null)' ? null : text;
  } catch {
    return null;
  }
}
