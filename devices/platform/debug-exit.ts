// The port by which a flat test guest ends the machine with a code: a write of n gives exit code n<<1|1, as QEMU's isa-debug-exit does
// (kvm-unit-tests count on it). Built by the machine where MachineConfig.debugExit is set. JS thread.
import type { Claim, Device, DeviceHost } from '../contract.ts';

export class DebugExit implements Device {
  readonly id = 'debug-exit';
  readonly type = 'isa-debug-exit';
  readonly claims: readonly Claim[];
  readonly state = null;
  readonly live = null;
  readonly dirty = null;
  readonly interrupts = null;

  /** `port`: 0xf4, four bytes. */
  constructor(host: Pick<DeviceHost, 'requestEnd'>, port: number) {
    this.claims = [
      {
        space: 'pio',
        base: port,
        region: {
          name: 'debug-exit',
          size: 4,
          read: () => 0,
          // A process has eight bits for its exit code.
          write: (_offset, _width, value) => host.requestEnd('guest-shutdown', ((value << 1) | 1) & 0xff),
          wide: null,
          fast: null,
        },
      },
    ];
  }

  reset(): void {}
  close(): void {}
}
