// From a device fd to a VfioTransport: asks what the driver offers for migration and makes the KernelDevice. Called by open-group.ts,
// open-cdev.ts and probe.ts once the fd may be used (got from the group, or bound to an iommufd); the fd stays theirs if this fails.
import { KernelDevice, type KernelDeviceParts } from './kernel-device.ts';
import { openDmaLog } from './migration/dma-log.ts';
import { type AbiWish, openMigration } from './migration/probe-abi.ts';

export interface DeviceFdParts extends Omit<KernelDeviceParts, 'migration' | 'dmaLog'> {
  readonly wish: AbiWish;
  /** The kernel's IOMMU interface tracks dirty pages: it is as new as migration interface v1, or newer. */
  readonly tracks: boolean;
}

export interface DeviceOnFd {
  readonly device: KernelDevice;
  /** What was found of the generations of the migration interface, as sentences. */
  readonly facts: readonly string[];
}

export async function deviceOnFd({ wish, tracks, ...parts }: DeviceFdParts): Promise<DeviceOnFd> {
  const { door, fd, name } = parts;
  const found = await openMigration({ door, fd, name, containerTracks: tracks }, wish);
  // Mapped windows keep the device open, and with it its group.
  const closed = async () => {
    found.close();
    await parts.closed();
  };
  try {
    const dmaLog = openDmaLog(door, fd, name);
    return { device: new KernelDevice({ ...parts, migration: found.port, dmaLog, closed }), facts: found.facts };
  } catch (error) {
    found.close();
    throw error;
  }
}
