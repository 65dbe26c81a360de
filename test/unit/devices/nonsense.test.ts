// Whatever a guest does to a device: nothing throws, every read is a number of the width that was asked for, and the state that comes
// of it still moves. Random accesses from a printed seed (FERRY_SEED=n repeats one).
import { resolve } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import type { Device, DeviceType, Region, Width } from '../../../devices/contract.ts';
import { isPciFunction } from '../../../devices/pci/function.ts';
import { HostBridge } from '../../../devices/pci/host-bridge.ts';
import { createPciFunction, type SimpleInterrupts } from '../../../devices/pci/simple-function.ts';
import { DebugExit } from '../../../devices/platform/debug-exit.ts';
import { KeyboardController } from '../../../devices/platform/i8042.ts';
import { PowerManagement } from '../../../devices/platform/pm.ts';
import { Pvpanic } from '../../../devices/platform/pvpanic.ts';
import { ResetControl } from '../../../devices/platform/reset-control.ts';
import { Rtc } from '../../../devices/platform/rtc.ts';
import { Serial } from '../../../devices/platform/serial.ts';
import { createRegistry } from '../../../devices/registry.ts';
import { packed } from '../../conformance/device-state.ts';
import { type FakeHost, fakeHost } from '../../fakes/device-host.ts';

const ACCESSES = 20_000;
const SEED = Number(process.env['FERRY_SEED'] ?? Math.floor(Math.random() * 2 ** 32));
const EXAMPLE = resolve(import.meta.dirname, '../../../docs/examples/counter-device.js');

/** xorshift32. */
function randomNumbers(seed: number): (below: number) => number {
  let x = seed | 1;
  return (below) => {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    return (x >>> 0) % below;
  };
}

type Make = (host: FakeHost) => Device;
let counter: DeviceType;

function serial(host: FakeHost): Device {
  const line = host.irq.line(4);
  return new Serial({ id: 'serial0', bus: host.bus, base: 0x3f8, line, out: () => {}, log: host.log });
}
function rtc(host: FakeHost): Device {
  const now = () => 1_795_000_000_000;
  return new Rtc({ base: 0x70, line: host.irq.line(8), lowMemory: 2 ** 30, highMemory: 0, now });
}
function attached(device: Device | Promise<Device>): Device {
  const made = device as Device;
  if (isPciFunction(made)) made.attached({ bus: 0, slot: 3, function: 0, gsi: 19 });
  return made;
}
function busOf(host: FakeHost): Device {
  const resetControl = new ResetControl(host, 0x92);
  const ecam = { base: 0xfe000000, size: 0x100000 };
  const bridge = new HostBridge({ configPort: 0xcf8, ecam, gsi: (slot) => 16 + (slot % 8), resetControl });
  const type = counter.create(host, 'counter0', {});
  if (isPciFunction(type as Device)) bridge.attach([{ function: type as never, slot: 0x1f }]);
  return bridge;
}
function composed(host: FakeHost, interrupts: SimpleInterrupts): Device {
  const registers = new Uint8Array(16);
  const read = (offset: number) => registers[offset & 15]!;
  const write = (offset: number, _width: Width, value: number) => {
    registers[offset & 15] = value;
    pci.raise(offset & 3);
    pci.setLine((value & 1) === 1);
  };
  const pci = createPciFunction({
    ...{ host, id: 'x', type: 'x', vendorId: 1, deviceId: 2, classCode: 0, interrupts, state: null },
    bars: [
      { index: 0, kind: 'io', size: 16, read, write },
      { index: 2, kind: 'mem64', size: 32, read, write },
    ],
    reset: () => {},
  });
  return attached(pci);
}

const DEVICES: [string, Make][] = [
  ['serial', serial],
  ['rtc', rtc],
  ['i8042', (host) => new KeyboardController(host, 0x60, 0x64)],
  ['reset control', (host) => new ResetControl(host, 0x92)],
  ['pm', (host) => new PowerManagement({ host, eventPort: 0x600, controlPort: 0x604, sci: host.irq.line(9) })],
  ['pvpanic', (host) => new Pvpanic(host, 0x505)],
  ['debug exit', (host) => new DebugExit(host, 0xf4)],
  ['host bridge with a function', busOf],
  ['the example plug-in', (host) => attached(counter.create(host, 'counter0', {}))],
  ['INTx function', (host) => composed(host, { kind: 'intx' })],
  ['MSI function', (host) => composed(host, { kind: 'msi', count: 4 })],
  ['MSI-X function', (host) => composed(host, { kind: 'msix', count: 3, bar: 4 })],
];

/** All-ones, zero, a few bits or anything. */
function someValue(random: (below: number) => number, width: Width): number {
  const all = 2 ** (8 * width);
  const kind = random(8);
  if (kind === 0) return all - 1;
  if (kind === 1) return 0;
  return kind < 5 ? 2 ** random(8 * width) : random(all);
}

function poke(device: Device, host: FakeHost, random: (below: number) => number): void {
  const width = ([1, 2, 4] as const)[random(3)]!;
  const value = someValue(random, width);
  if (isPciFunction(device) && random(3) === 0) {
    const offset = random(random(2) === 0 ? 0x60 : 0x1000) & -width;
    if (random(2) === 0) device.writeConfig(offset, width, value);
    else expectWidth(device.readConfig(offset, width), width);
    return;
  }
  const regions: Region[] = host.bus.windows.map((window) => window.region);
  const region = regions[random(Math.max(1, regions.length))];
  if (region === undefined || region.size < width) return;
  // Often the low offsets: that is where registers are.
  const span = random(2) === 0 ? Math.min(region.size, 64) : region.size;
  const offset = random(Math.max(1, span - width + 1));
  if (random(2) === 0) region.write(offset, width, value);
  else expectWidth(region.read(offset, width), width);
}

function expectWidth(value: number, width: Width): void {
  if (!Number.isInteger(value) || value < 0 || value >= 2 ** (8 * width)) {
    throw new Error(`a read of ${width} bytes gave ${value}`);
  }
}

beforeAll(async () => {
  const registry = createRegistry([]);
  await registry.loadPlugin(EXAMPLE);
  counter = registry.get('counter')!;
  console.log(`seed ${SEED}`);
});

describe(`random accesses, FERRY_SEED=${SEED}`, () => {
  it.each(DEVICES)('%s', async (_name, make) => {
    const random = randomNumbers(SEED);
    const host = fakeHost();
    const device = make(host);
    host.bus.plug(device);
    for (let i = 0; i < ACCESSES; i++) {
      poke(device, host, random);
      if (random(2000) === 0) device.interrupts?.detach();
      if (random(1000) === 0) device.interrupts?.attach();
      if (random(4000) === 0) await device.reset();
    }
    if (device.state !== null) {
      const there = make(fakeHost());
      const state = packed(device.state.save());
      there.state!.load(state, device.state.version);
      expect(packed(there.state!.save())).toEqual(state);
      await there.close();
    }
    await device.close();
    const left = host.bus.windows.filter((window) => !device.claims.some((claim) => claim.region === window.region));
    expect(left.filter((window) => !window.region.name.startsWith('counter0'))).toEqual([]);
  });
});
