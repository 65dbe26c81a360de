// The argument of VFIO_DEVICE_FEATURE: an 8-byte header and the feature's own struct. Called by feature-v2.ts and dma-log.ts.
// linux/vfio.h, struct vfio_device_feature; ENOTTY means "this kernel or device does not know the feature".
import {
  VFIO_DEVICE_FEATURE,
  VFIO_DEVICE_FEATURE_GET,
  VFIO_DEVICE_FEATURE_PROBE,
  VFIO_DEVICE_FEATURE_SET,
  vfio_device_feature,
} from '../../../native/abi/vfio.ts';
import type { Patch } from '../../../native/addon.ts';
import { SysError } from '../../../native/errno.ts';
import type { KernelDoor } from '../kernel-door.ts';

/** Where the feature's own struct begins. */
export const FEATURE_DATA = vfio_device_feature.data;

export interface FeatureArg {
  readonly bytes: Uint8Array;
  readonly view: DataView;
}

export function featureArg(feature: number, how: 'get' | 'set', dataSize: number): FeatureArg {
  const bytes = new Uint8Array(FEATURE_DATA + dataSize);
  const view = new DataView(bytes.buffer);
  view.setUint32(vfio_device_feature.argsz, bytes.length, true);
  const flag = how === 'get' ? VFIO_DEVICE_FEATURE_GET : VFIO_DEVICE_FEATURE_SET;
  view.setUint32(vfio_device_feature.flags, (feature | flag) >>> 0, true);
  return { bytes, view };
}

export interface FeatureDoor {
  readonly door: KernelDoor;
  readonly fd: number;
}

/** Whether the device has the feature for this use. */
export function probeFeature(on: FeatureDoor, feature: number, how: 'get' | 'set'): boolean {
  const arg = featureArg(feature, how, 0);
  arg.view.setUint32(
    vfio_device_feature.flags,
    arg.view.getUint32(vfio_device_feature.flags, true) | VFIO_DEVICE_FEATURE_PROBE,
    true,
  );
  try {
    on.door.ioctl('VFIO_DEVICE_FEATURE(PROBE)', on.fd, VFIO_DEVICE_FEATURE, arg.bytes);
    return true;
  } catch (error) {
    if (error instanceof SysError) return false;
    throw error;
  }
}

export function callFeature(
  on: FeatureDoor,
  name: string,
  arg: FeatureArg,
  patches: readonly Patch[] = [],
): Promise<number> {
  return on.door.ioctlAsync(`VFIO_DEVICE_FEATURE(${name})`, on.fd, VFIO_DEVICE_FEATURE, arg.bytes, patches);
}
