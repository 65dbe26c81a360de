// The ladder of a device that does not do what it is told: recover state, then reset with its interrupts and PCI_COMMAND armed anew.
// Called by device-state.ts. After any of these rejects with a code other than 'device-lost' the device is in a known state.
// linux/vfio.h: a failed SET may leave any state along the path; ERROR and a RESUMING session are left by VFIO_DEVICE_RESET only.
import { VmmError } from '../../../native/errno.ts';
import type { DeviceLog } from '../../contract.ts';
import type { VfioMigrationPort, VfioState } from '../transport.ts';

export interface Recoverable {
  readonly name: string;
  readonly port: VfioMigrationPort;
  readonly log: DeviceLog;
  /** VFIO_DEVICE_RESET, or a wider reset where the device has none. */
  reset(): Promise<void>;
  /** What a reset took away: PCI_COMMAND and the VFIO interrupts. */
  rearm(): void;
}

/** Goes to `target`, or down the ladder and rejects with all that happened. `recover` 'reset': no state to fall back to. */
export function transition(device: Recoverable, target: VfioState, recover: VfioState | 'reset'): Promise<void> {
  return orRecover(device, { to: target, go: () => device.port.setState(target), recover });
}

/** What changes the state by itself. */
export interface Step<T> {
  readonly to: VfioState;
  readonly go: () => Promise<T>;
  readonly recover: VfioState | 'reset';
}

export async function orRecover<T>(device: Recoverable, { to, go, recover }: Step<T>): Promise<T> {
  try {
    return await go();
  } catch (first) {
    if (recover !== 'reset' && device.port.state !== 'error') {
      try {
        await device.port.setState(recover);
        device.log.warn({ target: to, recover, why: messageOf(first) }, 'device refused a state change');
        throw new VmmError('device-refused', messageOf(first), { cause: first, exitCode: 1 });
      } catch (second) {
        if (second instanceof VmmError && second.code === 'device-refused') throw second;
        await resetAfter(device, `${messageOf(first)}; then ${messageOf(second)}`);
      }
    } else await resetAfter(device, messageOf(first));
    throw new VmmError('device-reset', `${messageOf(first)}; the device was reset`, { cause: first, exitCode: 1 });
  }
}

/** To RUNNING from wherever the device is. Rejects only with 'device-lost'. */
export async function backToRunning(device: Recoverable): Promise<'ran' | 'reset'> {
  const { port } = device;
  const { state } = port;
  if (state === 'running') {
    port.endSession();
    return 'ran';
  }
  // Leaving RESUMING would validate half a stream; ERROR has no arc at all.
  if (state !== 'error' && state !== 'resuming') {
    try {
      await port.setState('running');
      port.endSession();
      return 'ran';
    } catch (error) {
      await resetAfter(device, messageOf(error));
      return 'reset';
    }
  }
  await resetAfter(device, `the device is in ${state.toUpperCase()}`);
  return 'reset';
}

async function resetAfter(device: Recoverable, why: string): Promise<void> {
  device.log.warn({ why }, 'resetting the device');
  try {
    await device.reset();
    device.port.wasReset();
    device.rearm();
  } catch (cause) {
    const text = `${device.name}: ${why}; and the reset failed (${messageOf(cause)}): the device is lost until this host resets it`;
    throw new VmmError('device-lost', text, { cause, exitCode: 1 });
  }
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
