// Resetting a passed-through device: by its own reset where it has one, else by its bus where that concerns nobody else's devices.
// Called by pci-function.ts (machine reset) and by the recovery ladder. linux/vfio.h, VFIO_DEVICE_RESET, VFIO_DEVICE_PCI_HOT_RESET
import { VmmError } from '../../native/errno.ts';
import type { DeviceLog } from '../contract.ts';
import type { VfioTransport } from './transport.ts';

export interface ResetHost {
  readonly transport: VfioTransport;
  readonly log: DeviceLog;
}

/** A machine reset goes on without: the guest's driver meets a device that still has its registers, as after a warm boot. */
export async function resetDevice({ transport, log }: ResetHost): Promise<void> {
  if (!transport.info.canReset) {
    log.warn({ device: transport.name }, 'the device has no reset that VFIO could use: its registers stay as they are');
    return;
  }
  await transport.reset();
}

/** The ladder's: without a reset there is no way out of ERROR or RESUMING. */
export async function forceReset({ transport }: ResetHost): Promise<void> {
  if (!transport.info.canReset) {
    throw new VmmError('no-reset', `${transport.name} has no reset that VFIO could use`, { exitCode: 1 });
  }
  await transport.reset();
}
