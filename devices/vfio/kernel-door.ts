// The few calls of the addon that this room makes, as an interface, so that unit tests can stand in for the kernel.
// Implemented by native/addon.ts (kvmNode()); passed down from pci-type.ts.
import type { KvmNode } from '../../native/addon.ts';

export type KernelDoor = Pick<
  KvmNode,
  | 'ioctl'
  | 'ioctlAsync'
  | 'mapFd'
  | 'pread'
  | 'pwrite'
  | 'preadAsync'
  | 'pwriteAsync'
  | 'closeFd'
  | 'createBitmap'
  | 'eventFd'
  | 'eventTake'
>;

/** Where the host keeps its files; a test gives a tree of its own. */
export interface HostPaths {
  readonly sys: string;
  readonly dev: string;
  readonly proc: string;
  /** Records of changed driver bindings. */
  readonly run: string;
}

export const HOST_PATHS: HostPaths = { sys: '/sys', dev: '/dev', proc: '/proc', run: '/run/ferry' };
