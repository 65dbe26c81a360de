// Whether guest RAM can be pinned and mapped on this host, judged before anything is mapped. Pure; called by open-group.ts.
// Passed-through devices need all guest RAM resident and mapped at its guest-physical address (linux/vfio.h, VFIO_IOMMU_MAP_DMA).
import { VmmError } from '../../native/errno.ts';
import type { GpaRange, RamRange } from '../contract.ts';

export interface PinningRoom {
  readonly ramBytes: number;
  /** Of the RAM, what is in memory already and so not part of MemAvailable any more. */
  readonly residentBytes: number;
  /** RLIMIT_MEMLOCK; null: unlimited. */
  readonly lockableBytes: number | null;
  readonly availableBytes: number;
}

/** Throws VmmError with the number and the remedy. */
export function checkPinning(room: PinningRoom): void {
  const { ramBytes, lockableBytes } = room;
  if (lockableBytes !== null && lockableBytes < ramBytes) {
    const kib = Math.ceil(ramBytes / 1024);
    throw new VmmError(
      'memlock',
      `a passed-through device needs ${mib(ramBytes)} of locked memory, but the limit is ${mib(lockableBytes)}: raise it with \`ulimit -l ${kib}\` (or LimitMEMLOCK=${ramBytes} in the service), or run as root`,
    );
  }
  const needed = ramBytes - room.residentBytes;
  if (needed > room.availableBytes) {
    throw new VmmError(
      'no-memory',
      `a passed-through device pins all guest RAM: ${mib(ramBytes)}, but this host has only ${mib(room.availableBytes)} available (MemAvailable): give the guest less with --memory, or free memory`,
    );
  }
}

/** Throws VmmError when guest RAM does not lie where the IOMMU can translate. */
export function checkIovaRanges(ram: readonly RamRange[], iova: readonly GpaRange[]): void {
  // An old kernel has no such capability: nothing is known, MAP_DMA will judge.
  if (iova.length === 0) return;
  const usable = joined(iova);
  const last = usable.at(-1) as GpaRange;
  const top = last.start + last.length;
  for (const { gpa, size } of ram) {
    const end = gpa + size;
    if (usable.some((range) => range.start <= gpa && end <= range.start + range.length)) continue;
    if (end > top) {
      throw new VmmError(
        'iova-aperture',
        `guest RAM reaches ${hex(end)}, but this host's IOMMU translates only up to ${hex(top)} (${Math.floor(Math.log2(top))} bits): give the guest less with --memory`,
      );
    }
    const hole = holeIn(gpa, end, usable);
    throw new VmmError(
      'iova-reserved',
      `guest RAM ${hex(gpa)}-${hex(end - 1)} collides with ${hex(hole.start)}-${hex(hole.start + hole.length - 1)}, which this host's IOMMU reserves (/sys/kernel/iommu_groups/*/reserved_regions): give the guest less with --memory, or put the device into another slot of the host`,
    );
  }
}

function joined(ranges: readonly GpaRange[]): GpaRange[] {
  const result: GpaRange[] = [];
  for (const range of [...ranges].sort((a, b) => a.start - b.start)) {
    const last = result.at(-1);
    if (last !== undefined && range.start <= last.start + last.length) {
      const end = Math.max(last.start + last.length, range.start + range.length);
      result[result.length - 1] = { start: last.start, length: end - last.start };
    } else result.push(range);
  }
  return result;
}

/** The first part of [start, end) that no range covers. */
function holeIn(start: number, end: number, usable: readonly GpaRange[]): GpaRange {
  let at = start;
  for (const range of usable) {
    const rangeEnd = range.start + range.length;
    if (rangeEnd <= at) continue;
    if (range.start > at) return { start: at, length: Math.min(range.start, end) - at };
    at = rangeEnd;
  }
  return { start: at, length: end - at };
}

function mib(bytes: number): string {
  return `${Math.ceil(bytes / 2 ** 20)} MiB`;
}

function hex(value: number): string {
  return `0x${value.toString(16)}`;
}
