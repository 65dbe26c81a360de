// devices/pci/host-bridge.ts: both ways to configuration space, who is where, and what a guest's odd accesses find.
import { describe, expect, it } from 'vitest';
import type { PciFunction } from '../../../devices/contract.ts';
import { HostBridge } from '../../../devices/pci/host-bridge.ts';
import { createPciFunction } from '../../../devices/pci/simple-function.ts';
import { ResetControl } from '../../../devices/platform/reset-control.ts';
import { VmmError } from '../../../native/errno.ts';
import { expectStateConformance } from '../../conformance/device-state.ts';
import { type FakeHost, fakeHost } from '../../fakes/device-host.ts';

const ECAM = 0xfe000000;

function device(host: FakeHost, id: string, deviceId = 0x1111): PciFunction {
  const none = { kind: 'none' } as const;
  return createPciFunction({
    ...{
      host,
      id,
      type: 'test',
      vendorId: 0x1b36,
      deviceId,
      classCode: 0xff0000,
      bars: [],
      interrupts: none,
      state: null,
    },
    reset: () => {},
  });
}

function make(...wanted: [string, number | null][]) {
  const host = fakeHost();
  const resetControl = new ResetControl(host, 0x92);
  const ecam = { base: ECAM, size: 0x100000 };
  const bridge = new HostBridge({ configPort: 0xcf8, ecam, gsi: (slot) => 16 + (slot % 8), resetControl });
  host.bus.plug(bridge);
  bridge.attach(wanted.map(([id, slot], i) => ({ function: device(host, id, 0x2000 + i), slot })));
  const { bus } = host;
  const read = (bus_: number, slot: number, fn: number, register: number) => {
    bus.out(0xcf8, 0x80000000 + bus_ * 0x10000 + slot * 0x800 + fn * 0x100 + register, 4);
    return bus.in(0xcfc, 4);
  };
  return { host, bridge, bus, read };
}

describe('configuration mechanism 1 (PCI 3.0, 3.2.2.3.2)', () => {
  it('finds the host bridge at 00:00.0 and functions in their slots; all-ones elsewhere', () => {
    const { read } = make(['a', null], ['b', 5]);
    expect(read(0, 0, 0, 0)).toBe(0x00081b36);
    expect(read(0, 0, 0, 8) >>> 8).toBe(0x060000);
    expect(read(0, 1, 0, 0)).toBe(0x20001b36);
    expect(read(0, 5, 0, 0)).toBe(0x20011b36);
    for (const [b, s, f] of [
      [0, 2, 0],
      [0, 1, 1],
      [1, 1, 0],
      [255, 31, 7],
    ] as const) {
      expect(read(b, s, f, 0)).toBe(0xffffffff);
    }
  });

  it('takes bytes and words of the data window', () => {
    const { bus, read } = make(['a', 1]);
    read(0, 1, 0, 0);
    expect([0, 1, 2, 3].map((i) => bus.in(0xcfc + i))).toEqual([0x36, 0x1b, 0x00, 0x20]);
    expect(bus.in(0xcfe, 2)).toBe(0x2000);
    expect(bus.in(0xcfd, 2)).toBe(0x001b);
    read(0, 1, 0, 0x3c);
    bus.out(0xcfc, 0x0b);
    expect(bus.in(0xcfc)).toBe(0x0b);
  });

  it('latches dwords only, and reserved bits read zero', () => {
    const { bus } = make();
    bus.out(0xcf8, 0xffffffff, 4);
    expect(bus.in(0xcf8, 4)).toBe(0x80fffffc);
    bus.out(0xcf8, 0x00, 1);
    bus.out(0xcf8, 0x0000, 2);
    expect(bus.in(0xcf8, 4)).toBe(0x80fffffc);
    expect(bus.in(0xcf8, 2)).toBe(0xffff);
  });

  it('without the enable bit the data window is nobody', () => {
    const { bus } = make();
    bus.out(0xcf8, 0, 4);
    expect(bus.in(0xcfc, 4)).toBe(0xffffffff);
  });

  it('0xcf9 by bytes is the reset control, and never posted: no vCPU runs past a reset', () => {
    const { host, bus } = make();
    expect(bus.find(0xcf8, 4, 'pio')!.fast).toBe(null);
    bus.out(0xcf9, 0x02);
    expect(bus.in(0xcf9)).toBe(0x02);
    bus.out(0xcf9, 0x06);
    expect(host.asked).toEqual(['reset guest-reset']);
    expect(bus.in(0xcf8, 4)).toBe(0);
  });
});

describe('ECAM (PCIe 5.0, 7.2.2)', () => {
  it('is the same space by address, to 4 KiB', () => {
    const { bus, read } = make(['a', 3]);
    const at = ECAM + 3 * 0x8000;
    expect(bus.in(at, 4, 'mmio')).toBe(read(0, 3, 0, 0));
    expect(bus.in(at + 2, 2, 'mmio')).toBe(0x2000);
    expect(bus.in(at + 0x100, 4, 'mmio')).toBe(0);
    bus.out(at + 0x3c, 0x0b, 1, 'mmio');
    expect(read(0, 3, 0, 0x3c) & 0xff).toBe(0x0b);
    expect(bus.in(ECAM + 4 * 0x8000, 4, 'mmio')).toBe(0xffffffff);
    expect(bus.in(at + 0x1000, 4, 'mmio')).toBe(0xffffffff);
  });

  it('splits what is not aligned', () => {
    const { bus } = make(['a', 3]);
    expect(bus.in(ECAM + 3 * 0x8000 + 1, 4, 'mmio')).toBe(0x0020001b);
  });
});

describe('slots', () => {
  it('go to those that ask first, then in order; INTx goes round the eight lines', () => {
    const { bridge } = make(['a', null], ['b', 1], ['c', null]);
    expect(bridge.functions.map((f) => f.id)).toEqual(['b', 'a', 'c']);
  });

  it('refuse a second one, one that is not there, and the thirty-second device', () => {
    expect(() => make(['a', 4], ['b', 4])).toThrow(/b: PCI slot 0x4 is taken by a/);
    expect(() => make(['a', 0])).toThrow(VmmError);
    expect(() => make(['a', 32])).toThrow(VmmError);
    const all = Array.from({ length: 32 }, (_, i): [string, null] => [`d${i}`, null]);
    expect(() => make(...all)).toThrow(/no free PCI slot for d31/);
  });
});

it('state keeps to the contract', () => {
  expectStateConformance({ make: () => make().bridge, mutate: (d) => d.claims[0]!.region.write(0, 4, 0x80001234) });
});
