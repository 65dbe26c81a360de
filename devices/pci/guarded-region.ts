// A BAR's bytes as a plug-in answers them, made safe for the bus: what it returns is cut to the width that was asked for, and what it
// throws ends in the log, not in the vCPU's exit. Called by simple-function.ts. JS thread.
import type { DeviceLog, Region, Width } from '../contract.ts';

export interface RegisterAccess {
  read(offset: number, width: Width): number;
  write(offset: number, width: Width, value: number): void;
}

export function guardedRegion(name: string, size: number, access: RegisterAccess, log: DeviceLog): Region {
  let told = false;
  const failed = (what: string, error: unknown) => {
    // Once: a guest may come this way a million times a second.
    if (!told) log.warn({ err: error, region: name }, `${what} failed in the device's code; reads give all-ones`);
    told = true;
  };
  return {
    name,
    size,
    read: (offset, width) => {
      const all = width === 4 ? 0xffffffff : width === 2 ? 0xffff : 0xff;
      try {
        return (access.read(offset, width) & all) >>> 0;
      } catch (error) {
        failed('a read', error);
        return all;
      }
    },
    write: (offset, width, value) => {
      try {
        access.write(offset, width, value);
      } catch (error) {
        failed('a write', error);
      }
    },
    wide: null,
    fast: null,
  };
}
