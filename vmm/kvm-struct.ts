// Reading and writing one of KVM's per-fd structs as bytes: KVM_GET_x fills them, KVM_SET_x takes them. Called by vcpu.ts, core-state.ts
// and cpu-contract.ts on cold paths only; JS thread. The ioctl numbers and sizes are those of native/abi/kvm.ts.
import type { KvmNode } from '../native/addon.ts';

/** The pair of ioctls of one struct. */
export interface StructIoctl {
  readonly name: string;
  readonly get: number;
  readonly set: number;
  readonly size: number;
}

export type IoctlPort = Pick<KvmNode, 'ioctl'>;

export function getStruct(
  addon: IoctlPort,
  fd: number,
  struct: StructIoctl,
  seed?: (bytes: Uint8Array) => void,
): Uint8Array {
  const bytes = new Uint8Array(struct.size);
  seed?.(bytes);
  addon.ioctl(`KVM_GET_${struct.name}`, fd, struct.get, bytes);
  return bytes;
}

export function setStruct(addon: IoctlPort, fd: number, struct: StructIoctl, bytes: Uint8Array): void {
  // A copy (not slice(), which is a view where the bytes are a Buffer): ioctl() copies the struct back, and a saved state must not
  // change by being loaded.
  addon.ioctl(`KVM_SET_${struct.name}`, fd, struct.set, new Uint8Array(bytes));
}
