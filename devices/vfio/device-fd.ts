// From a device fd to a VfioTransport: asks what the driver offers for migration and makes the KernelDevice. Called by open-group.ts,
// open-cdev.ts and probe.ts once the fd may be used (got from the group, or bound to an iommufd); the fd stays theirs if this fails.
import { KernelDevice, type KernelDeviceParts } from './kernel-device.ts';
import { openDmaLog } from './migration/dma-log.ts';
import { openFeatureV2 } from './migration/feature-v2.ts';

export async function deviceOnFd(parts: Omit<KernelDeviceParts, 'migration' | 'dmaLog'>): Promise<KernelDevice> {
  const { door, fd, name } = parts;
  return new KernelDevice({
    ...parts,
    migration: openFeatureV2(door, fd, name),
    dmaLog: openDmaLog(door, fd, name),
  });
}
