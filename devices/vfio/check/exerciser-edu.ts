// The exerciser of QEMU's edu: a DMA engine that takes 100 ms and cannot be called back, an interrupt raised by a register, a factorial, and a
// buffer that only DMA reaches. Used by the rules of `ferry vfio check`. QEMU docs/specs/edu.rst; the last byte of the buffer cannot be moved.
import { createHash } from 'node:crypto';
import type { DmaExercise, Exerciser, ExerciserPort, InnerExercise } from './exerciser.ts';

const REG = {
  liveness: 0x04,
  factorial: 0x08,
  status: 0x20,
  irqRaise: 0x60,
  irqAck: 0x64,
  source: 0x80,
  target: 0x88,
  count: 0x90,
  command: 0x98,
};
const RUN = 1;
const TO_RAM = 2;
const COMPUTING = 1;
const BUFFER = 0x40000;
const BUFFER_BYTES = 4088;
const MSI = 1;
const WAIT_MS = 5000;

class Edu {
  readonly #port: ExerciserPort;
  constructor(port: ExerciserPort) {
    this.#port = port;
  }

  read(register: number): number {
    const bytes = new Uint8Array(4);
    this.#port.readRegion(0, register, bytes);
    return new DataView(bytes.buffer).getUint32(0, true);
  }

  write(register: number, value: number): void {
    const bytes = new Uint8Array(4);
    new DataView(bytes.buffer).setUint32(0, value >>> 0, true);
    this.#port.writeRegion(0, register, bytes);
  }

  async until(register: number, bit: number): Promise<void> {
    for (let waited = 0; (this.read(register) & bit) !== 0; waited += 5) {
      if (waited > WAIT_MS) throw new Error(`edu stays busy (register ${register})`);
      await this.#port.sleep(5);
    }
  }

  async start(source: number, target: number, length: number, command: number): Promise<void> {
    await this.until(REG.command, RUN);
    this.write(REG.source, source);
    this.write(REG.source + 4, 0);
    this.write(REG.target, target);
    this.write(REG.target + 4, 0);
    this.write(REG.count, length);
    this.write(REG.count + 4, 0);
    this.write(REG.command, command | RUN);
  }

  async wait(): Promise<void> {
    await this.until(REG.command, RUN);
  }
}

function pattern(seed: number, length: number): Uint8Array {
  return Uint8Array.from({ length }, (_, i) => (seed * 31 + i * 7 + (i >> 8) + 1) & 0xff);
}

/** The last page of the buffer's RAM is ours. */
function scratch(port: ExerciserPort): { readonly offset: number; readonly iova: number } {
  const offset = port.ram.size - 4096;
  return { offset, iova: port.iova + offset };
}

async function fillBuffer(port: ExerciserPort, seed: number, length: number): Promise<void> {
  const edu = new Edu(port);
  const { offset, iova } = scratch(port);
  port.ram.copyIn(offset, pattern(seed, length));
  await edu.start(iova, BUFFER, length, 0);
  await edu.wait();
}

const dma: DmaExercise = {
  ms: 150,
  maxBytes: BUFFER_BYTES,
  pattern,
  async startWrite(port, iova, length, seed) {
    await fillBuffer(port, seed, length);
    await new Edu(port).start(BUFFER, iova, length, TO_RAM);
  },
};

const inner: InnerExercise = {
  async mutate(port, seed) {
    const edu = new Edu(port);
    edu.write(REG.liveness, seed * 0x01010101);
    edu.write(REG.factorial, 1 + (seed % 12));
    await edu.until(REG.status, COMPUTING);
    await fillBuffer(port, seed, BUFFER_BYTES);
  },
  async hash(port) {
    const edu = new Edu(port);
    const { offset, iova } = scratch(port);
    await edu.start(BUFFER, iova, BUFFER_BYTES, TO_RAM);
    await edu.wait();
    const buffer = new Uint8Array(BUFFER_BYTES);
    port.ram.copyOut(offset, buffer);
    const registers = [REG.liveness, REG.factorial, REG.status].map((each) => edu.read(each));
    return `${registers.map((each) => each.toString(16)).join(',')}:${createHash('sha256').update(buffer).digest('hex').slice(0, 16)}`;
  },
};

export const eduExerciser: Exerciser = {
  name: 'edu',
  matches: (vendor, device) => vendor === 0x1234 && device === 0x11e8,
  claims: { deterministic: true, checksummed: true, p2pAware: false },
  dma,
  peer: null,
  // No register of it keeps what is written as it is, and its buffer is not in its BAR.
  target: null,
  interrupt: {
    index: MSI,
    vector: 0,
    async raise(port) {
      const edu = new Edu(port);
      edu.write(REG.irqAck, 0xffffffff);
      edu.write(REG.irqRaise, 1);
      edu.write(REG.irqAck, 0xffffffff);
    },
  },
  inner,
};
