// Exercisers: an author's file is taken or refused in one line; ours are found by the ids in config space; edu's and vfio-bringup's registers are
// written as their documents have it, seen by a fake BAR.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { type ExerciserPort, exerciserFor, guarded, loadExerciser } from '../../../devices/vfio/check/exerciser.ts';
import { Unreachable } from '../../../devices/vfio/check/rule.ts';
import { kvmNode } from '../../../native/addon.ts';
import { type FakeUart, uartPort } from '../../fakes/uart-port.ts';

const dir = mkdtempSync(join(tmpdir(), 'ferry-exerciser-'));
afterAll(() => rmSync(dir, { recursive: true }));

function file(name: string, text: string): string {
  const path = join(dir, name);
  writeFileSync(path, text);
  return path;
}

/** A BAR that keeps what is written, and the order of the writes. */
function bar(): ExerciserPort & { readonly writes: [number, bigint][]; readonly bytes: DataView } {
  const bytes = new DataView(new ArrayBuffer(4096));
  const writes: [number, bigint][] = [];
  const ram = kvmNode().createRam(2 ** 20, { hugePages: false, populate: false });
  return {
    bytes,
    writes,
    ram,
    iova: 0x100000,
    sleep: async () => {},
    readRegion: (_index, offset, into) => into.set(new Uint8Array(bytes.buffer, offset, into.length)),
    writeRegion: (_index, offset, from) => {
      let value = 0n;
      for (let i = from.length - 1; i >= 0; i--) value = (value << 8n) | BigInt(from[i] as number);
      writes.push([offset, value]);
    },
  };
}

describe("an author's exerciser", () => {
  it('is taken with what it can do, null for what it cannot', async () => {
    const path = file(
      'good.mjs',
      'export default { name: "mine", matches: () => true, claims: {}, dma: null, peer: null, target: null, interrupt: null, inner: { mutate() {}, hash() {} } };',
    );
    expect((await loadExerciser(path)).name).toBe('mine');
  });

  it.each([
    ['syntax', 'export default {', 'cannot be loaded'],
    ['none', 'export const x = 1;', 'no object'],
    ['nameless', 'export default { claims: {} };', 'no name'],
    [
      'silent',
      'export default { name: "x", claims: {}, dma: null, peer: null, target: null, interrupt: null };',
      "no 'inner'",
    ],
    [
      'targetless',
      'export default { name: "x", claims: {}, dma: null, peer: null, interrupt: null, inner: null };',
      "no 'target'",
    ],
    ['half', 'export default { name: "x", claims: {}, dma: {}, interrupt: null, inner: null };', 'no startWrite()'],
  ])('is refused in one line: %s', async (name, text, message) => {
    await expect(loadExerciser(file(`${name}.mjs`, text))).rejects.toThrow(message);
  });

  it('that throws leaves its rule unreached', async () => {
    const broken = guarded({
      name: 'x',
      matches: () => true,
      claims: { deterministic: false, checksummed: false, p2pAware: false },
      dma: null,
      peer: null,
      target: null,
      interrupt: { index: 1, vector: 0, raise: () => Promise.reject(new Error('no such register')) },
      inner: null,
    });
    await expect(broken.interrupt!.raise(bar())).rejects.toThrow(
      new Unreachable('the exerciser gave up: no such register'),
    );
  });
});

describe('our exercisers', () => {
  it('are chosen by vendor and device id', () => {
    expect(exerciserFor(0x1234, 0x11e8)?.name).toBe('edu');
    expect(exerciserFor(0x1234, 0xfe01)?.name).toBe('vfio-bringup');
    expect(exerciserFor(0x4348, 0x3253)?.name).toBe('mtty');
    expect(exerciserFor(0x8086, 0x10d3)).toBeNull();
  });

  it('edu: fills its buffer from RAM, then writes it out; never beyond the buffer', async () => {
    const port = bar();
    const dma = exerciserFor(0x1234, 0x11e8)!.dma!;
    await dma.startWrite(port, 0x105000, dma.maxBytes, 3);
    const commands = port.writes.filter(([register]) => register === 0x98).map(([, value]) => value);
    expect(commands).toEqual([1n, 3n]);
    const lows = (register: number) => port.writes.filter(([at]) => at === register).map(([, value]) => value);
    expect(lows(0x80)).toEqual([0x100000n + 2n ** 20n - 4096n, 0x40000n]);
    expect(lows(0x88)).toEqual([0x40000n, 0x105000n]);
    expect(lows(0x90)).toEqual([4088n, 4088n]);
    const filled = new Uint8Array(dma.maxBytes);
    port.ram.copyOut(2 ** 20 - 4096, filled);
    expect(Buffer.compare(filled, dma.pattern(3, dma.maxBytes))).toBe(0);
  });

  it('vfio-bringup: FILL with its pattern, the command last', async () => {
    const port = bar();
    const dma = exerciserFor(0x1234, 0xfe01)!.dma!;
    await dma.startWrite(port, 0x105000, 4096, 7);
    expect(port.writes.at(-1)).toEqual([0x5c, 3n]);
    expect(port.writes).toContainEqual([0x40, 0x105000n]);
    expect(port.writes).toContainEqual([0x54, 7n]);
    // README, "DMA", worked out by hand for seed 0, words 0 and 1.
    const words = new DataView(dma.pattern(0, 16).buffer);
    expect(words.getBigUint64(0, true)).toBe(0n);
    expect(words.getBigUint64(8, true)).toBe(0x5692161d100b05e5n);
  });

  it.each([1, 2] as const)(
    'mtty with %i ports: hashing changes nothing, and each part of the state shows',
    async (count) => {
      const port = uartPort(count);
      const { mutate, hash } = exerciserFor(0x4348, 0x3253)!.inner!;
      const hashes = new Set([await hash(port)]);
      for (const seed of [5, 7, 9, 33]) {
        await mutate(port, seed);
        const before = structuredClone(port.uarts);
        hashes.add(await hash(port));
        expect(port.uarts).toEqual(before);
      }
      expect(hashes.size).toBe(5);
      const changes: readonly ((uart: FakeUart) => void)[] = [
        (uart) => uart.fifo.pop(),
        (uart) => uart.fifo.reverse(),
        (uart) => (uart.ier ^= 1),
        (uart) => (uart.scratch ^= 0x80),
        (uart) => (uart.mcr ^= 0x20),
        (uart) => (uart.divisor ^= 0x100),
        (uart) => (uart.lcr ^= 0x80),
        (uart) => (uart.overrun = true),
      ];
      for (const change of changes) {
        const last = await hash(port);
        change(port.uarts.at(-1) as FakeUart);
        expect(await hash(port), String(change)).not.toBe(last);
      }
    },
  );

  it('mtty: raises the interrupt of its empty transmitter once, whatever state it is in', async () => {
    const port = uartPort(2);
    const { inner, interrupt } = exerciserFor(0x4348, 0x3253)!;
    await inner!.mutate(port, 5);
    await interrupt!.raise(port);
    await interrupt!.raise(port);
    expect(port.uarts.map(({ raised }) => raised)).toEqual([2, 0]);
  });
});
