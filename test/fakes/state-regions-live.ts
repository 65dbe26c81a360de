// A scripted device with the device state regions under its back end, the ladder and VfioLive; and a whole move between two of them.
import { DeviceStateRegions } from '../../devices/vfio/migration/device-state-regions.ts';
import type { LegacyKernel } from './legacy-kernel.ts';
import { type LegacyLive, legacyLive, loadAll, regionDoor, saveAll } from './legacy-live.ts';
import { type StateDeviceOptions, StateRegionsDevice } from './state-regions-device.ts';

export const MEMORY = Uint8Array.from({ length: 10_000 }, (_, i) => (i * 11 + (i >> 6)) & 0xff);
export const CONFIG = Uint8Array.from({ length: 777 }, (_, i) => (i * 3 + 1) & 0xff);
export const FULL: StateDeviceOptions = { memory: MEMORY, config: CONFIG };

export function stateRegionsLive(
  options: StateDeviceOptions = {},
  deadlineMs = 5000,
  policy: Parameters<typeof legacyLive>[2] = {},
): Promise<LegacyLive<StateRegionsDevice>> {
  const device = new StateRegionsDevice(options);
  const open = async (kernel: LegacyKernel) => {
    const door = (subtype: number) =>
      device.index(subtype) < 0 ? null : regionDoor(kernel, device.index(subtype), deadlineMs);
    return new DeviceStateRegions({ ctl: door(1)!, config: door(2)!, memory: door(3), bitmap: door(4) });
  };
  return legacyLive(device, open, policy);
}

/** The destination begins with another state. */
export async function movedState(options: StateDeviceOptions) {
  const from = await stateRegionsLive(options);
  const memory = options.memory ? new Uint8Array(1) : null;
  const to = await stateRegionsLive({ ...options, config: new Uint8Array(5), memory });
  const records = await saveAll(from);
  const left = await loadAll(to, records);
  return { from, to, records, left };
}
