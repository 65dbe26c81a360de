// From a device fd to a VfioTransport: asks what the driver offers for migration and makes the KernelDevice. Called by open-group.ts,
// open-cdev.ts and probe.ts once the fd may be used (got from the group, or bound to an iommufd); the fd stays theirs if this fails.
// linux/vfio.h, enum vfio_device_mig_state: an opened device is in RUNNING. Not with every driver.
import { SysError, VmmError } from '../../native/errno.ts';
import { KernelDevice, type KernelDeviceParts } from './kernel-device.ts';
import { openDmaLog } from './migration/dma-log.ts';
import { word } from './migration/feature-v2.ts';
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
    const device = new KernelDevice({ ...parts, migration: found.port, dmaLog, closed });
    await fromLastUser(device);
    return { device, facts: found.facts };
  } catch (error) {
    found.close();
    throw error;
  }
}

/** To RUNNING from where a user has left it whose driver lets the state outlive a close (mtty). */
async function fromLastUser(device: KernelDevice): Promise<void> {
  const { migration: port, name } = device;
  if (port === null || port.state === 'running') return;
  const left = port.state;
  try {
    // Whether or not it says of a reset: nothing else leads out of these two.
    if (left === 'resuming' || left === 'error') await device.reset();
    else await port.setState('running');
  } catch (cause) {
    if (!(cause instanceof SysError || cause instanceof VmmError)) throw cause;
    throw new VmmError(
      'device-left',
      `${name} was left in ${word(left)} by its last user, and does not come back from there (${cause.message}): unbind its driver and bind it again, or make a mediated device anew`,
      { cause },
    );
  }
}
