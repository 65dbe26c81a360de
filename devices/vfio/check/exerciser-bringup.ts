// The exerciser of vfio-bringup, our device without hardware: DMA by a thread of its own with a delay that can be set, four MSIs, a hash of the
// whole state in a register. Used by the rules of `ferry vfio check`. images/kmod/vfio-bringup/README.md
import type { DmaExercise, Exerciser, ExerciserPort } from './exerciser.ts';

const REG = {
  hash: 0x28,
  mutate: 0x30,
  dmaIova: 0x40,
  dmaLength: 0x50,
  dmaSeed: 0x54,
  dmaDelay: 0x58,
  dmaCommand: 0x5c,
  dmaStatus: 0x68,
  window: 0x38,
};
const WINDOW = 0x8000;
const FILL = 3;
const IRQ = 0x10;
const PEER = 0x20;
const BUSY = 1;
const DELAY_US = 60_000;
const MSI = 1;
const MASK = 2n ** 64n - 1n;

function read64(port: ExerciserPort, register: number): bigint {
  const bytes = new Uint8Array(8);
  port.readRegion(0, register, bytes);
  return new DataView(bytes.buffer).getBigUint64(0, true);
}

function write32(port: ExerciserPort, register: number, value: number): void {
  const bytes = new Uint8Array(4);
  new DataView(bytes.buffer).setUint32(0, value >>> 0, true);
  port.writeRegion(0, register, bytes);
}

function write64(port: ExerciserPort, register: number, value: number): void {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(value), true);
  port.writeRegion(0, register, bytes);
}

/** README, "DMA": the pattern's 64-bit word; pass 0. */
function word(seed: number, index: number): bigint {
  let x = (BigInt(seed >>> 0) * 0x9e3779b97f4a7c15n + BigInt(index)) & MASK;
  x = ((x ^ (x >> 30n)) * 0xbf58476d1ce4e5b9n) & MASK;
  x = ((x ^ (x >> 27n)) * 0x94d049bb133111ebn) & MASK;
  return x ^ (x >> 31n);
}

function pattern(seed: number, length: number): Uint8Array {
  const view = new DataView(new ArrayBuffer(Math.ceil(length / 8) * 8));
  for (let at = 0; at < view.byteLength; at += 8) view.setBigUint64(at, word(seed, at / 8), true);
  return new Uint8Array(view.buffer, 0, length);
}

interface Fill {
  readonly iova: number;
  readonly length: number;
  readonly seed: number;
  readonly delayUs: number;
  readonly command: number;
}

async function fill(port: ExerciserPort, { iova, length, seed, delayUs, command }: Fill): Promise<void> {
  for (let waited = 0; (Number(read64(port, REG.dmaStatus)) & BUSY) !== 0; waited += 5) {
    if (waited > 5000) throw new Error('vfio-bringup stays busy');
    await port.sleep(5);
  }
  write64(port, REG.dmaIova, iova);
  write32(port, REG.dmaLength, length);
  write32(port, REG.dmaSeed, seed);
  write32(port, REG.dmaDelay, delayUs);
  write32(port, REG.dmaCommand, FILL | command);
}

function dmaBy(command: number): DmaExercise {
  return {
    ms: 100,
    maxBytes: 4096,
    pattern,
    startWrite: (port, iova, length, seed) => fill(port, { iova, length, seed, delayUs: DELAY_US, command }),
  };
}

export const bringupExerciser: Exerciser = {
  name: 'vfio-bringup',
  matches: (vendor, device) => vendor === 0x1234 && device === 0xfe01,
  claims: { deterministic: true, checksummed: true, p2pAware: true },
  dma: dmaBy(0),
  peer: dmaBy(PEER),
  // The mailbox.
  target: { region: 2, offset: 0, length: 4096 },
  interrupt: {
    index: MSI,
    vector: 0,
    // The interrupt of a transfer, which is the one that may come late.
    raise: (port) => {
      const iova = port.iova + port.ram.size - 4096;
      return fill(port, { iova, length: 8, seed: 0, delayUs: 0, command: IRQ });
    },
  },
  inner: {
    async mutate(port, seed) {
      write32(port, REG.mutate, seed);
      write64(port, REG.window, 0);
      write64(port, WINDOW, seed);
    },
    async hash(port) {
      const hash = read64(port, REG.hash);
      return `${(hash & 0xffffffffn).toString(16)}:${(hash >> 32n).toString(16)}`;
    },
  },
};
