// devices/pci/config-space.ts and bars.ts by PCI 3.0: masks, sizing, decoding that follows the command register.
import { describe, expect, it } from 'vitest';
import type { Region } from '../../../devices/contract.ts';
import { type BarKind, Bars } from '../../../devices/pci/bars.ts';
import { COMMAND, ConfigSpace, HEADER } from '../../../devices/pci/config-space.ts';
import { StateError } from '../../../native/errno.ts';
import { fakeHost } from '../../fakes/device-host.ts';

const IDENTITY = {
  vendorId: 0x1234,
  deviceId: 0x5678,
  classCode: 0x010802,
  revision: 3,
  subsystemVendorId: 0xaaaa,
  subsystemId: 0xbbbb,
};
const GIB = 2 ** 30;

function region(name: string, size: number): Region {
  return { name, size, read: (offset) => offset & 0xff, write: () => {}, wide: null, fast: null };
}

function make(...wanted: { index: number; kind: BarKind; size: number }[]) {
  const host = fakeHost();
  const config = new ConfigSpace();
  config.setIdentity(IDENTITY);
  const bars = new Bars(config, host.bus, host.log);
  const mapped: string[] = [];
  for (const bar of wanted) {
    bars.add({
      ...bar,
      prefetchable: false,
      region: region(`bar${bar.index}`, bar.size),
      mapping: {
        placed: (base) => mapped.push(`+${bar.index}@${base.toString(16)}`),
        removed: () => mapped.push(`-${bar.index}`),
      },
    });
  }
  const write = (offset: number, value: number, width: 1 | 2 | 4 = 4) => {
    config.write(offset, width, value);
    if (bars.touches(offset, width)) bars.update();
  };
  const read = (offset: number) => config.read(offset, 4);
  return { host, config, bars, mapped, write, read };
}

describe('configuration space', () => {
  it('has the identity where the header says, and no guest changes it', () => {
    const { config, read } = make();
    for (let offset = 0; offset < 0x40; offset += 4) {
      if (offset !== HEADER.command && offset !== HEADER.cacheLineSize && offset !== 0x3c)
        config.write(offset, 4, 0xffffffff);
    }
    expect(read(0)).toBe(0x56781234);
    expect(read(8)).toBe(0x01080203);
    expect(read(0x2c)).toBe(0xbbbbaaaa);
  });

  it('keeps unwritable command bits zero and clears status bits that are written one', () => {
    const { config } = make();
    config.write(HEADER.command, 2, 0xffff);
    expect(config.read(HEADER.command, 2)).toBe(0x0507);
    config.set(HEADER.status, 2, 0xf910);
    config.write(HEADER.status, 2, 0x8000);
    expect(config.read(HEADER.status, 2)).toBe(0x7910);
  });

  it('chains capabilities; the list ends and the status bit says that there is one', () => {
    const { config } = make();
    const ids = [0x05, 0x11, 0x01];
    for (const id of ids) config.addCapability(id, 0x0c);
    expect(config.read(HEADER.status, 2) & 0x10).toBe(0x10);
    const seen: number[] = [];
    for (let at = config.read(HEADER.capabilities, 1); at !== 0; at = config.read(at + 1, 1))
      seen.push(config.read(at, 1));
    expect(seen.sort()).toEqual([...ids].sort());
    expect(() => config.addCapability(0x09, 0xf0)).toThrow(RangeError);
  });

  it('chains extended capabilities from 0x100', () => {
    const { config } = make();
    config.addExtendedCapability(0x0001, 2, 0x48);
    const second = config.addExtendedCapability(0x000e, 1, 8);
    expect(config.read(0x100, 4)).toBe(0x0001 + 0x20000 + second * 2 ** 20);
    expect(config.read(second, 4)).toBe(0x1000e);
    expect(config.save().length).toBe(4096);
  });

  it('refuses the state of another device', () => {
    const { config } = make();
    const other = new ConfigSpace();
    other.setIdentity({ ...IDENTITY, deviceId: 0x9999 });
    expect(() => config.check(other.save())).toThrow(StateError);
    const moved = new ConfigSpace();
    moved.setIdentity(IDENTITY);
    moved.write(HEADER.command, 2, COMMAND.busMaster);
    config.restore(config.check(moved.save()));
    expect(config.read(HEADER.command, 2)).toBe(COMMAND.busMaster);
  });
});

describe('BAR sizing (PCI 3.0, 6.2.5.1)', () => {
  it('all-ones read back as the size and the type', () => {
    const { write, read } = make(
      { index: 0, kind: 'mem32', size: 0x4000 },
      { index: 1, kind: 'io', size: 0x20 },
      { index: 2, kind: 'mem64', size: 8 * GIB },
      { index: 4, kind: 'mem64', size: 0x100000 },
    );
    for (let bar = 0; bar < 6; bar++) write(HEADER.bar0 + 4 * bar, 0xffffffff);
    expect([0, 1, 2, 3, 4, 5].map((bar) => read(HEADER.bar0 + 4 * bar))).toEqual([
      0xffffc000, 0x0000ffe1, 0x00000004, 0xfffffffe, 0xfff00004, 0xffffffff,
    ]);
  });

  it('BARs that are not there read zero', () => {
    const { write, read } = make({ index: 0, kind: 'mem32', size: 16 });
    write(0x14, 0xffffffff);
    write(HEADER.romBar, 0xffffffff);
    expect([read(0x14), read(HEADER.romBar)]).toEqual([0, 0]);
  });

  it.each([
    [{ index: 0, kind: 'mem32', size: 3000 }, 'not a power of two'],
    [{ index: 5, kind: 'mem64', size: 4096 }, 'no upper half'],
    [{ index: 0, kind: 'io', size: 512 }, 'too big for I/O'],
    [{ index: 6, kind: 'mem32', size: 4096 }, 'no such BAR'],
  ] as const)('refuses %o: %s', (bar, _why) => {
    expect(() => make(bar)).toThrow(RangeError);
  });
});

describe('BAR decoding', () => {
  const MEM = { index: 0, kind: 'mem32', size: 0x1000 } as const;

  it('follows the command register', () => {
    const { write, host, mapped, bars } = make(MEM, { index: 1, kind: 'io', size: 8 });
    write(0x10, 0xe0000000);
    write(0x14, 0xc000);
    expect(host.bus.windows.length).toBe(0);
    write(HEADER.command, COMMAND.memory, 2);
    expect(host.bus.in(0xe0000042, 1, 'mmio')).toBe(0x42);
    expect(host.bus.in(0xc003)).toBe(0xff);
    write(HEADER.command, COMMAND.io, 2);
    expect(host.bus.in(0xe0000042, 1, 'mmio')).toBe(0xff);
    expect(host.bus.in(0xc003)).toBe(3);
    expect([bars.base(0), bars.base(1)]).toEqual([null, 0xc000]);
    expect(mapped).toEqual(['+0@e0000000', '-0', '+1@c000']);
  });

  it('moves with a write, through the sizing value, without decoding in between', () => {
    const { write, mapped } = make(MEM);
    write(HEADER.command, COMMAND.memory, 2);
    write(0x10, 0xe0000000);
    write(0x10, 0xffffffff);
    write(0x10, 0xe0002000);
    write(0x10, 0xe0002000);
    expect(mapped).toEqual(['+0@e0000000', '-0', '+0@e0002000']);
  });

  it('a 64-bit BAR goes above 4 GiB, half by half; what no x86 can address is not decoded', () => {
    const { write, bars } = make({ index: 0, kind: 'mem64', size: 0x10000 });
    write(HEADER.command, COMMAND.memory, 2);
    write(0x14, 0x20);
    expect(bars.base(0)).toBe(0x20 * 2 ** 32);
    write(0x10, 0x40000);
    expect(bars.base(0)).toBe(0x20 * 2 ** 32 + 0x40000);
    write(0x14, 0xffffffff);
    expect(bars.base(0)).toBe(null);
  });

  it('an address that is taken is not decoded until it is free; nothing throws', () => {
    const { write, bars, host } = make(MEM, { index: 1, kind: 'mem32', size: 0x1000 });
    const ram = host.bus.claim({ space: 'mmio', base: 0x1000, region: region('ram', 0x1000) });
    write(HEADER.command, COMMAND.memory, 2);
    write(0x10, 0x1000);
    expect(bars.base(0)).toBe(null);
    ram.release();
    write(0x14, 0x5000);
    expect([bars.base(0), bars.base(1)]).toEqual([0x1000, 0x5000]);
    write(0x14, 0x1000);
    expect([bars.base(0), bars.base(1)]).toEqual([0x1000, null]);
    write(0x10, 0x5000);
    expect([bars.base(0), bars.base(1)]).toEqual([0x5000, 0x1000]);
  });

  it('a mapping that cannot be made is taken back, half of it too, and leaves nothing claimed', () => {
    const { host, config } = make();
    const bars = new Bars(config, host.bus, host.log);
    const placed = () => {
      throw new Error('no memory slot left');
    };
    let takenBack = 0;
    const removed = () => {
      takenBack++;
    };
    bars.add({ ...MEM, prefetchable: true, region: region('x', 0x1000), mapping: { placed, removed } });

    config.write(0x10, 4, 0xe0000000);
    config.write(HEADER.command, 2, COMMAND.memory);
    bars.update();
    expect([host.bus.windows.length, takenBack]).toEqual([0, 1]);
    expect(config.read(0x10, 4)).toBe(0xe0000008);
  });

  it('reset and close give everything back', () => {
    const { write, host, bars, read } = make(MEM);
    write(HEADER.command, COMMAND.memory, 2);
    write(0x10, 0xe0000000);
    bars.reset();
    expect([host.bus.windows.length, read(0x10)]).toEqual([0, 0]);
    write(0x10, 0xe0000000);
    bars.close();
    expect(host.bus.windows.length).toBe(0);
  });
});
