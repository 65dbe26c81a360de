// Where a guest's kernel says that it has panicked: one port, found by ACPI id QEMU0001. Built by the machine. JS thread.
// Linux Documentation of the device: drivers/misc/pvpanic, uapi/misc/pvpanic.h (PVPANIC_PANICKED, PVPANIC_CRASH_LOADED).
import type { Claim, Device, DeviceHost } from '../contract.ts';

const PANICKED = 0x1;
const CRASH_LOADED = 0x2;

export class Pvpanic implements Device {
  readonly id = 'pvpanic';
  readonly type = 'pvpanic';
  readonly claims: readonly Claim[];
  /** Nothing is remembered: the first write ends the machine. */
  readonly state = null;
  readonly live = null;
  readonly dirty = null;
  readonly interrupts = null;

  /** `port`: 0x505. */
  constructor(host: Pick<DeviceHost, 'requestEnd'>, port: number) {
    this.claims = [
      {
        space: 'pio',
        base: port,
        region: {
          name: 'pvpanic',
          size: 1,
          // Only the panic is offered: a guest with a crash kernel loaded then says nothing and writes its dump.
          read: () => PANICKED,
          write: (_offset, _width, value) => {
            if ((value & (PANICKED | CRASH_LOADED)) !== 0) host.requestEnd('guest-panic', 1);
          },
          wide: null,
          fast: null,
        },
      },
    ];
  }

  reset(): void {}
  close(): void {}
}
