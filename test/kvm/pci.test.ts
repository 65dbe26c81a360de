// PCI as a guest on /dev/kvm finds it: test/guests/pci.c enumerates bus 0 by both ways, sizes and moves BARs, and takes interrupts of the
// documented plug-in (MSI, masked and pending too) and of a device with INTA#. The guest judges; here is what its console must say.
import { resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeAll, describe, expect, it } from 'vitest';
import type { DeviceType } from '../../devices/contract.ts';
import { createPciFunction } from '../../devices/pci/simple-function.ts';
import { createRegistry } from '../../devices/registry.ts';
import type { DeviceConfig } from '../../vmm/api.ts';
import { bootFlat, type FlatMachine, type FlatOptions } from './flat-machine.ts';
import { moveByHand } from './move-by-hand.ts';

const EXAMPLE = resolve(import.meta.dirname, '../../docs/examples/counter-device.js');
/** Code 0 by port 0xf4; the guest leaves with 3 where something is wrong. */
const GUEST_CONTENT = 1;
const LOOPS = 300;

/** One I/O BAR whose bit 0 is INTA#, and a 64-bit memory BAR to be sized. */
const LINE_TYPE: DeviceType = {
  name: 'line',
  help: 'drives INTA# by an I/O port',
  properties: {},
  create(host, id) {
    let level = 0;
    const set = (value: number) => {
      level = value & 1;
      pci.setLine(level === 1);
    };
    const pci = createPciFunction({
      ...{ host, id, type: 'line', vendorId: 0x1b36, deviceId: 0x10fe, classCode: 0x078000 },
      bars: [
        { index: 0, kind: 'io', size: 8, read: () => level, write: (_offset, _width, value) => set(value) },
        { index: 2, kind: 'mem64', size: 0x10000, read: () => 0, write: () => {} },
      ],
      interrupts: { kind: 'intx' },
      state: null,
      reset: () => set(0),
    });
    return pci;
  },
};

const machines: FlatMachine[] = [];
let types: DeviceType[] = [];
beforeAll(async () => {
  const registry = createRegistry([LINE_TYPE]);
  await registry.loadPlugin(EXAMPLE);
  types = registry.names().map((name) => registry.get(name)!);
});
afterEach(async () => {
  for (const { machine } of machines.splice(0)) await machine.close();
});

function device(type: string, slot: number | null): DeviceConfig {
  return { type, id: `${type}0`, slot, properties: {} };
}

function lines(flat: FlatMachine): string[] {
  return flat.text().trimEnd().split('\n');
}

async function boot(options: FlatOptions): Promise<FlatMachine> {
  const flat = await bootFlat('pci', { ...options, types, noReboot: true });
  machines.push(flat);
  await flat.machine.start();
  return flat;
}

async function moved(from: FlatMachine, options: FlatOptions): Promise<FlatMachine> {
  const to = await moveByHand(from.machine, 'pci', { ...options, types, noReboot: true });
  machines.push(to);
  return to;
}

describe('a guest on the PCI bus', () => {
  it('finds the host bridge alone on an empty bus', async () => {
    const flat = await boot({});
    const { exitCode } = await flat.machine.ended;
    expect(lines(flat)).toEqual(['function slot=0 id=0x81b36 class=0x60000', 'done']);
    expect(exitCode).toBe(GUEST_CONTENT);
  });

  it('sizes and moves BARs, takes MSI (masked and pending too) and INTA#', async () => {
    const flat = await boot({ devices: [device('counter', null), device('line', 0x1d)] });
    const { exitCode } = await flat.machine.ended;
    expect(lines(flat)).toEqual([
      'function slot=0 id=0x81b36 class=0x60000',
      'function slot=1 id=0x10ff1b36 class=0xff0000',
      'bar slot=1 index=0 type=0 size=4096',
      'function slot=29 id=0x10fe1b36 class=0x78000',
      'bar slot=29 index=0 type=1 size=8',
      'bar slot=29 index=2 type=4 size=65536',
      'intx irqs=3',
      'counter moved=1 irqs=2',
      'done',
    ]);
    expect(exitCode).toBe(GUEST_CONTENT);
  });

  it('counts on through pauses and resumes, no interrupt lost or doubled', async () => {
    const flat = await boot({ devices: [device('counter', 5)], append: `loop=${LOOPS}` });
    await flat.said(/loop n=1 /);
    let pauses = 0;
    for (; pauses < 10 && flat.machine.state === 'running'; pauses++) {
      await flat.machine.pause('paused');
      flat.machine.detachInterrupts();
      flat.machine.attachInterrupts();
      await flat.machine.start();
      await sleep(5);
    }
    const { exitCode } = await flat.machine.ended;
    expect(lines(flat).at(-2)).toBe(`loop n=${LOOPS} count=${7 + LOOPS} irqs=${2 + LOOPS}`);
    expect(exitCode).toBe(GUEST_CONTENT);
    expect(pauses).toBe(10);
  });

  it('goes on in another machine, and again in a third, with the plug-in as it was', async () => {
    const options = { devices: [device('counter', 5), device('line', null)], append: `loop=${LOOPS}` };
    const first = await boot(options);
    await first.said(/loop n=20 /);
    const second = await moved(first, options);
    await second.said(/loop n=\d*[05] /);
    const third = await moved(second, options);
    const { exitCode } = await third.machine.ended;
    expect(exitCode).toBe(GUEST_CONTENT);
    const all = (first.text() + second.text() + third.text()).trimEnd().split('\n');
    const counted = all.filter((line) => line.startsWith('loop '));
    expect(counted).toEqual(counted.map((_, i) => `loop n=${i + 1} count=${8 + i} irqs=${3 + i}`));
    expect(counted.length).toBe(LOOPS);
    expect(second.text()).not.toBe('');
  });
});
