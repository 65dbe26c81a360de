// A CheckDoor over the scripted kernel whose data fds are never asked for: for what is about opening devices, not about their streams.
import type { CheckDoor } from '../../devices/vfio/check/check-door.ts';
import { kvmNode } from '../../native/addon.ts';
import { FakeVfioKernel } from './vfio-kernel.ts';

export function checkDoor(): FakeVfioKernel & CheckDoor {
  const addon = kvmNode();
  return Object.assign(new FakeVfioKernel(), {
    createRam: addon.createRam.bind(addon),
    dupFd: () => -1,
    readFd: async () => 0,
    writeFd: async () => 0,
    readable: () => true,
    nonBlocking: () => {},
  });
}
