// Migration v1 (Linux 5.8-5.17): one region of type 3 with registers and data. Opened by probe-abi.ts.
// Dirty pages are the container's: VFIO_IOMMU_DIRTY_PAGES. linux/vfio.h of Linux 5.8, struct vfio_device_migration_info
import { vfio_device_migration_info_v1 } from '../../../native/abi/vfio-legacy.ts';
import type { RegionDoor } from './region-door.ts';
import { RegionPort } from './region-port.ts';
import { readRegionState } from './region-state.ts';

export async function openRegionV1(region: RegionDoor, split: boolean): Promise<RegionPort> {
  return new RegionPort(region, {
    abi: 'v1',
    headerBytes: vfio_device_migration_info_v1.size,
    split,
    state: await readRegionState(region),
    dirtyOf: null,
  });
}
