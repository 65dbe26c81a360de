// A keyboard controller with no keyboard and no mouse: there because a PC's guest resets itself through it, and because its probe must
// come to an end. Built by the machine at 0x60/0x64. JS thread. No interrupts: nothing ever arrives by itself.
// IBM PC AT technical reference, 8042 commands; Intel 82C42PC datasheet.
import type { Claim, Device, Region, Stateful } from '../contract.ts';
import { StateRecord } from '../state-record.ts';
import type { Resets } from './reset-control.ts';

const STATUS = { outputFull: 0x1, system: 0x4, command: 0x8, unlocked: 0x10 } as const;
const COMMAND = {
  readControl: 0x20,
  writeControl: 0x60,
  disableAux: 0xa7,
  enableAux: 0xa8,
  testAux: 0xa9,
  selfTest: 0xaa,
  testKeyboard: 0xab,
  disableKeyboard: 0xad,
  enableKeyboard: 0xae,
  readOutputPort: 0xd0,
  writeOutputPort: 0xd1,
  writeKeyboardBuffer: 0xd2,
  writeAuxBuffer: 0xd3,
  pulseOutputPort: 0xf0,
} as const;
const CONTROL = { system: 0x4, keyboardOff: 0x10, auxOff: 0x20 } as const;
/** Output port: bit 0 is the CPU's reset line (active low), bit 1 is A20. */
const NOT_RESET = 0x1;
const OUTPUT_PORT = 0x3;
const SELF_TEST_PASSED = 0x55;
const PORT_OK = 0x00;

export class KeyboardController implements Device {
  readonly id = 'i8042';
  readonly type = 'i8042';
  readonly claims: readonly Claim[];
  readonly live = null;
  readonly dirty = null;
  readonly interrupts = null;
  readonly state: Stateful = {
    version: 1,
    save: () => ({ control: this.#control, output: this.#output, full: this.#full, waiting: this.#waiting }),
    load: (state, version) => this.#load(state, version),
  };
  readonly #host: Resets;
  #control: number = CONTROL.keyboardOff | CONTROL.auxOff;
  #output = 0;
  #full = false;
  /** The command whose data byte comes next at 0x60, or 0. */
  #waiting = 0;

  constructor(host: Resets, dataPort: number, commandPort: number) {
    this.#host = host;
    const data = this.#port(
      'i8042-data',
      () => this.#read(),
      (value) => this.#data(value),
    );
    const command = this.#port(
      'i8042-command',
      () => this.#status(),
      (value) => this.#command(value),
    );
    this.claims = [
      { space: 'pio', base: dataPort, region: data },
      { space: 'pio', base: commandPort, region: command },
    ];
  }

  reset(): void {
    this.#control = CONTROL.keyboardOff | CONTROL.auxOff;
    this.#output = 0;
    this.#full = false;
    this.#waiting = 0;
  }

  close(): void {}

  #port(name: string, read: () => number, write: (value: number) => void): Region {
    return { name, size: 1, read, write: (_offset, _width, value) => write(value), wide: null, fast: null };
  }

  #status(): number {
    const last = this.#waiting === 0 ? 0 : STATUS.command;
    return STATUS.unlocked | (this.#control & CONTROL.system) | last | (this.#full ? STATUS.outputFull : 0);
  }

  #read(): number {
    this.#full = false;
    return this.#output;
  }

  #answer(value: number): void {
    this.#output = value;
    this.#full = true;
  }

  #command(value: number): void {
    this.#waiting = 0;
    switch (value) {
      case COMMAND.readControl:
        this.#answer(this.#control);
        return;
      case COMMAND.selfTest:
        this.#control |= CONTROL.system;
        this.#answer(SELF_TEST_PASSED);
        return;
      case COMMAND.testKeyboard:
      case COMMAND.testAux:
        this.#answer(PORT_OK);
        return;
      case COMMAND.readOutputPort:
        this.#answer(OUTPUT_PORT);
        return;
      case COMMAND.disableKeyboard:
        this.#control |= CONTROL.keyboardOff;
        return;
      case COMMAND.enableKeyboard:
        this.#control &= ~CONTROL.keyboardOff;
        return;
      case COMMAND.disableAux:
        this.#control |= CONTROL.auxOff;
        return;
      case COMMAND.enableAux:
        this.#control &= ~CONTROL.auxOff;
        return;
      case COMMAND.writeControl:
      case COMMAND.writeOutputPort:
      case COMMAND.writeKeyboardBuffer:
      case COMMAND.writeAuxBuffer:
        this.#waiting = value;
        return;
      default:
        // 0xf0-0xff pulse those output lines whose bit is zero; 0xfe is how a PC resets itself.
        if (value >= COMMAND.pulseOutputPort && (value & NOT_RESET) === 0) this.#host.requestReset('guest-reset');
    }
  }

  /** A byte for a command, or for a keyboard that is not there and never answers. */
  #data(value: number): void {
    const command = this.#waiting;
    this.#waiting = 0;
    if (command === COMMAND.writeControl) this.#control = value & 0x7f;
    else if (command === COMMAND.writeOutputPort && (value & NOT_RESET) === 0) this.#host.requestReset('guest-reset');
    else if (command === COMMAND.writeKeyboardBuffer || command === COMMAND.writeAuxBuffer) this.#answer(value);
  }

  #load(state: unknown, version: number): void {
    const record = new StateRecord(this.id, state, version, 1);
    const [control, output, full] = [record.byte('control'), record.byte('output'), record.flag('full')];
    this.#waiting = record.byte('waiting');
    this.#control = control;
    this.#output = output;
    this.#full = full;
  }
}
