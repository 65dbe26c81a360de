// Tells PCI functions from other devices. Called by the machine when it attaches devices to the host bridge.
import type { Device, PciFunction } from '../contract.ts';

export function isPciFunction(device: Device): device is PciFunction {
  return 'readConfig' in device;
}
