// Whether regions of type 2 are the device state regions of February 2019: their set, the size of CTL, its version and capabilities must
// all fit, for CCW and v7 use the same type. Called by probe-abi.ts for PCI devices that have subtype 2.
// struct vfio_device_state_ctl of that patch
import {
  VFIO_DEVICE_DATA_CAP_DEVICE_MEMORY,
  VFIO_DEVICE_DATA_CAP_SYSTEM_MEMORY,
  VFIO_DEVICE_STATE_INTERFACE_VERSION,
  VFIO_REGION_SUBTYPE_DEVICE_STATE_CTL,
  VFIO_REGION_SUBTYPE_DEVICE_STATE_DATA_CONFIG,
  VFIO_REGION_SUBTYPE_DEVICE_STATE_DATA_DIRTYBITMAP,
  VFIO_REGION_SUBTYPE_DEVICE_STATE_DATA_MEMORY,
  VFIO_REGION_TYPE_DEVICE_STATE,
  vfio_device_state_ctl,
} from '../../../native/abi/vfio-legacy.ts';
import type { RegionPlace } from '../kernel-device.ts';
import type { RegionDoor } from './region-door.ts';
import { CTL } from './state-ctl.ts';
import type { StateRegions } from './state-data.ts';

/** One word of the bitmap. */
const LEAST_BITMAP = 8;

interface Parts {
  readonly ctl: RegionPlace | null;
  readonly config: RegionPlace | null;
  readonly memory: RegionPlace | null;
  readonly bitmap: RegionPlace | null;
}

/** null: they are something else; `facts` then say why. */
export async function probeStateRegions(
  regions: readonly RegionPlace[],
  open: (region: RegionPlace) => RegionDoor,
  facts: string[],
): Promise<{ readonly regions: StateRegions; close(): void } | null> {
  const part = (subtype: number) =>
    regions.find(({ type }) => type?.type === VFIO_REGION_TYPE_DEVICE_STATE && type.subtype === subtype) ?? null;
  const parts: Parts = {
    ctl: part(VFIO_REGION_SUBTYPE_DEVICE_STATE_CTL),
    config: part(VFIO_REGION_SUBTYPE_DEVICE_STATE_DATA_CONFIG),
    memory: part(VFIO_REGION_SUBTYPE_DEVICE_STATE_DATA_MEMORY),
    bitmap: part(VFIO_REGION_SUBTYPE_DEVICE_STATE_DATA_DIRTYBITMAP),
  };
  const { ctl, config } = parts;
  if (ctl === null || config === null || config.size === 0 || ctl.size < vfio_device_state_ctl.size) {
    facts.push('type 2 has subtype 2, but no control region of at least 68 bytes beside it: no device state regions');
    return null;
  }
  const door = open(ctl);
  const version = await door.readU32(CTL.version);
  const caps = await door.readU32(CTL.caps);
  const misfit = version === VFIO_DEVICE_STATE_INTERFACE_VERSION ? misfitOf(caps, parts) : 'that is no version of it';
  facts.push(`its control region would have version ${version} and capabilities ${caps}`);
  facts.push(misfit === null ? 'all of that fits: device state regions' : `${misfit}: no device state regions`);
  if (misfit !== null) return null;
  const tracks = (caps & VFIO_DEVICE_DATA_CAP_SYSTEM_MEMORY) !== 0;
  const found = {
    ctl: door,
    config: open(config),
    memory: parts.memory === null ? null : open(parts.memory),
    bitmap: tracks && parts.bitmap !== null ? open(parts.bitmap) : null,
  };
  const close = (): void => {
    for (const each of [found.ctl, found.config, found.memory, found.bitmap]) each?.close();
  };
  return { regions: found, close };
}

/** null: capabilities and regions go together. */
function misfitOf(caps: number, { memory, bitmap }: Parts): string | null {
  const known = VFIO_DEVICE_DATA_CAP_DEVICE_MEMORY | VFIO_DEVICE_DATA_CAP_SYSTEM_MEMORY;
  if ((caps & ~known) !== 0) return 'those are more capabilities than it has';
  const hasMemory = (caps & VFIO_DEVICE_DATA_CAP_DEVICE_MEMORY) !== 0;
  if (hasMemory !== (memory !== null)) return 'the region of device memory and its capability do not go together';
  if (memory !== null && memory.size === 0) return 'the region of device memory is empty';
  const tracks = (caps & VFIO_DEVICE_DATA_CAP_SYSTEM_MEMORY) !== 0;
  if (tracks && (bitmap === null || bitmap.size < LEAST_BITMAP)) return 'the region of the dirty bitmap is missing';
  return null;
}
