// The capability chains behind VFIO's info structs. Called by type1-dma.ts and kernel-device.ts.
// linux/vfio.h, struct vfio_info_cap_header: id u16, version u16, next u32 (offset from the start of the info struct, 0 ends).
import { vfio_info_cap_header } from '../../native/abi/vfio.ts';

export interface InfoCapability {
  readonly id: number;
  readonly version: number;
  /** Of its header, from the start of the info struct. */
  readonly offset: number;
}

/** A chain that leaves the buffer or turns back is cut there. */
export function capabilitiesOf(view: DataView, first: number): InfoCapability[] {
  const found: InfoCapability[] = [];
  let offset = first;
  let last = 0;
  while (offset > last && offset + vfio_info_cap_header.size <= view.byteLength) {
    found.push({
      id: view.getUint16(offset + vfio_info_cap_header.id, true),
      version: view.getUint16(offset + vfio_info_cap_header.version, true),
      offset,
    });
    last = offset;
    offset = view.getUint32(offset + vfio_info_cap_header.next, true);
  }
  return found;
}
