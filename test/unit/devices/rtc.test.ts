// devices/platform/rtc.ts by the MC146818A datasheet and by what Linux's rtc_cmos and mc146818 code do.
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { Rtc } from '../../../devices/platform/rtc.ts';
import { expectStateConformance } from '../../conformance/device-state.ts';
import { fakeHost } from '../../fakes/device-host.ts';

const START = Date.UTC(2026, 10, 20, 23, 59, 57, 250);
const MIB = 2 ** 20;

function make(lowMemory = 512 * MIB, highMemory = 0) {
  const host = fakeHost();
  const device = new Rtc({ base: 0x70, line: host.irq.line(8), lowMemory, highMemory, now: () => Date.now() });
  host.bus.plug(device);
  const get = (register: number) => {
    host.bus.out(0x70, register);
    return host.bus.in(0x71);
  };
  const set = (register: number, value: number) => {
    host.bus.out(0x70, register);
    host.bus.out(0x71, value);
  };
  const time = () => [0x32, 9, 8, 7, 4, 2, 0].map((r) => get(r).toString(16).padStart(2, '0')).join(' ');
  return { host, device, get, set, time, irq: () => host.irq.levels.get(8) ?? false };
}

beforeEach(() => {
  vi.useFakeTimers({ now: START });
});
afterEach(() => {
  vi.useRealTimers();
});

describe('time', () => {
  it('is the wall clock in BCD, 24 hours, with UIP clear and the battery good', () => {
    const { get, time } = make();
    expect(time()).toBe('20 26 11 20 23 59 57');
    expect(get(6)).toBe(6);
    expect(get(0xa) & 0x80).toBe(0);
    expect(get(0xd)).toBe(0x80);
    vi.setSystemTime(START + 3000);
    expect(time()).toBe('20 26 11 21 00 00 00');
  });

  it('comes in binary and in 12 hours where register B says so', () => {
    const { get, set } = make();
    set(0xb, 0x04);
    expect([get(4), get(2), get(0)]).toEqual([0x80 | 11, 59, 57]);
    set(0xb, 0x00);
    expect(get(4)).toBe(0x91);
  });

  it('can be set with the SET bit, all at once, and runs on from there', () => {
    const { set, time } = make();
    set(0xb, 0x82);
    for (const [register, value] of [
      [0x32, 0x19],
      [9, 0x99],
      [8, 0x12],
      [7, 0x31],
      [4, 0x23],
      [2, 0x59],
      [0, 0x59],
    ]) {
      set(register!, value!);
    }
    vi.setSystemTime(START + 10_000);
    expect(time()).toBe('19 99 12 31 23 59 59');
    set(0xb, 0x02);
    vi.setSystemTime(START + 11_000);
    expect(time()).toBe('20 00 01 01 00 00 00');
  });

  it('nonsense leaves the clock as it was', () => {
    const { set, time } = make();
    set(0xb, 0x82);
    set(8, 0x77);
    set(0xb, 0x02);
    expect(time()).toBe('20 26 11 20 23 59 57');
  });

  it('a single register written without the SET bit moves the clock', () => {
    const { set, time } = make();
    set(4, 0x05);
    expect(time()).toBe('20 26 11 20 05 59 57');
  });
});

describe('interrupts on IRQ 8', () => {
  it('update: at the next full second; reading C clears the flags and the line', () => {
    const { get, set, irq } = make();
    set(0xb, 0x12);
    vi.advanceTimersByTime(749);
    expect(irq()).toBe(false);
    vi.advanceTimersByTime(1);
    expect(irq()).toBe(true);
    expect(get(0xc)).toBe(0x90);
    expect(irq()).toBe(false);
    expect(get(0xc)).toBe(0);
    vi.advanceTimersByTime(1000);
    expect(get(0xc)).toBe(0x90);
  });

  it('alarm: when all three match, 11xxxxxx matching always', () => {
    const { get, set, irq } = make();
    set(1, 0x02);
    set(3, 0xff);
    set(5, 0x00);
    set(0xb, 0x22);
    vi.advanceTimersByTime(4749);
    expect(irq()).toBe(false);
    vi.advanceTimersByTime(1);
    expect(irq()).toBe(true);
    expect(get(0xc)).toBe(0xb0);
  });

  it('an alarm whose second passed while nobody looked is found afterwards', () => {
    const { get, set } = make();
    set(1, 0x58);
    set(3, 0x59);
    set(5, 0x23);
    vi.setSystemTime(START + 5000);
    expect(get(0xc) & 0x20).toBe(0x20);
  });

  it('an alarm in 12-hour mode, and one that no time matches', () => {
    const { get, set } = make();
    set(0xb, 0x00);
    set(1, 0x00);
    set(3, 0x30);
    set(5, 0x80 | 0x01);
    vi.setSystemTime(Date.UTC(2026, 10, 21, 13, 30, 0));
    expect(get(0xc) & 0x20).toBe(0x20);
    set(3, 0x77);
    vi.setSystemTime(Date.UTC(2026, 10, 23));
    expect(get(0xc) & 0x30).toBe(0x10);
  });

  it('periodic: at the rate of register A', () => {
    const { get, set, irq } = make();
    set(0xa, 0x2f);
    set(0xb, 0x42);
    vi.advanceTimersByTime(499);
    expect(irq()).toBe(false);
    vi.advanceTimersByTime(1);
    expect(get(0xc) & 0xc0).toBe(0xc0);
    expect(irq()).toBe(false);
    vi.advanceTimersByTime(500);
    expect(irq()).toBe(true);
  });

  it('no timer runs unless one is enabled, and none after reset or close', () => {
    const { device, set } = make();
    expect(vi.getTimerCount()).toBe(0);
    set(0xb, 0x72);
    expect(vi.getTimerCount()).toBe(2);
    device.reset();
    expect(vi.getTimerCount()).toBe(0);
    set(0xb, 0x12);
    device.close();
    expect(vi.getTimerCount()).toBe(0);
  });
});

describe('the gate of a move', () => {
  it('shut, no timer runs and no line rises; opened, what passed meanwhile is raised at once', () => {
    const { device, set, irq, get } = make();
    set(0xb, 0x52);
    device.interrupts.detach();
    expect(vi.getTimerCount()).toBe(0);
    vi.advanceTimersByTime(5000);
    expect(irq()).toBe(false);
    device.interrupts.attach();
    expect(irq()).toBe(true);
    expect(get(0xc) & 0x10).toBe(0x10);
    expect(vi.getTimerCount()).toBe(2);
    device.close();
  });

  it('a loaded clock waits for it', () => {
    const a = make();
    a.set(0xb, 0x12);
    const b = make();
    b.device.state.load(a.device.state.save(), 1);
    a.device.close();
    vi.advanceTimersByTime(3000);
    expect(b.irq()).toBe(false);
    b.device.interrupts.attach();
    expect(b.irq()).toBe(true);
    b.device.close();
  });
});

describe('NVRAM', () => {
  it('holds what is written, and the memory sizes', () => {
    const { get, set } = make(3072 * MIB, 5120 * MIB);
    set(0x40, 0x5a);
    expect(get(0x40)).toBe(0x5a);
    expect(get(0x15) | (get(0x16) << 8)).toBe(640);
    expect(get(0x34) | (get(0x35) << 8)).toBe((3072 - 16) * 16);
    expect(get(0x5b) | (get(0x5c) << 8) | (get(0x5d) << 16)).toBe(5120 * 16);
    expect(make(64 * MIB).get(0x34)).toBe((48 * 16) & 0xff);
  });

  it('status registers C and D cannot be written', () => {
    const { get, set } = make();
    set(0xc, 0xff);
    set(0xd, 0);
    expect([get(0xc), get(0xd)]).toEqual([0, 0x80]);
  });
});

describe('state', () => {
  it('keeps to the contract', () => {
    expectStateConformance({ make: () => make().device, mutate: (d) => d.claims[0]!.region.write(0, 2, 0x1205) });
  });

  it('a set clock, its alarm and a raised interrupt move', () => {
    const a = make();
    a.set(4, 0x05);
    a.set(1, 0x00);
    a.set(3, 0x00);
    a.set(5, 0x06);
    a.set(0xb, 0x32);
    vi.advanceTimersByTime(1000);
    expect(a.irq()).toBe(true);
    const b = make();
    b.device.state.load(a.device.state.save(), 1);
    expect(b.irq()).toBe(true);
    expect(b.time()).toBe('20 26 11 20 05 59 58');
    expect(b.get(0xc)).toBe(0x90);
    b.device.interrupts.attach();
    vi.advanceTimersByTime(2000);
    expect(b.get(0xc)).toBe(0xb0);
    a.device.close();
    b.device.close();
  });
});
