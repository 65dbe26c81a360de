// Whether a migration region of type 3 is certainly v1: data may not lie among v7's registers, so a data_offset below 64 tells. The device
// must be saving to have one, so it is put into pre-copy and back while it is idle. Called by probe-abi.ts.
// linux/vfio.h of Linux 5.8, struct vfio_device_migration_info
import { vfio_device_migration_info_v1, vfio_device_migration_info_v7 } from '../../../native/abi/vfio-legacy.ts';
import { VmmError } from '../../../native/errno.ts';
import type { Field, RegionDoor } from './region-door.ts';
import { RegionState, readRegionState, whyOf } from './region-state.ts';

const PENDING_BYTES: Field = { name: 'pending_bytes', at: vfio_device_migration_info_v1.pending_bytes };
const DATA_OFFSET: Field = { name: 'data_offset', at: vfio_device_migration_info_v1.data_offset };

/** true: v1 for certain. false: that was not to be learnt. Throws when the device does not come back to RUNNING. */
export async function askDataOffset(region: RegionDoor, facts: string[]): Promise<boolean> {
  const state = new RegionState(region, await readRegionState(region));
  if (state.state !== 'running') {
    facts.push(`it is in ${state.state.toUpperCase()}, so its data_offset was not asked for`);
    return false;
  }
  let offset = 0;
  try {
    await state.go('pre-copy');
    const pending = await region.readU64(PENDING_BYTES);
    offset = Number(await region.readU64(DATA_OFFSET));
    facts.push(`in pre-copy its pending_bytes is ${pending} and its data_offset is ${offset}`);
  } catch (error) {
    facts.push(`in pre-copy its data_offset was not to be learnt (${whyOf(error, region.name)})`);
  }
  await backToRunning(state, region);
  return offset >= vfio_device_migration_info_v1.size && offset < vfio_device_migration_info_v7.size;
}

async function backToRunning(state: RegionState, region: RegionDoor): Promise<void> {
  try {
    await state.go('running');
  } catch (cause) {
    throw new VmmError(
      'migration-abi',
      `${region.name}: after it was asked for its data_offset the device does not come back to RUNNING (${whyOf(cause, region.name)}): say what it speaks by x-migration-abi=v1, or x-migration-abi=off to do without migration`,
      { cause },
    );
  }
}
