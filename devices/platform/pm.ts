// ACPI's fixed power management hardware: PM1a event and control blocks, power button, S5. No GPE, no PM timer, ACPI mode from the
// start (there is no SMI command port). Built by the machine at the FADT's addresses; QMP's system_powerdown calls powerButton().
// ACPI 6.4, 4.8.3.1 (event grouping), 4.8.3.2 (control grouping), 4.8.2.2.1 (power button).
import type { Claim, Device, DeviceHost, Region, Stateful, Width } from '../contract.ts';
import { StateRecord } from '../state-record.ts';

/** What \_S5 in the DSDT must give as SLP_TYPa. */
export const S5_SLEEP_TYPE = 5;

const STATUS = { globalLock: 0x20, powerButton: 0x100, wake: 0x8000 } as const;
const STATUS_BITS = STATUS.globalLock | STATUS.powerButton | STATUS.wake;
/** RTC_EN can be set, since Linux complains when it cannot; the RTC's alarm never sets RTC_STS here. */
const RTC_ENABLE = 0x400;
const ENABLE_BITS = STATUS.globalLock | STATUS.powerButton | RTC_ENABLE;
const CONTROL = { sciEnable: 0x1, sleepType: 0x1c00, sleepEnable: 0x2000 } as const;

export interface PmOptions {
  readonly host: Pick<DeviceHost, 'requestEnd' | 'log'>;
  /** PM1a_EVT_BLK, 4 bytes: status, enable. */
  readonly eventPort: number;
  /** PM1a_CNT_BLK, 2 bytes. */
  readonly controlPort: number;
  /** The SCI: GSI 9, level. */
  readonly sci: { set(level: boolean): void };
}

export class PowerManagement implements Device {
  readonly id = 'pm';
  readonly type = 'acpi-pm';
  readonly claims: readonly Claim[];
  readonly live = null;
  readonly dirty = null;
  readonly interrupts = null;
  readonly state: Stateful = {
    version: 1,
    save: () => ({ status: this.#status, enable: this.#enable, control: this.#control }),
    load: (state, version) => this.#load(state, version),
  };
  readonly #options: PmOptions;
  #status = 0;
  #enable = 0;
  #control: number = CONTROL.sciEnable;

  constructor(options: PmOptions) {
    this.#options = options;
    this.claims = [
      { space: 'pio', base: options.eventPort, region: this.#event() },
      { space: 'pio', base: options.controlPort, region: this.#controlBlock() },
    ];
  }

  /** The user asks the guest to shut down. Without an operating system that listens, nothing comes of it. */
  powerButton(): void {
    this.#status |= STATUS.powerButton;
    this.#drive();
  }

  reset(): void {
    this.#status = 0;
    this.#enable = 0;
    this.#control = CONTROL.sciEnable;
    this.#drive();
  }

  close(): void {}

  #event(): Region {
    return {
      name: 'pm1a-event',
      size: 4,
      read: (offset, width) => part(this.#status | (this.#enable << 16), offset, width),
      write: (offset, width, value) => {
        const bits = value * 2 ** (8 * offset);
        const written = ((2 ** (8 * width) - 1) * 2 ** (8 * offset)) >>> 16;
        this.#status &= ~(bits & 0xffff);
        this.#enable = ((this.#enable & ~written) | (Math.floor(bits / 0x10000) & written)) & ENABLE_BITS;
        this.#drive();
      },
      wide: null,
      fast: null,
    };
  }

  #controlBlock(): Region {
    return {
      name: 'pm1a-control',
      size: 2,
      read: (offset, width) => part(this.#control, offset, width),
      write: (offset, width, value) => {
        const written = (2 ** (8 * width) - 1) << (8 * offset);
        const next = (this.#control & ~written) | ((value << (8 * offset)) & written);
        // SLP_EN is write-only and reads as zero; SCI_EN is hard-wired where there is no SMI command port.
        this.#control = (next & CONTROL.sleepType) | CONTROL.sciEnable;
        if ((next & CONTROL.sleepEnable) !== 0) this.#sleep((next & CONTROL.sleepType) >> 10);
      },
      wide: null,
      fast: null,
    };
  }

  #sleep(type: number): void {
    const { host } = this.#options;
    if (type === S5_SLEEP_TYPE) host.requestEnd('guest-shutdown', 0);
    else host.log.debug({ type }, 'sleep type that no \\_Sx names');
  }

  #drive(): void {
    this.#options.sci.set((this.#status & this.#enable & ENABLE_BITS) !== 0);
  }

  #load(state: unknown, version: number): void {
    const record = new StateRecord(this.id, state, version, 1);
    const status = record.integer('status', 0xffff);
    const enable = record.integer('enable', 0xffff);
    const control = record.integer('control', 0xffff);
    this.#status = status & STATUS_BITS;
    this.#enable = enable & ENABLE_BITS;
    this.#control = (control & CONTROL.sleepType) | CONTROL.sciEnable;
    this.#drive();
  }
}

function part(value: number, offset: number, width: Width): number {
  const shifted = (value >>> (8 * offset)) >>> 0;
  return width === 4 ? shifted : width === 2 ? shifted & 0xffff : shifted & 0xff;
}
