// A device of a DiaryMachine whose migration is vfio's own VfioLive over a scripted FakeVfio: for tests of what migration and control make
// of devices that are slow, refuse or fail.
import type { Device } from '../../devices/contract.ts';
import { VfioLive } from '../../devices/vfio/migration/device-state.ts';
import type { FakeVfio } from './vfio-transport.ts';

const quiet = { debug: () => undefined, info: () => undefined, warn: () => undefined };

/** `deviceCount`: how many the machine has. */
export function vfioDevice(id: string, fake: FakeVfio, deviceCount: number): Device {
  const port = fake.migration!;
  const recoverable = {
    name: fake.name,
    port,
    log: quiet,
    reset: () => fake.reset(),
    rearm: () => void fake.calls.push('rearm'),
  };
  const policy = {
    fixedDowntimeMs: 5,
    stopCopySize: null,
    disabled: false,
    requireValidated: false,
    deviceCount: () => deviceCount,
    peersMapped: async () => {},
  };
  return {
    id,
    type: 'diary',
    claims: [],
    state: null,
    live: new VfioLive(recoverable, policy),
    dirty: null,
    interrupts: null,
    reset: () => undefined,
    close: () => undefined,
  };
}
