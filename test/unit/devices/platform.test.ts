// The small platform devices: reset ports, keyboard controller, ACPI power management, panic and exit ports.
import { describe, expect, it } from 'vitest';
import { DebugExit } from '../../../devices/platform/debug-exit.ts';
import { KeyboardController } from '../../../devices/platform/i8042.ts';
import { PowerManagement, S5_SLEEP_TYPE } from '../../../devices/platform/pm.ts';
import { Pvpanic } from '../../../devices/platform/pvpanic.ts';
import { ResetControl } from '../../../devices/platform/reset-control.ts';
import { expectStateConformance } from '../../conformance/device-state.ts';
import { fakeHost } from '../../fakes/device-host.ts';

describe('keyboard controller', () => {
  function make() {
    const host = fakeHost();
    const device = new KeyboardController(host, 0x60, 0x64);
    host.bus.plug(device);
    return { host, device, bus: host.bus };
  }

  it('resets by 0xfe at 0x64, as Linux reboot=k does after it has seen the input buffer empty', () => {
    const { host, bus } = make();
    expect(bus.in(0x64) & 0x02).toBe(0);
    bus.out(0x64, 0xfe);
    expect(host.asked).toEqual(['reset guest-reset']);
  });

  it('resets by the output port, too', () => {
    const { host, bus } = make();
    bus.out(0x64, 0xd1);
    bus.out(0x60, 0x03);
    expect(host.asked).toEqual([]);
    bus.out(0x64, 0xd1);
    bus.out(0x60, 0x02);
    expect(host.asked).toEqual(['reset guest-reset']);
  });

  it('lets a probe through: flush ends, self test passes, the control byte is kept, a keyboard never answers', () => {
    const { bus } = make();
    expect(bus.in(0x64) & 1).toBe(0);
    bus.out(0x64, 0xaa);
    expect(bus.in(0x64) & 1).toBe(1);
    expect(bus.in(0x60)).toBe(0x55);
    expect(bus.in(0x64) & 1).toBe(0);
    bus.out(0x64, 0x60);
    bus.out(0x60, 0x47);
    bus.out(0x64, 0x20);
    expect(bus.in(0x60)).toBe(0x47);
    bus.out(0x60, 0xf2);
    expect(bus.in(0x64) & 1).toBe(0);
  });

  it('state keeps to the contract', () => {
    expectStateConformance({ make: () => make().device, mutate: (d) => d.claims[1]!.region.write(0, 1, 0xaa) });
  });
});

describe('reset control', () => {
  function make() {
    const host = fakeHost();
    const device = new ResetControl(host, 0x92);
    host.bus.plug(device);
    return { host, device };
  }

  it('0xcf9 resets when bit 2 rises, and only then', () => {
    const { host, device } = make();
    device.write(0x02);
    expect(host.asked).toEqual([]);
    device.write(0x06);
    device.write(0x06);
    expect(host.asked).toEqual(['reset guest-reset']);
    expect(device.read()).toBe(0x06);
  });

  it('port 0x92 resets by bit 0 and keeps A20 readable', () => {
    const { host } = make();
    expect(host.bus.in(0x92)).toBe(0x02);
    host.bus.out(0x92, 0x00);
    expect(host.bus.in(0x92)).toBe(0x00);
    host.bus.out(0x92, 0x01);
    expect(host.asked).toEqual(['reset guest-reset']);
  });

  it('state keeps to the contract', () => {
    expectStateConformance({ make: () => make().device, mutate: (d) => (d as ResetControl).write(0x02) });
  });
});

describe('power management', () => {
  const PWRBTN = 0x100;
  function make() {
    const host = fakeHost();
    const device = new PowerManagement({ host, eventPort: 0x600, controlPort: 0x604, sci: host.irq.line(9) });
    host.bus.plug(device);
    return { host, device, bus: host.bus, sci: () => host.irq.levels.get(9) ?? false };
  }

  it('S5 ends the machine with 0; other sleep types do nothing (ACPI 6.4, 4.8.3.2.1)', () => {
    const { host, bus } = make();
    bus.out(0x604, (3 << 10) | 0x2001, 2);
    expect(host.asked).toEqual([]);
    bus.out(0x604, (S5_SLEEP_TYPE << 10) | 1, 2);
    expect(host.asked).toEqual([]);
    bus.out(0x604, (S5_SLEEP_TYPE << 10) | 0x2001, 2);
    expect(host.asked).toEqual(['end guest-shutdown 0']);
    expect(bus.in(0x604, 2)).toBe((S5_SLEEP_TYPE << 10) | 1);
  });

  it('ACPI mode is on from the start: SCI_EN reads 1 whatever is written', () => {
    const { bus } = make();
    bus.out(0x604, 0, 2);
    expect(bus.in(0x604, 2) & 1).toBe(1);
  });

  it('the power button raises the SCI, a level, until its status is cleared by writing one', () => {
    const { bus, device, sci } = make();
    device.powerButton();
    expect(sci()).toBe(false);
    bus.out(0x602, PWRBTN, 2);
    expect(sci()).toBe(true);
    expect(bus.in(0x600, 2)).toBe(PWRBTN);
    bus.out(0x600, 0x20, 2);
    expect(sci()).toBe(true);
    bus.out(0x600, PWRBTN, 2);
    expect(sci()).toBe(false);
    expect(bus.in(0x600, 4)).toBe(PWRBTN * 0x10000);
  });

  it('byte accesses reach the byte they name', () => {
    const { bus, device, sci } = make();
    bus.out(0x603, 0x01);
    device.powerButton();
    expect(bus.in(0x601)).toBe(0x01);
    expect(sci()).toBe(true);
    bus.out(0x602, 0x00);
    expect(sci()).toBe(true);
    bus.out(0x601, 0x01);
    expect(sci()).toBe(false);
    expect(bus.in(0x603)).toBe(0x01);
  });

  it('a pressed button moves, and so does its SCI', () => {
    const a = make();
    a.bus.out(0x602, PWRBTN, 2);
    a.device.powerButton();
    const b = make();
    b.device.state.load(a.device.state.save(), 1);
    expect(b.sci()).toBe(true);
    expectStateConformance({ make: () => make().device, mutate: (d) => (d as PowerManagement).powerButton() });
  });
});

describe('pvpanic and debug exit', () => {
  it('a panic ends the machine with 1; only the panic event is offered', () => {
    const host = fakeHost();
    host.bus.plug(new Pvpanic(host, 0x505));
    expect(host.bus.in(0x505)).toBe(1);
    host.bus.out(0x505, 0);
    expect(host.asked).toEqual([]);
    host.bus.out(0x505, 1);
    expect(host.asked).toEqual(['end guest-panic 1']);
  });

  it('0xf4 gives code<<1|1', () => {
    const host = fakeHost();
    host.bus.plug(new DebugExit(host, 0xf4));
    host.bus.out(0xf4, 0, 4);
    host.bus.out(0xf4, 5);
    expect(host.asked).toEqual(['end guest-shutdown 1', 'end guest-shutdown 11']);
  });
});
