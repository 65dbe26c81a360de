// A 16550A UART: the guest's console. Built by the machine at 0x3f8 / IRQ 4, which gives it a sink for the guest's bytes and calls
// receive() with what is typed. JS thread, except that vCPU threads answer line status from the shadow and post transmitted bytes.
// National Semiconductor PC16550D datasheet (June 1995), section 8; on a PC, OUT2 gates the interrupt line.
import type {
  AddressSpace,
  ClaimHandle,
  Device,
  DeviceLog,
  FastWindow,
  InterruptGate,
  Region,
  Stateful,
  Width,
} from '../contract.ts';
import { StateRecord } from '../state-record.ts';
import { SerialInput } from './serial-input.ts';
import { SerialOutput } from './serial-output.ts';

export interface SerialOptions {
  readonly id: string;
  readonly bus: AddressSpace;
  /** 0x3f8. */
  readonly base: number;
  readonly line: { set(level: boolean): void };
  readonly out: (bytes: Uint8Array) => void;
  readonly log: DeviceLog;
}

const REG = { data: 0, ier: 1, iirFcr: 2, lcr: 3, mcr: 4, lsr: 5, msr: 6, scr: 7 } as const;
const IER = { receive: 0x1, transmit: 0x2, lineStatus: 0x4, modemStatus: 0x8 } as const;
const IIR = {
  none: 0x1,
  modemStatus: 0x0,
  transmit: 0x2,
  receive: 0x4,
  lineStatus: 0x6,
  timeout: 0xc,
  fifos: 0xc0,
} as const;
const FCR = { enable: 0x1, clearReceive: 0x2, trigger: 0xc0 } as const;
const LCR_DLAB = 0x80;
const MCR = { out2: 0x8, loopback: 0x10, all: 0x1f } as const;
const LSR = { dataReady: 0x1, overrun: 0x2, errors: 0x1e, transmitterEmpty: 0x60 } as const;
/** CTS, DSR and DCD: somebody is always at the other end. */
const MSR_CONNECTED = 0xb0;
const MSR_DELTAS = 0xf;
const MSR_RING = 0x40;
const MSR_TRAILING_RING = 0x4;
const FIFO_SIZE = 16;
const TRIGGER_LEVELS = [1, 4, 8, 14] as const;

/** What makes a fast window differ: an index into the sixteen of them. */
const WINDOW = { dlab: 1, loopback: 2, lineError: 4, modemDelta: 8 } as const;
const WINDOWS = 16;

export class Serial implements Device {
  readonly id: string;
  readonly type = 'isa-serial';
  /** None for the machine to claim: the UART holds its own, because the fast window changes with the divisor latch. */
  readonly claims = [];
  readonly live = null;
  readonly dirty = null;
  /** What is typed during a move waits: it must not raise the line after the irqchip was saved, nor before it is loaded. */
  readonly interrupts: InterruptGate = {
    detach: () => {
      this.#held = true;
    },
    attach: () => this.#release(),
  };
  readonly state: Stateful = {
    version: 1,
    save: () => this.#save(),
    load: (state, version) => this.#load(state, version),
  };
  readonly #line: { set(level: boolean): void };
  readonly #output: SerialOutput;
  readonly #input: SerialInput;
  readonly #claim: ClaimHandle;
  /** Byte i is what a read of register i gives; the vCPU threads read it too. */
  readonly #shadow = new Uint8Array(8);
  readonly #windows: readonly FastWindow[];
  #window = 0;
  readonly #fifo: number[] = [];
  #ier = 0;
  #fcr = 0;
  #lcr = 0;
  #mcr = 0;
  #lsr: number = LSR.transmitterEmpty;
  #msr = MSR_CONNECTED;
  #scr = 0;
  #divisor = 1;
  /** The holding register went empty and nobody has been told yet. */
  #transmitPending = false;
  #level = false;
  /** Typed bytes stay out of the FIFO. */
  #held = false;

  constructor(options: SerialOptions) {
    this.id = options.id;
    this.#line = options.line;
    this.#output = new SerialOutput(options.out);
    this.#input = new SerialInput(options.log);
    this.#windows = Array.from({ length: WINDOWS }, (_, which) => fastWindow(this.#shadow, which));
    this.#refreshShadow();
    this.#claim = options.bus.claim({ space: 'pio', base: options.base, region: this.#region() });
  }

  /** What was typed. Kept until the guest makes room. */
  receive(bytes: Uint8Array): void {
    this.#input.add(bytes);
    this.#feed();
    this.#changed();
  }

  /** Hands everything that the guest has sent to the sink. Before a pause ends in a save, so that no byte appears twice or never. */
  drain(): void {
    this.#output.flush();
  }

  reset(): void {
    this.#fifo.length = 0;
    this.#ier = this.#fcr = this.#lcr = this.#mcr = this.#scr = 0;
    this.#lsr = LSR.transmitterEmpty;
    this.#msr = MSR_CONNECTED;
    this.#divisor = 1;
    this.#transmitPending = false;
    this.#feed();
    this.#changed();
  }

  close(): void {
    this.#output.flush();
    this.#claim.release();
  }

  #region(): Region {
    return {
      name: this.id,
      size: 8,
      read: (offset, width) => this.#readWide(offset, width),
      write: (offset, width, value) => {
        if (this.#held) this.#release();
        for (let i = 0; i < width; i++) this.#write(offset + i, (value >>> (8 * i)) & 0xff);
      },
      wide: null,
      fast: this.#windows[this.#window]!,
    };
  }

  #readWide(offset: number, width: Width): number {
    if (this.#held) this.#release();
    let value = 0;
    for (let i = 0; i < width; i++) value += this.#read(offset + i) * 2 ** (8 * i);
    return value;
  }

  #read(register: number): number {
    if (register === REG.data && !this.#dlab) return this.#takeReceived();
    if (register === REG.iirFcr) return this.#identify();
    const value = this.#shadow[register]!;
    if (register === REG.lsr && (value & LSR.errors) !== 0) {
      this.#lsr &= ~LSR.errors;
      this.#changed();
    } else if (register === REG.msr && (value & MSR_DELTAS) !== 0) {
      this.#msr &= ~MSR_DELTAS;
      this.#changed();
    }
    return value;
  }

  #write(register: number, value: number): void {
    switch (register) {
      case REG.data:
        if (this.#dlab) this.#divisor = (this.#divisor & 0xff00) | value;
        else this.#transmit(value);
        break;
      case REG.ier:
        if (this.#dlab) this.#divisor = (this.#divisor & 0xff) | (value << 8);
        else this.#writeIer(value);
        break;
      case REG.iirFcr:
        this.#writeFcr(value);
        break;
      case REG.lcr:
        this.#lcr = value;
        break;
      case REG.mcr:
        this.#writeMcr(value);
        break;
      case REG.scr:
        this.#scr = value;
        break;
      default:
        return;
    }
    this.#changed();
  }

  /** The line takes no time: the holding register is empty again at once, and that is an event of its own. */
  #transmit(value: number): void {
    if ((this.#mcr & MCR.loopback) === 0) this.#output.put(value);
    else if (this.#fifo.length < this.#capacity) this.#fifo.push(value);
    else this.#lsr |= LSR.overrun;
    this.#transmitPending = (this.#ier & IER.transmit) !== 0;
  }

  #takeReceived(): number {
    const value = this.#fifo.shift() ?? 0;
    this.#feed();
    this.#changed();
    return value;
  }

  /** Enabling the transmit interrupt while the holding register is empty raises it: Linux starts each transmission by this. */
  #writeIer(value: number): void {
    const enabled = value & ~this.#ier & IER.transmit;
    this.#ier = value & 0xf;
    if (enabled !== 0) this.#transmitPending = true;
    if ((value & IER.transmit) === 0) this.#transmitPending = false;
  }

  #writeFcr(value: number): void {
    const toggled = ((value ^ this.#fcr) & FCR.enable) !== 0;
    if (toggled || (value & FCR.clearReceive) !== 0) this.#fifo.length = 0;
    // Without the enable bit the others are not programmed.
    this.#fcr = (value & FCR.enable) === 0 ? 0 : value & (FCR.enable | FCR.trigger);
    this.#feed();
  }

  #writeMcr(value: number): void {
    const before = this.#msr;
    this.#mcr = value & MCR.all;
    const loopback = (value & MCR.loopback) !== 0;
    // Looped back, RTS DTR OUT1 OUT2 are read as CTS DSR RI DCD.
    const swapped = ((value & 0x2) << 3) | ((value & 0x1) << 5) | ((value & 0x4) << 4) | ((value & 0x8) << 4);
    const after = loopback ? swapped : MSR_CONNECTED;
    const flipped = (before ^ after) & 0xf0;
    let deltas = (flipped & ~MSR_RING) >> 4;
    if ((flipped & MSR_RING) !== 0 && (after & MSR_RING) === 0) deltas |= MSR_TRAILING_RING;
    this.#msr = after | (before & 0xf) | deltas;
    if (!loopback) this.#feed();
  }

  /** Reading the identification acknowledges a transmit interrupt if it is the one that is shown. */
  #identify(): number {
    const cause = this.#cause();
    if (cause === IIR.transmit) {
      this.#transmitPending = false;
      this.#changed();
    }
    return cause | ((this.#fcr & FCR.enable) !== 0 ? IIR.fifos : 0);
  }

  /** In order of priority. A FIFO that holds less than the trigger level times out at once: nothing more is on the line. */
  #cause(): number {
    const received = this.#fifo.length;
    if ((this.#ier & IER.lineStatus) !== 0 && (this.#lsr & LSR.errors) !== 0) return IIR.lineStatus;
    if ((this.#ier & IER.receive) !== 0 && received > 0) {
      const trigger = TRIGGER_LEVELS[this.#fcr >> 6]!;
      return (this.#fcr & FCR.enable) === 0 || received >= trigger ? IIR.receive : IIR.timeout;
    }
    if (this.#transmitPending) return IIR.transmit;
    return (this.#ier & IER.modemStatus) !== 0 && (this.#msr & MSR_DELTAS) !== 0 ? IIR.modemStatus : IIR.none;
  }

  get #dlab(): boolean {
    return (this.#lcr & LCR_DLAB) !== 0;
  }

  get #capacity(): number {
    return (this.#fcr & FCR.enable) !== 0 ? FIFO_SIZE : 1;
  }

  /** What was typed never overruns: it waits until there is room. */
  #feed(): void {
    if (this.#held || (this.#mcr & MCR.loopback) !== 0) return;
    while (this.#fifo.length < this.#capacity) {
      const next = this.#input.take();
      if (next === null) return;
      this.#fifo.push(next);
    }
  }

  /** The gate is open again, or the guest runs: it has accessed a register. */
  #release(): void {
    this.#held = false;
    this.#feed();
    this.#changed();
  }

  /** After every change: shadow, fast window, interrupt line. */
  #changed(): void {
    this.#refreshShadow();
    this.#refreshWindow();
    const level = this.#wantsInterrupt();
    if (level === this.#level) return;
    this.#level = level;
    this.#line.set(level);
  }

  #wantsInterrupt(): boolean {
    const gated = (this.#mcr & MCR.out2) === 0 || (this.#mcr & MCR.loopback) !== 0;
    return !gated && this.#cause() !== IIR.none;
  }

  #refreshShadow(): void {
    const shadow = this.#shadow;
    this.#lsr = this.#fifo.length > 0 ? this.#lsr | LSR.dataReady : this.#lsr & ~LSR.dataReady;
    shadow[REG.data] = this.#dlab ? this.#divisor & 0xff : 0;
    shadow[REG.ier] = this.#dlab ? this.#divisor >> 8 : this.#ier;
    shadow[REG.lcr] = this.#lcr;
    shadow[REG.mcr] = this.#mcr;
    shadow[REG.lsr] = this.#lsr;
    shadow[REG.msr] = this.#msr;
    shadow[REG.scr] = this.#scr;
  }

  #refreshWindow(): void {
    let window = this.#dlab ? WINDOW.dlab : 0;
    if ((this.#mcr & MCR.loopback) !== 0) window |= WINDOW.loopback;
    if ((this.#lsr & LSR.errors) !== 0) window |= WINDOW.lineError;
    if ((this.#msr & MSR_DELTAS) !== 0) window |= WINDOW.modemDelta;
    if (window === this.#window) return;
    this.#window = window;
    this.#claim.refreshFast(this.#windows[window]!);
  }

  #save(): unknown {
    this.#output.flush();
    return {
      fifo: Uint8Array.from(this.#fifo),
      input: this.#input.waiting(),
      ier: this.#ier,
      fcr: this.#fcr,
      lcr: this.#lcr,
      mcr: this.#mcr,
      lsr: this.#lsr,
      msr: this.#msr,
      scr: this.#scr,
      divisor: this.#divisor,
      transmitPending: this.#transmitPending,
    };
  }

  #load(state: unknown, version: number): void {
    const record = new StateRecord(this.id, state, version, 1);
    const fifo = record.bytes('fifo', 0, FIFO_SIZE);
    const input = record.bytes('input', 0, SerialInput.limit);
    const [ier, fcr, mcr] = [record.integer('ier', 0xf), record.byte('fcr'), record.integer('mcr', MCR.all)];
    const [lcr, lsr, msr, scr] = [record.byte('lcr'), record.byte('lsr'), record.byte('msr'), record.byte('scr')];
    const divisor = record.integer('divisor', 0xffff);
    this.#transmitPending = record.flag('transmitPending');
    this.#fifo.splice(0, this.#fifo.length, ...fifo);
    this.#input.replace(input);
    this.#ier = ier;
    this.#fcr = fcr & (FCR.enable | FCR.trigger);
    this.#mcr = mcr;
    this.#lcr = lcr;
    this.#lsr = lsr | LSR.transmitterEmpty;
    this.#msr = msr;
    this.#scr = scr;
    this.#divisor = divisor;
    this.#changed();
    // KVM's irqchip has latched the edge, but not that the line is still up: it is driven again whatever we had.
    this.#level = this.#wantsInterrupt();
    this.#line.set(this.#level);
    // attach() comes once the irqchip is loaded, too.
    this.#held = true;
  }
}

/** What the vCPU threads may answer. A read that changes something (an error or a delta is cleared by it) is never theirs. */
function fastWindow(shadow: Uint8Array, which: number): FastWindow {
  const dlab = (which & WINDOW.dlab) !== 0;
  const reads: number[] = [REG.ier, REG.lcr, REG.mcr, REG.scr];
  if (dlab) reads.push(REG.data);
  if ((which & WINDOW.lineError) === 0) reads.push(REG.lsr);
  if ((which & WINDOW.modemDelta) === 0) reads.push(REG.msr);
  // Looped back, a byte that is sent comes back: the guest's next read of the line status must see it.
  return { shadow, reads, posts: dlab || (which & WINDOW.loopback) !== 0 ? [] : [REG.data], file: null };
}
