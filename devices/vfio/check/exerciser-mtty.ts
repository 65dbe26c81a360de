// The exerciser of mtty, the kernel's sample of a mediated device: one or two UARTs behind I/O-port BARs whose transmitter feeds their own
// receiver, and one INTx. No DMA. Used by the rules of `ferry vfio check`. linux/serial_reg.h; linux samples/vfio-mdev/mtty.c
import type { Exerciser, ExerciserPort } from './exerciser.ts';

/** linux/serial_reg.h. FCR is written where IIR is read. */
const REG = { data: 0, ier: 1, fcr: 2, iir: 2, lcr: 3, mcr: 4, lsr: 5, msr: 6, scratch: 7 };
const DIVISOR = { low: 0, high: 1 };
const FIFO_BYTES = 16;
const FCR_ENABLE_AND_CLEAR = 0x07;
const LCR_8N1 = 0x03;
const LCR_DLAB = 0x80;
const MCR_LOOP = 0x10;
const MCR_AUTOFLOW = 0x20;
const IER_ALL = 0x0f;
const IER_TRANSMIT = 0x02;
const LSR_DATA = 0x01;
const INTX = 0;
const CONFIG = 7;
const BAR1 = 0x14;

/** One byte a register; wider accesses are none of a UART's. */
class Uart {
  readonly #port: ExerciserPort;
  readonly #bar: number;
  readonly #byte = new Uint8Array(1);

  constructor(port: ExerciserPort, bar: number) {
    this.#port = port;
    this.#bar = bar;
  }

  get(register: number): number {
    this.#port.readRegion(this.#bar, register, this.#byte);
    return this.#byte[0] as number;
  }

  set(register: number, value: number): void {
    this.#byte[0] = value;
    this.#port.writeRegion(this.#bar, register, this.#byte);
  }

  /** Takes what the FIFO holds out of it. */
  drain(): number[] {
    const bytes: number[] = [];
    while (bytes.length < FIFO_BYTES && (this.get(REG.lsr) & LSR_DATA) !== 0) bytes.push(this.get(REG.data));
    return bytes;
  }

  send(bytes: readonly number[]): void {
    for (const byte of bytes) this.set(REG.data, byte);
  }

  /**
   * Every register, most of the FIFO and a divisor by the seed. Never the whole FIFO: mtty takes a full one for an empty one. The divisor
   * latch stays open: closed, the divisor is lost to the next who looks.
   */
  mutate(seed: number): void {
    this.set(REG.lcr, LCR_8N1);
    this.set(REG.ier, 0);
    this.set(REG.fcr, FCR_ENABLE_AND_CLEAR);
    this.set(REG.mcr, MCR_LOOP | MCR_AUTOFLOW);
    this.set(REG.scratch, seed);
    this.send(Array.from({ length: 1 + (seed % (FIFO_BYTES - 1)) }, (_, i) => (seed * 31 + i * 7 + this.#bar) & 0xff));
    this.set(REG.ier, 1 + (seed % IER_ALL));
    this.#divide(1 + (seed & 0x7f), seed & 0x3f, LCR_8N1);
  }

  /** Reads the FIFO by taking it out and putting it back, with interrupts off; leaves all as it was but an overrun, which no mutate() makes. */
  hash(): string {
    const lcr = this.get(REG.lcr);
    const open = (lcr & LCR_DLAB) !== 0;
    const [low, high] = open ? [this.get(DIVISOR.low), this.get(DIVISOR.high)] : [0, 0];
    if (open) this.set(REG.lcr, lcr & ~LCR_DLAB);
    const registers = [REG.ier, REG.iir, REG.mcr, REG.lsr, REG.msr, REG.scratch].map((each) => this.get(each));
    const [ier = 0] = registers;
    this.set(REG.ier, 0);
    const fifo = this.drain();
    this.send(fifo);
    this.set(REG.ier, ier);
    if (open) this.#divide(low, high, lcr & ~LCR_DLAB);
    return [lcr, low, high, ...registers, ...fifo].map((each) => each.toString(16)).join(',');
  }

  /** As after a driver's start: the transmitter is empty, and to be told so is asked for. */
  raise(): void {
    this.set(REG.lcr, LCR_8N1);
    this.set(REG.ier, 0);
    this.set(REG.fcr, FCR_ENABLE_AND_CLEAR);
    this.set(REG.ier, IER_TRANSMIT);
  }

  /** Opening the latch clears the divisor, and its halves are only ever set bits of. */
  #divide(low: number, high: number, lcr: number): void {
    this.set(REG.lcr, lcr | LCR_DLAB);
    this.set(DIVISOR.low, low);
    this.set(DIVISOR.high, high);
  }
}

/** A card with one port has no second BAR. */
function uarts(port: ExerciserPort): Uart[] {
  const bar1 = new Uint8Array(4);
  port.readRegion(CONFIG, BAR1, bar1);
  const second = bar1.some((byte) => byte !== 0);
  return (second ? [0, 1] : [0]).map((bar) => new Uart(port, bar));
}

export const mttyExerciser: Exerciser = {
  name: 'mtty',
  // A WCH CH352, whose ids mtty has taken.
  matches: (vendor, device) => vendor === 0x4348 && device === 0x3253,
  claims: { deterministic: true, checksummed: false, p2pAware: false },
  dma: null,
  peer: null,
  target: null,
  interrupt: {
    index: INTX,
    vector: 0,
    raise: async (port) => new Uart(port, 0).raise(),
  },
  inner: {
    mutate: async (port, seed) => {
      for (const uart of uarts(port)) uart.mutate(seed);
    },
    hash: async (port) =>
      uarts(port)
        .map((uart) => uart.hash())
        .join(':'),
  },
};
