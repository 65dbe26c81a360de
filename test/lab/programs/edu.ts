// QEMU's edu through a VFIO transport: registers, factorial, DMA. Used by the programs that run inside a lab host without a guest.
// QEMU docs/specs/edu.rst. A DMA takes 100 ms; its last usable byte is 4094.
import { setTimeout as sleep } from 'node:timers/promises';
import type { VfioTransport } from '../../../devices/vfio/transport.ts';

export const EDU = {
  id: 0x00,
  live: 0x04,
  factorial: 0x08,
  status: 0x20,
  irqStatus: 0x24,
  irqAck: 0x64,
  source: 0x80,
  target: 0x88,
  count: 0x90,
  command: 0x98,
};
export const BUFFER = 0x40000n;
const FACTORIAL_IRQ = 0x80;
export const DMA_BYTES = 4088;

export class Edu {
  readonly #device: VfioTransport;
  constructor(device: VfioTransport) {
    this.#device = device;
  }
  read(register: number): number {
    const bytes = new Uint8Array(4);
    this.#device.readRegion(0, register, bytes);
    return new DataView(bytes.buffer).getUint32(0, true);
  }
  write(register: number, value: number): void {
    const bytes = new Uint8Array(4);
    new DataView(bytes.buffer).setUint32(0, value >>> 0, true);
    this.#device.writeRegion(0, register, bytes);
  }
  wide(register: number, value: bigint): void {
    const bytes = new Uint8Array(8);
    new DataView(bytes.buffer).setBigUint64(0, value, true);
    this.#device.writeRegion(0, register, bytes);
  }
  /** `out`: from edu's buffer into RAM. */
  async dma(source: bigint, target: bigint, out: boolean): Promise<void> {
    this.wide(EDU.source, source);
    this.wide(EDU.target, target);
    this.wide(EDU.count, BigInt(DMA_BYTES));
    this.write(EDU.command, 1 | (out ? 2 : 0));
    for (let i = 0; i < 1000 && (this.read(EDU.command) & 1) === 1; i++) await sleep(5);
  }
  async factorial(of: number): Promise<number> {
    this.write(EDU.status, FACTORIAL_IRQ);
    this.write(EDU.factorial, of);
    for (let i = 0; i < 1000 && (this.read(EDU.status) & 1) === 1; i++) await sleep(5);
    return this.read(EDU.factorial);
  }
  acknowledge(): number {
    const status = this.read(EDU.irqStatus);
    this.write(EDU.irqAck, status);
    return status;
  }
}
