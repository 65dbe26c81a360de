// The two ports by which a guest resets a PC without a keyboard controller: 0xcf9 (reached through the host bridge, in whose address
// register it lies; ACPI's reset register) and 0x92, system control port A. Built by the machine. JS thread.
// Intel ICH9 datasheet, 13.7.5 RST_CNT; IBM PS/2 technical reference, system control port A.
import type { Claim, Device, DeviceHost, Region, Stateful } from '../contract.ts';
import { StateRecord } from '../state-record.ts';

const RESET_CPU = 0x04;
const FULL_RESET_AND_KIND = 0x0a;
const FAST_RESET = 0x01;
const A20 = 0x02;

export type Resets = Pick<DeviceHost, 'requestReset'>;

export class ResetControl implements Device {
  readonly id = 'reset-control';
  readonly type = 'reset-control';
  readonly claims: readonly Claim[];
  readonly live = null;
  readonly dirty = null;
  readonly interrupts = null;
  readonly state: Stateful = {
    version: 1,
    save: () => ({ control: this.#control, portA: this.#portA }),
    load: (state, version) => this.#load(state, version),
  };
  readonly #host: Resets;
  #control = 0;
  /** KVM has no A20 gate: the bit is remembered, and on from the start. */
  #portA = A20;

  /** `portA`: 0x92. */
  constructor(host: Resets, portA: number) {
    this.#host = host;
    this.claims = [{ space: 'pio', base: portA, region: this.#portARegion() }];
  }

  /** 0xcf9. */
  read(): number {
    return this.#control;
  }

  /** Bit 2 going from 0 to 1 resets; bits 1 and 3 say how thoroughly, which is all the same to us. */
  write(value: number): void {
    const before = this.#control;
    this.#control = value & (FULL_RESET_AND_KIND | RESET_CPU);
    if ((before & RESET_CPU) === 0 && (value & RESET_CPU) !== 0) this.#host.requestReset('guest-reset');
  }

  reset(): void {
    this.#control = 0;
    this.#portA = A20;
  }

  close(): void {}

  #portARegion(): Region {
    return {
      name: 'system-control-a',
      size: 1,
      read: () => this.#portA,
      write: (_offset, _width, value) => {
        const before = this.#portA;
        this.#portA = value & (A20 | FAST_RESET);
        if ((before & FAST_RESET) === 0 && (value & FAST_RESET) !== 0) this.#host.requestReset('guest-reset');
      },
      wide: null,
      fast: null,
    };
  }

  #load(state: unknown, version: number): void {
    const record = new StateRecord(this.id, state, version, 1);
    const control = record.byte('control');
    this.#portA = record.byte('portA');
    this.#control = control;
  }
}
