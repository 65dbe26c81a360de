// devices/platform/serial.ts by the PC16550D datasheet and by what Linux's 8250 driver does.
import { describe, expect, it, onTestFinished, vi } from 'vitest';
import { Serial } from '../../../devices/platform/serial.ts';
import { expectStateConformance } from '../../conformance/device-state.ts';
import { type FakeHost, fakeHost } from '../../fakes/device-host.ts';

const BASE = 0x3f8;
const [DATA, IER, IIR, FCR, LCR, MCR, LSR, MSR, SCR] = [0, 1, 2, 2, 3, 4, 5, 6, 7].map((r) => BASE + r) as [
  number,
  number,
  number,
  number,
  number,
  number,
  number,
  number,
  number,
];
const OUT2 = 0x8;

function make(host: FakeHost = fakeHost()) {
  let text = '';
  const serial = new Serial({
    id: 'serial0',
    bus: host.bus,
    base: BASE,
    line: host.irq.line(4),
    out: (bytes) => {
      text += Buffer.from(bytes).toString('latin1');
    },
    log: host.log,
  });
  const { bus, irq } = host;
  return {
    serial,
    bus,
    irq,
    host,
    text: () => {
      serial.drain();
      return text;
    },
    type: (s: string) => serial.receive(Buffer.from(s, 'latin1')),
    line: () => irq.levels.get(4) ?? false,
    fast: () => bus.find(BASE, 1, 'pio')!.fast!,
  };
}

describe('transmitting', () => {
  it('hands over what is written to THR, in order', () => {
    const { bus, text } = make();
    for (const c of 'hello\n') bus.out(DATA, c.charCodeAt(0));
    expect(text()).toBe('hello\n');
  });

  it('hands over without being asked: a line in the next turn of the loop, what is none in one run soon after', async () => {
    // Its own time, for a busy machine may be away for longer than the run waits.
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    onTestFinished(() => {
      vi.useRealTimers();
    });
    const host = fakeHost();
    const runs: string[] = [];
    const out = (bytes: Uint8Array) => runs.push(Buffer.from(bytes).toString());
    const serial = new Serial({ id: 's', bus: host.bus, base: BASE, line: host.irq.line(4), out, log: host.log });
    for (const c of 'ab\n') host.bus.out(DATA, c.charCodeAt(0));
    expect(runs).toEqual([]);
    await new Promise((resolve) => setImmediate(resolve));
    expect(runs).toEqual(['ab\n']);
    for (const c of '$ ') {
      host.bus.out(DATA, c.charCodeAt(0));
      await new Promise((resolve) => setImmediate(resolve));
    }
    expect(runs).toEqual(['ab\n']);
    vi.advanceTimersByTime(5);
    expect(runs).toEqual(['ab\n', '$ ']);
    serial.close();
  });

  it('is always ready: THRE and TEMT stay set', () => {
    const { bus } = make();
    bus.out(DATA, 0x61);
    expect(bus.in(LSR) & 0x60).toBe(0x60);
  });

  it('posts THR and answers LSR from the shadow, but not while the divisor latch is there', () => {
    const { bus, fast, text } = make();
    expect(fast().posts).toEqual([0]);
    expect(fast().reads).toContain(5);
    expect(fast().reads).not.toContain(0);
    expect(fast().shadow![5]).toBe(bus.in(LSR));
    bus.out(LCR, 0x83);
    expect(fast().posts).toEqual([]);
    bus.out(DATA, 0x01);
    bus.out(IER, 0x00);
    expect([bus.in(DATA), bus.in(IER)]).toEqual([0x01, 0x00]);
    bus.out(LCR, 0x03);
    expect(fast().posts).toEqual([0]);
    expect(text()).toBe('');
    expect(bus.in(LCR)).toBe(0x03);
  });
});

describe('transmit interrupts (THRI)', () => {
  it('rise when THRI is enabled while the holding register is empty, and go when IIR shows them', () => {
    const { bus, line } = make();
    bus.out(MCR, OUT2);
    expect(line()).toBe(false);
    bus.out(IER, 0x02);
    expect(line()).toBe(true);
    expect(bus.in(IIR)).toBe(0x02);
    expect(line()).toBe(false);
    expect(bus.in(IIR)).toBe(0x01);
  });

  it('are raised again by THRI off and on: what serial8250_do_startup tests for a bad UART', () => {
    const { bus } = make();
    bus.out(IER, 0x02);
    bus.in(IIR);
    bus.out(IER, 0x00);
    bus.out(IER, 0x02);
    expect(bus.in(IIR) & 0x01).toBe(0);
  });

  it('come once for each burst, as an edge: the line has gone down in between', () => {
    const { bus, irq, text } = make();
    bus.out(FCR, 0x01);
    bus.out(MCR, OUT2);
    bus.out(IER, 0x02);
    for (let burst = 0; burst < 3; burst++) {
      expect(bus.in(IIR)).toBe(0xc2);
      for (let i = 0; i < 16; i++) bus.out(DATA, 0x30 + burst);
    }
    expect(text()).toBe('0'.repeat(16) + '1'.repeat(16) + '2'.repeat(16));
    expect(irq.edges.filter((edge) => edge.level).length).toBe(4);
    bus.out(IER, 0x00);
    expect(irq.levels.get(4)).toBe(false);
  });

  it('reach the line only through OUT2', () => {
    const { bus, line } = make();
    bus.out(IER, 0x02);
    expect(line()).toBe(false);
    bus.out(MCR, OUT2);
    expect(line()).toBe(true);
  });
});

describe('receiving', () => {
  it('shows data ready and gives the bytes in order', () => {
    const { bus, type } = make();
    bus.out(FCR, 0x01);
    type('abc');
    expect(bus.in(LSR) & 1).toBe(1);
    expect([bus.in(DATA), bus.in(DATA), bus.in(DATA)]).toEqual([0x61, 0x62, 0x63]);
    expect(bus.in(LSR) & 1).toBe(0);
  });

  it('interrupts: time-out below the trigger level, data available from it on', () => {
    const { bus, type, line } = make();
    bus.out(FCR, 0x81);
    bus.out(MCR, OUT2);
    bus.out(IER, 0x01);
    type('1234567');
    expect(bus.in(IIR)).toBe(0xcc);
    type('8');
    expect(bus.in(IIR)).toBe(0xc4);
    expect(line()).toBe(true);
    for (let i = 0; i < 8; i++) bus.in(DATA);
    expect(line()).toBe(false);
  });

  it('never overruns: what does not fit waits', () => {
    const { bus, type } = make();
    type(`${'x'.repeat(40)}y`);
    let got = '';
    while (bus.in(LSR) & 1) got += String.fromCharCode(bus.in(DATA));
    expect(got).toBe(`${'x'.repeat(40)}y`);
    expect(bus.in(LSR) & 0x02).toBe(0);
  });

  it('has priority over transmitting', () => {
    const { bus, type } = make();
    bus.out(IER, 0x03);
    type('a');
    expect(bus.in(IIR)).toBe(0x04);
    bus.in(DATA);
    expect(bus.in(IIR)).toBe(0x02);
  });
});

describe('identity and loopback', () => {
  it('is a 16550A to Linux: FIFO bits, scratch register, no EFR, no UUE bit, loopback of the modem lines', () => {
    const { bus } = make();
    bus.out(IER, 0x0f);
    expect(bus.in(IER)).toBe(0x0f);
    bus.out(IER, 0x40);
    expect(bus.in(IER)).toBe(0);
    bus.out(MCR, 0x10 | 0x0a);
    expect(bus.in(MSR) & 0xf0).toBe(0x90);
    bus.out(MCR, 0);
    bus.out(LCR, 0xbf);
    expect(bus.in(IIR)).not.toBe(0);
    bus.out(LCR, 0);
    bus.out(FCR, 0x01);
    expect(bus.in(IIR) >> 6).toBe(3);
    bus.out(SCR, 0xa5);
    expect(bus.in(SCR)).toBe(0xa5);
  });

  it('loops data back, with overrun, and keeps it from the console', () => {
    const { bus, text, fast } = make();
    bus.out(MCR, 0x10);
    expect(fast().posts).toEqual([]);
    bus.out(DATA, 0x41);
    expect(bus.in(LSR) & 1).toBe(1);
    bus.out(DATA, 0x42);
    expect(fast().reads).not.toContain(5);
    expect(bus.in(LSR) & 0x02).toBe(0x02);
    expect(bus.in(LSR) & 0x02).toBe(0);
    expect(bus.in(DATA)).toBe(0x41);
    expect(text()).toBe('');
  });

  it('modem status: deltas are shown once, and only without them is it answered from the shadow', () => {
    const { bus, fast } = make();
    expect(bus.in(MSR)).toBe(0xb0);
    expect(fast().reads).toContain(6);
    bus.out(MCR, 0x10);
    expect(fast().reads).not.toContain(6);
    expect(bus.in(MSR)).toBe(0x0b);
    expect(bus.in(MSR)).toBe(0x00);
    expect(fast().reads).toContain(6);
  });
});

describe('state', () => {
  it('keeps to the contract', () => {
    expectStateConformance({
      make: () => make().serial,
      mutate: (device) => {
        (device as Serial).receive(Buffer.from('typed ahead of the guest'));
      },
    });
  });

  it('moves what was typed and not read; a pending interrupt is driven at the destination', () => {
    const a = make();
    a.bus.out(MCR, OUT2);
    a.bus.out(FCR, 0x01);
    a.bus.out(IER, 0x01);
    a.type('0123456789abcdefghij');
    a.bus.in(DATA);
    const b = make();
    b.serial.state.load(a.serial.state.save(), 1);
    b.serial.interrupts.attach();
    expect(b.line()).toBe(true);
    let got = '';
    while (b.bus.in(LSR) & 1) got += String.fromCharCode(b.bus.in(DATA));
    expect(got).toBe('123456789abcdefghij');
    expect(b.line()).toBe(false);
  });

  it('what is typed during a move raises nothing until the gate opens or the guest runs, and is not lost', () => {
    const a = make();
    a.bus.out(MCR, OUT2);
    a.bus.out(IER, 0x01);
    a.serial.interrupts.detach();
    a.type('a');
    expect(a.line()).toBe(false);
    const state = a.serial.state.save();
    const b = make();
    const c = make();
    for (const there of [b, c]) {
      there.serial.state.load(state, 1);
      there.type('b');
      expect(there.line()).toBe(false);
    }
    b.serial.interrupts.attach();
    expect(b.line()).toBe(true);
    expect([b.bus.in(DATA), b.bus.in(DATA), b.line()]).toEqual([0x61, 0x62, false]);
    c.bus.out(SCR, 0);
    expect(c.line()).toBe(true);
  });

  it('save() leaves nothing unprinted at the source, so no byte comes twice', () => {
    const a = make();
    a.bus.out(DATA, 0x7a);
    const state = a.serial.state.save();
    const b = make();
    b.serial.state.load(state, 1);
    expect([a.text(), b.text()]).toEqual(['z', '']);
  });
});
