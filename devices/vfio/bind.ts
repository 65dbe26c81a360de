// Giving a device of this host to a VFIO driver, and back: `ferry vfio bind` and `unbind`. Called by cli/vfio.ts only; `ferry run` never
// rebinds. What was before is recorded under /run/ferry/bind first, so that a killed command can be undone at the next start.
// Documentation/ABI/testing/sysfs-bus-pci: driver_override, unbind, drivers_probe
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { VmmError } from '../../native/errno.ts';
import { type Bdf, devicePath, type HostPciDevice, parseBdf, readHostPci } from './host-pci.ts';
import type { HostPaths } from './kernel-door.ts';

export const DEFAULT_VFIO_DRIVER = 'vfio-pci';

/** Writes one sysfs file; a test's stands in for the kernel that acts on it. */
export type SysfsWrite = (path: string, text: string) => void;

export const writeSysfs: SysfsWrite = (path, text) => writeFileSync(path, text);

/** What a device was like before. */
export interface BindRecord {
  readonly bdf: Bdf;
  readonly driver: string | null;
  readonly driverOverride: string | null;
  /** The driver that it was given. */
  readonly given: string;
  /** The process that is at it; null: the binding is complete and stays until `unbind`. */
  readonly owner: { readonly pid: number; readonly startTime: string } | null;
}

export interface BindHost {
  readonly paths: HostPaths;
  readonly write: SysfsWrite;
}

/** Binds `bdf` to a VFIO driver. Does nothing when it is bound to it already. */
export function bindDevice(host: BindHost, address: string, driver: string = DEFAULT_VFIO_DRIVER): HostPciDevice {
  const bdf = parseBdf(address);
  undoStale(host);
  const before = readHostPci(host.paths, bdf);
  if (before.driver === driver) return before;
  if (before.group === null) {
    throw new VmmError(
      'no-iommu',
      `${bdf} has no IOMMU group: switch the IOMMU on in the firmware and boot this host with intel_iommu=on (Intel) or amd_iommu=on (AMD)`,
    );
  }
  if (!existsSync(join(host.paths.sys, 'bus/pci/drivers', driver))) {
    throw new VmmError(
      'no-driver',
      `the driver ${driver} is not loaded on this host: load it with \`modprobe ${driver}\``,
    );
  }
  // A second bind, to another driver, must not take the first VFIO driver for the original one.
  const record = readRecord(host.paths, bdf);
  const original = record ?? { driver: before.driver, driverOverride: before.driverOverride };
  writeRecord(host.paths, { bdf, ...pick(original), given: driver, owner: ownIdentity(host.paths) });
  try {
    moveTo(host, before, driver);
  } catch (error) {
    restore(host, bdf, pick(original));
    removeRecord(host.paths, bdf);
    throw error;
  }
  writeRecord(host.paths, { bdf, ...pick(original), given: driver, owner: null });
  return readHostPci(host.paths, bdf);
}

/** Clears driver_override and gives the device back to the driver it had; without a record, to whichever takes it. */
export function unbindDevice(host: BindHost, address: string): HostPciDevice {
  const bdf = parseBdf(address);
  undoStale(host);
  const record = readRecord(host.paths, bdf);
  const now = readHostPci(host.paths, bdf);
  if (record === null && !now.isVfio && now.driverOverride === null) {
    throw new VmmError('not-bound', `${bdf} is not bound to a VFIO driver: nothing to give back`);
  }
  restore(host, bdf, record);
  removeRecord(host.paths, bdf);
  const after = readHostPci(host.paths, bdf);
  if (record?.driver && after.driver !== record.driver) {
    const found = after.driver === null ? 'no driver' : `driver ${after.driver}`;
    throw new VmmError(
      'not-restored',
      `${bdf} had driver ${record.driver}, but has ${found} now: load it with \`modprobe ${record.driver}\``,
      {
        exitCode: 1,
      },
    );
  }
  return after;
}

/** Bindings that a killed command left half done are undone. Gives their addresses. */
export function undoStale(host: BindHost): Bdf[] {
  const undone: Bdf[] = [];
  for (const record of listRecords(host.paths)) {
    if (record.owner === null || isAlive(host.paths, record.owner)) continue;
    if (existsSync(devicePath(host.paths, record.bdf))) restore(host, record.bdf, record);
    removeRecord(host.paths, record.bdf);
    undone.push(record.bdf);
  }
  return undone;
}

/** All that is recorded, for `ferry vfio list`. A file that cannot be read as a record is none. */
export function listRecords(paths: HostPaths): BindRecord[] {
  const directory = recordDirectory(paths);
  if (!existsSync(directory)) return [];
  return readdirSync(directory)
    .filter((name) => name.endsWith('.json'))
    .sort()
    .map((name) => parseRecord(join(directory, name)))
    .filter((record) => record !== null);
}

type Before = Pick<BindRecord, 'driver' | 'driverOverride'>;

function pick({ driver, driverOverride }: Before): Before {
  return { driver, driverOverride };
}

/** driver_override first, so that no other driver takes the device in between. */
function moveTo(host: BindHost, device: HostPciDevice, driver: string): void {
  const path = devicePath(host.paths, device.bdf);
  sysfs(host, join(path, 'driver_override'), driver, device.bdf);
  if (device.driver !== null) sysfs(host, join(path, 'driver/unbind'), device.bdf, device.bdf);
  sysfs(host, join(host.paths.sys, 'bus/pci/drivers_probe'), device.bdf, device.bdf);
  const now = readHostPci(host.paths, device.bdf);
  if (now.driver !== driver) {
    throw new VmmError('bind-refused', `the driver ${driver} did not take ${device.bdf}: see dmesg`, { exitCode: 1 });
  }
}

/** `before` null: nothing is known, whichever driver takes the device may have it. */
function restore(host: BindHost, bdf: Bdf, before: Before | null): void {
  const path = devicePath(host.paths, bdf);
  const now = readHostPci(host.paths, bdf);
  // A newline clears the override. Documentation/ABI/testing/sysfs-bus-pci
  sysfs(host, join(path, 'driver_override'), before?.driverOverride ?? '\n', bdf);
  if (before !== null && now.driver === before.driver) return;
  if (now.driver !== null) sysfs(host, join(path, 'driver/unbind'), bdf, bdf);
  // It had none, and shall have none.
  if (before !== null && before.driver === null) return;
  const driver = before?.driver ?? null;
  if (driver !== null && existsSync(join(host.paths.sys, 'bus/pci/drivers', driver))) {
    sysfs(host, join(host.paths.sys, 'bus/pci/drivers', driver, 'bind'), bdf, bdf);
  } else sysfs(host, join(host.paths.sys, 'bus/pci/drivers_probe'), bdf, bdf);
}

function sysfs(host: BindHost, path: string, value: string, bdf: Bdf): void {
  try {
    host.write(path, value);
  } catch (cause) {
    const code = cause instanceof Error && 'code' in cause ? String(cause.code) : String(cause);
    const remedy = code === 'EACCES' || code === 'EPERM' ? 'run this as root' : 'see dmesg';
    throw new VmmError('sysfs', `${bdf}: ${path} cannot be written (${code}): ${remedy}`, { cause });
  }
}

function recordDirectory(paths: HostPaths): string {
  return join(paths.run, 'bind');
}

function recordPath(paths: HostPaths, bdf: Bdf): string {
  return join(recordDirectory(paths), `${bdf}.json`);
}

function writeRecord(paths: HostPaths, record: BindRecord): void {
  mkdirSync(recordDirectory(paths), { recursive: true, mode: 0o700 });
  const path = recordPath(paths, record.bdf);
  // In one step: a reader finds the old record or the new one.
  writeFileSync(`${path}.new`, `${JSON.stringify(record)}\n`, { mode: 0o600 });
  renameSync(`${path}.new`, path);
}

function removeRecord(paths: HostPaths, bdf: Bdf): void {
  rmSync(recordPath(paths, bdf), { force: true });
}

function readRecord(paths: HostPaths, bdf: Bdf): BindRecord | null {
  const path = recordPath(paths, bdf);
  return existsSync(path) ? parseRecord(path) : null;
}

function parseRecord(path: string): BindRecord | null {
  try {
    const { bdf, driver, driverOverride, given, owner } = JSON.parse(readFileSync(path, 'utf8')) as Partial<BindRecord>;
    if (typeof bdf !== 'string' || typeof given !== 'string') return null;
    return {
      bdf: parseBdf(bdf),
      driver: driver ?? null,
      driverOverride: driverOverride ?? null,
      given,
      owner: owner ?? null,
    };
  } catch {
    return null;
  }
}

/** A pid alone may have been given out again: the start time tells. proc(5), /proc/[pid]/stat field 22 */
function startTimeOf(paths: HostPaths, pid: number): string | null {
  try {
    const stat = readFileSync(join(paths.proc, String(pid), 'stat'), 'utf8');
    // The name in parentheses may hold blanks: fields are counted from behind it.
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19] ?? null;
  } catch {
    return null;
  }
}

function ownIdentity(paths: HostPaths): { pid: number; startTime: string } {
  return { pid: process.pid, startTime: startTimeOf(paths, process.pid) ?? '' };
}

function isAlive(paths: HostPaths, owner: { readonly pid: number; readonly startTime: string }): boolean {
  return startTimeOf(paths, owner.pid) === owner.startTime;
}
