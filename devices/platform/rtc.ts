// The CMOS clock of a PC at 0x70/0x71: wall-clock time, alarm, update and periodic interrupts on IRQ 8, NVRAM. Built by the machine.
// Without it a Debian kernel waits 2.7 s for the update bit. JS thread; its timers run only while the guest has an interrupt enabled.
// Motorola MC146818A datasheet; the NVRAM sizes are those that PC firmware left there (Ralf Brown, CMOS memory map).
import type { Claim, Device, InterruptGate, Stateful } from '../contract.ts';
import { StateRecord } from '../state-record.ts';
import { alarmMatches, decodeAlarm, decodeTime, encodeTime, TIME_REGISTERS } from './rtc-time.ts';

export interface RtcOptions {
  /** 0x70; the data port follows. */
  readonly base: number;
  /** IRQ 8. */
  readonly line: { set(level: boolean): void };
  /** Bytes of RAM below the PCI hole, and above 4 GiB. */
  readonly lowMemory: number;
  readonly highMemory: number;
  /** Milliseconds since 1970. */
  readonly now: () => number;
}

const REG = { a: 0xa, b: 0xb, c: 0xc, d: 0xd, century: 0x32 } as const;
/** 32768 Hz time base; periodic rate 1024 Hz: what firmware leaves. The update bit (7) is never seen set: a read takes no time. */
const A_POWER_ON = 0x26;
const A_WRITABLE = 0x7f;
const B = {
  set: 0x80,
  periodic: 0x40,
  alarm: 0x20,
  update: 0x10,
  interrupts: 0x70,
  format: 0x07,
  hours24: 0x02,
} as const;
const C = { any: 0x80, periodic: 0x40, alarm: 0x20, update: 0x10 } as const;
const D_VALID = 0x80;
const SIZE = 128;
/** A day: every alarm is in it. */
const MAX_CATCH_UP = 86_400;
const MIB = 2 ** 20;
const KIB = 2 ** 10;

export class Rtc implements Device {
  readonly id = 'rtc';
  readonly type = 'mc146818rtc';
  readonly claims: readonly Claim[];
  readonly live = null;
  readonly dirty = null;
  /** A second that passes in a move must not raise the line after the irqchip was saved, nor before it is loaded. */
  readonly interrupts: InterruptGate = {
    detach: () => {
      this.#open = false;
      this.#stopTimers();
    },
    attach: () => {
      this.#open = true;
      this.#catchUp();
      this.#arm();
    },
  };
  readonly state: Stateful = {
    version: 1,
    save: () => this.#save(),
    load: (state, version) => this.#load(state, version),
  };
  readonly #options: RtcOptions;
  readonly #cmos = new Uint8Array(SIZE);
  #index = 0;
  /** Guest time minus wall clock, milliseconds: the guest may set its clock. */
  #offset = 0;
  /** The last second that flags were worked out for. */
  #second: number;
  #open = true;
  #secondTimer: NodeJS.Timeout | null = null;
  #periodicTimer: NodeJS.Timeout | null = null;

  constructor(options: RtcOptions) {
    this.#options = options;
    this.#second = this.#guestSecond();
    this.#cmos[REG.a] = A_POWER_ON;
    this.#cmos[REG.b] = B.hours24;
    this.#cmos[REG.d] = D_VALID;
    this.#setMemorySizes(options.lowMemory, options.highMemory);
    this.claims = [
      {
        space: 'pio',
        base: options.base,
        region: {
          name: 'rtc',
          size: 2,
          // The index cannot be read back on a PC.
          read: (offset) => (offset === 0 ? 0xff : this.#read(this.#index)),
          write: (offset, width, value) => {
            // Bit 7 of the index port masks NMIs, which nobody here sends.
            if (offset === 0) this.#index = value & 0x7f;
            if (offset === 1) this.#write(this.#index, value & 0xff);
            else if (width > 1) this.#write(this.#index, (value >>> 8) & 0xff);
          },
          wide: null,
          // The index only remembers; it may wait for the access that uses it.
          fast: { shadow: null, reads: [], posts: [0], file: null },
        },
      },
    ];
  }

  /** The battery keeps time and NVRAM; interrupts go off. */
  reset(): void {
    this.#cmos[REG.b] = this.#cmos[REG.b]! & ~B.interrupts;
    this.#cmos[REG.c] = 0;
    this.#index = 0;
    this.#options.line.set(false);
    this.#arm();
  }

  close(): void {
    this.#stopTimers();
  }

  #read(register: number): number {
    if (isTime(register) && !this.#frozen) return this.#timeRegisters()[register]!;
    if (register !== REG.c) return this.#cmos[register]!;
    this.#catchUp();
    const flags = this.#cmos[REG.c]!;
    this.#cmos[REG.c] = 0;
    this.#options.line.set(false);
    return flags;
  }

  #write(register: number, value: number): void {
    if (isTime(register)) this.#writeTime(register, value);
    else if (register === REG.a) this.#cmos[REG.a] = value & A_WRITABLE;
    else if (register === REG.b) this.#writeB(value);
    else if (register !== REG.c && register !== REG.d) this.#cmos[register] = value;
    if (register === REG.a || register === REG.b) this.#arm();
  }

  /** With the set bit on, the registers are plain bytes until it goes off; otherwise the clock jumps at once. */
  #writeTime(register: number, value: number): void {
    if (!this.#frozen) this.#copyTime();
    this.#cmos[register] = value;
    if (!this.#frozen) this.#takeTime();
  }

  #copyTime(): void {
    const now = this.#timeRegisters();
    for (const register of TIME_REGISTERS) this.#cmos[register] = now[register]!;
  }

  #writeB(value: number): void {
    const before = this.#cmos[REG.b]!;
    this.#catchUp();
    if ((value & B.set) !== 0 && (before & B.set) === 0) this.#copyTime();
    // Setting the time ends update interrupts. MC146818A, register B, SET.
    this.#cmos[REG.b] = (value & B.set) !== 0 ? value & ~B.update : value;
    if ((value & B.set) === 0 && (before & B.set) !== 0) this.#takeTime();
    this.#raise(0);
  }

  /** What the registers hold becomes the guest's time. Nonsense leaves the clock as it was. */
  #takeTime(): void {
    const time = decodeTime(this.#cmos, this.#cmos[REG.b]! & B.format);
    if (time !== null) this.#offset = time - this.#options.now();
    this.#second = this.#guestSecond();
  }

  get #frozen(): boolean {
    return (this.#cmos[REG.b]! & B.set) !== 0;
  }

  #guestSecond(): number {
    return Math.floor((this.#options.now() + this.#offset) / 1000);
  }

  #timeRegisters(): Uint8Array {
    const registers = this.#cmos.slice();
    encodeTime(this.#guestSecond() * 1000, this.#cmos[REG.b]! & B.format, registers);
    return registers;
  }

  /** Sets the flags of the seconds that have gone by, and the interrupt if one of them is enabled. */
  #catchUp(): void {
    const now = this.#guestSecond();
    const from = Math.max(this.#second, now - MAX_CATCH_UP);
    this.#second = now;
    if (now <= from || this.#frozen) return;
    const alarm = decodeAlarm(this.#cmos, this.#cmos[REG.b]! & B.format);
    let due = false;
    for (let second = from + 1; second <= now && !due; second++) due = alarmMatches(alarm, second);
    this.#raise(due ? C.update | C.alarm : C.update);
  }

  #raise(flags: number): void {
    const all = this.#cmos[REG.c]! | flags;
    // The flags and their enables have the same bit positions in C and B.
    const wanted = (all & this.#cmos[REG.b]! & B.interrupts) !== 0;
    this.#cmos[REG.c] = wanted ? all | C.any : all & ~C.any;
    this.#options.line.set(wanted);
  }

  /** Timers only for what the guest has enabled: an idle clock costs nothing. */
  #arm(): void {
    this.#stopTimers();
    if (!this.#open) return;
    const b = this.#cmos[REG.b]!;
    if ((b & (B.alarm | B.update)) !== 0 && !this.#frozen) this.#armSecond();
    const rate = this.#cmos[REG.a]! & 0xf;
    if ((b & B.periodic) !== 0 && rate !== 0) {
      // Rates 1 and 2 are those of 8 and 9. Faster than 1000 Hz comes as 1000 Hz.
      const period = (1000 * 2 ** ((rate < 3 ? rate + 7 : rate) - 1)) / 32768;
      this.#periodicTimer = setInterval(() => this.#raise(C.periodic), Math.max(1, Math.round(period)));
      this.#periodicTimer.unref();
    }
  }

  #armSecond(): void {
    const untilNext = 1000 - mod(this.#options.now() + this.#offset, 1000);
    this.#secondTimer = setTimeout(() => {
      this.#catchUp();
      this.#armSecond();
    }, untilNext);
    this.#secondTimer.unref();
  }

  #stopTimers(): void {
    if (this.#secondTimer !== null) clearTimeout(this.#secondTimer);
    if (this.#periodicTimer !== null) clearInterval(this.#periodicTimer);
    this.#secondTimer = null;
    this.#periodicTimer = null;
  }

  #setMemorySizes(low: number, high: number): void {
    const word = (at: number, value: number) => {
      this.#cmos[at] = value & 0xff;
      this.#cmos[at + 1] = (value >> 8) & 0xff;
    };
    const above1M = Math.min(0xffff, Math.max(0, low - MIB) / KIB);
    word(0x15, 640);
    word(0x17, above1M);
    word(0x30, above1M);
    word(0x34, Math.min(0xffff, Math.max(0, low - 16 * MIB) / (64 * KIB)));
    const above4G = Math.min(0xffffff, high / (64 * KIB));
    word(0x5b, above4G);
    this.#cmos[0x5d] = Math.floor(above4G / 0x10000);
  }

  #save(): unknown {
    return { index: this.#index, cmos: this.#cmos.slice(), offset: Math.round(this.#offset), second: this.#second };
  }

  #load(state: unknown, version: number): void {
    const record = new StateRecord(this.id, state, version, 1);
    const index = record.integer('index', SIZE - 1);
    const cmos = record.bytes('cmos', SIZE, SIZE);
    const offset = record.signed('offset');
    this.#second = record.signed('second');
    this.#index = index;
    this.#offset = offset;
    this.#cmos.set(cmos);
    this.#raise(0);
    // attach() comes once the irqchip is loaded, too.
    this.#open = false;
    this.#stopTimers();
  }
}

function isTime(register: number): boolean {
  return TIME_REGISTERS.includes(register);
}

function mod(value: number, by: number): number {
  return ((value % by) + by) % by;
}
