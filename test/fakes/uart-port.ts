// A card of UARTs whose transmitter feeds the receiver, for tests of the exerciser of mtty: what a 16550 does, with mtty's ways of losing things
// (samples/vfio-mdev/mtty.c): opening the divisor latch clears the divisor, a FIFO with 16 bytes in it looks like an empty one.
import type { ExerciserPort } from '../../devices/vfio/check/exerciser.ts';

export interface FakeUart {
  ier: number;
  lcr: number;
  mcr: number;
  scratch: number;
  divisor: number;
  fifo: number[];
  overrun: boolean;
  /** Times that the transmitter's interrupt was due. */
  raised: number;
}

function read(uart: FakeUart, register: number): number {
  const open = (uart.lcr & 0x80) !== 0;
  const { length } = uart.fifo;
  if (register === 0) return open ? uart.divisor & 0xff : (uart.fifo.shift() ?? 0);
  if (register === 1) return open ? uart.divisor >> 8 : uart.ier;
  if (register === 2) return 0xc0 | ((uart.ier & 1) !== 0 && length > 0 ? 4 : 1);
  if (register === 5) return (length % 16 === 0 ? 0x60 : 1) | (uart.overrun ? 2 : 0);
  return { 3: uart.lcr, 4: uart.mcr, 6: length < 16 ? 0xb0 : 0xa0, 7: uart.scratch }[register] ?? 0;
}

function write(uart: FakeUart, register: number, value: number): void {
  const open = (uart.lcr & 0x80) !== 0;
  if (register === 0 && open) uart.divisor |= value;
  else if (register === 1 && open) uart.divisor |= value << 8;
  else if (register === 0) {
    uart.overrun = uart.fifo.length >= 16;
    if (!uart.overrun) uart.fifo.push(value);
  } else if (register === 1) {
    uart.ier = value;
    if ((value & 2) !== 0 && uart.fifo.length === 0) uart.raised++;
  } else if (register === 2 && (value & 6) !== 0) uart.fifo = [];
  else if (register === 3) {
    if ((value & 0x80) !== 0) uart.divisor = 0;
    uart.lcr = value;
  } else if (register === 4) uart.mcr = value;
  else if (register === 7) uart.scratch = value;
}

export function uartPort(count: 1 | 2): ExerciserPort & { readonly uarts: readonly FakeUart[] } {
  const uarts = Array.from({ length: count }, (): FakeUart => {
    return { ier: 0, lcr: 0, mcr: 0, scratch: 0, divisor: 0, fifo: [], overrun: false, raised: 0 };
  });
  return {
    uarts,
    get ram(): never {
      throw new Error('mtty does no DMA');
    },
    iova: 0,
    sleep: async () => {},
    readRegion: (index, offset, into) => {
      if (index === 7) into.fill(0).fill(count - 1, 0, 1);
      else into[0] = read(uarts[index] as FakeUart, offset);
    },
    writeRegion: (index, offset, from) => write(uarts[index] as FakeUart, offset, from[0] as number),
  };
}
