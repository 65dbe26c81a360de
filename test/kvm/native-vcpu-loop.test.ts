// vCPU threads on the real /dev/kvm with guests of a few instructions: exits answered from JS, and the fast path.
import { describe, expect, it } from 'vitest';
import { kvm_run } from '../../native/abi/kvm.ts';
import { DONE, loopGuests, signal, turn, until } from './loop-guests.ts';
import { accessOf, hasKvm, type SeenAccess } from './native-guest.ts';

const { guest, open } = loopGuests();

describe.skipIf(!hasKvm)('exits answered from JS', () => {
  for (const hotWindowUs of [0, 50]) {
    it(`carries port and MMIO reads and writes of every width, in program order (hot window ${hotWindowUs} us)`, async () => {
      const code = `
        mov $0x60, %dx
        inb %dx, %al
        mov %al, 0x2000
        inw %dx, %ax
        mov %ax, 0x2002
        inl %dx, %eax
        mov %eax, 0x2004
        mov $0x11223344, %eax
        outl %eax, %dx
        mov $0xd000, %ax
        mov %ax, %es
        movb %es:0x10, %al
        mov %al, 0x2008
        movl %es:0x20, %eax
        mov %eax, 0x200c
        movl $0x55667788, %es:0x30
        ${DONE}`;
      const seen: string[] = [];
      const done = signal<void>();
      const machine = guest(
        { blocks: [code], hotWindowUs },
        {
          exit(index) {
            const run = machine.runs[index]!;
            const { kind, address, width, dataAt } = accessOf(run);
            if (kind === 'in' || kind === 'mmio-read') run.setUint32(dataAt, 0xa0b0c0d0 + seen.length, true);
            const value =
              kind.endsWith('out') || kind === 'mmio-write' ? `=${run.getUint32(dataAt, true).toString(16)}` : '';
            seen.push(`${kind} ${address.toString(16)}/${width}${width === 4 ? value : ''}`);
            if (address !== 0xf4) return true;
            done.resolve();
            return false;
          },
        },
      );
      machine.loop.start();
      await done.promise;
      expect(seen).toEqual([
        'in 60/1',
        'in 60/2',
        'in 60/4',
        'out 60/4=11223344',
        'mmio-read d0010/1',
        'mmio-read d0020/4',
        'mmio-write d0030/4=55667788',
        'out f4/1',
      ]);
      expect(machine.memory.getUint8(0x2000)).toBe(0xd0);
      expect(machine.memory.getUint16(0x2002, true)).toBe(0xc0d1);
      expect(machine.memory.getUint32(0x2004, true)).toBe(0xa0b0c0d2);
      expect(machine.memory.getUint8(0x2008)).toBe(0xd4);
      expect(machine.memory.getUint32(0x200c, true)).toBe(0xa0b0c0d5);
      expect(machine.loop.stats.exits).toBe(8);
    });
  }

  it('gives a string access (count > 1) in one exit, past a fast window', async () => {
    const code = `
      mov $0x3000, %di
      mov $5, %cx
      mov $0x60, %dx
      cld
      rep insb
      ${DONE}`;
    const counts: number[] = [];
    const done = signal<void>();
    const machine = guest(
      { blocks: [code] },
      {
        exit(index) {
          const run = machine.runs[index]!;
          const access = accessOf(run);
          if (access.address === 0xf4) {
            done.resolve();
            return false;
          }
          counts.push(access.count);
          for (let i = 0; i < access.count; i++) run.setUint8(access.dataAt + i, 'ferry'.charCodeAt(i));
          return true;
        },
      },
    );
    // KVM reads ahead for INS; OUTS comes one at a time.
    machine.loop.addFast('pio', 0x60, 1, { shadow: new Uint8Array(1), reads: [0], posts: [], file: null });
    machine.loop.start();
    await done.promise;
    expect(counts).toEqual([5]);
    expect(new TextDecoder().decode(new Uint8Array(machine.ram.window(0), 0x3000, 5))).toBe('ferry');
  });

  it('leaves a vCPU in an exit that was answered false, until resume()', async () => {
    const code = `inb $0x60, %al\n mov %al, 0x2000\n ${DONE}`;
    const first = signal<SeenAccess>();
    const second = signal<SeenAccess>();
    const machine = guest(
      { blocks: [code] },
      {
        exit(index) {
          const access = accessOf(machine.runs[index]!);
          (access.address === 0x60 ? first : second).resolve(access);
          return false;
        },
      },
    );
    machine.loop.start();
    const access = await first.promise;
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(machine.loop.stats.exits).toBe(1);
    machine.runs[0]!.setUint8(access.dataAt, 0x77);
    machine.loop.resume(0);
    await second.promise;
    expect(machine.memory.getUint8(0x2000)).toBe(0x77);
  });

  it('starves nobody: two vCPUs that exit all the time and the event loop all get on', async () => {
    const block = (counter: number) => `1: inb $0x60, %al\n incl ${counter}\n jmp 1b`;
    const machine = guest({ blocks: [block(0x2000), block(0x2010)], hotWindowUs: 1000 }, { exit: () => true });
    machine.loop.start();
    for (let i = 0; i < 20; i++) await turn();
    await until(() => machine.memory.getUint32(0x2000, true) > 500 && machine.memory.getUint32(0x2010, true) > 500);
    await machine.loop.pause();
  });

  it('reports a KVM_RUN that fails, with its errno, and parks the vCPU', async () => {
    const failure = signal<string>();
    const machine = guest({ blocks: ['hlt'] }, { failed: (index, errno) => failure.resolve(`${index} ${errno}`) });
    // KVM api.rst, KVM_RUN: EINVAL for bits in kvm_dirty_regs that this architecture does not have. Linux 6.12 looks at the lower 32 only.
    machine.runs[0]!.setBigUint64(kvm_run.kvm_dirty_regs, 1n << 31n, true);
    machine.loop.start();
    expect(await failure.promise).toBe('0 22');
    await machine.loop.pause();
  });
});

describe.skipIf(!hasKvm)('fast path', () => {
  it('answers reads from the shadow without JS, every width, and leaves other offsets to JS', async () => {
    const code = `
      mov $0x64, %dx
      inb %dx, %al
      mov %al, 0x2000
      mov $0x60, %dx
      inl %dx, %eax
      mov %eax, 0x2004
      mov $0x61, %dx
      inw %dx, %ax
      mov %ax, 0x2008
      mov $0xd000, %ax
      mov %ax, %es
      movl %es:0x104, %eax
      mov %eax, 0x200c
      mov $0x65, %dx
      inb %dx, %al
      ${DONE}`;
    const seen: number[] = [];
    const done = signal<void>();
    const machine = guest(
      { blocks: [code] },
      {
        exit(index) {
          const { address } = accessOf(machine.runs[index]!);
          seen.push(address);
          if (address === 0xf4) done.resolve();
          return address !== 0xf4;
        },
      },
    );
    const shadow = Uint8Array.of(1, 2, 3, 4, 5, 6);
    machine.loop.addFast('pio', 0x60, 6, { shadow, reads: [0, 1, 2, 3, 4], posts: [], file: null });
    const page = new Uint8Array(4096);
    machine.loop.addFast('mmio', 0xd0100, 256, { shadow: page, reads: [4, 5, 6, 7], posts: [], file: null });
    new DataView(page.buffer).setUint32(4, 0xcafe0001, true);
    shadow[4] = 0x99;
    machine.loop.start();
    await done.promise;
    expect(seen).toEqual([0x65, 0xf4]);
    expect(machine.memory.getUint8(0x2000)).toBe(0x99);
    expect(machine.memory.getUint32(0x2004, true)).toBe(0x04030201);
    expect(machine.memory.getUint16(0x2008, true)).toBe(0x0302);
    expect(machine.memory.getUint32(0x200c, true)).toBe(0xcafe0001);
    expect(machine.loop.stats).toEqual({ exits: 2, fastReads: 4, posted: 0, passed: 0 });
  });

  it('replays posted writes in order and before any other exit is answered', async () => {
    const code = `
      mov $100, %cx
      1: mov %cl, %al
      outb %al, $0x60
      loop 1b
      outb %al, $0x61
      mov $0x1234, %ax
      outw %ax, $0x60
      ${DONE}`;
    const events: string[] = [];
    const done = signal<void>();
    const machine = guest(
      { blocks: [code] },
      {
        posted: (range, offset, width, value) => events.push(`${range}+${offset}/${width}=${value.toString(16)}`),
        exit(index) {
          const { address } = accessOf(machine.runs[index]!);
          events.push(`exit ${address.toString(16)}`);
          if (address === 0xf4) done.resolve();
          return address !== 0xf4;
        },
      },
    );
    const range = machine.loop.addFast('pio', 0x60, 2, { shadow: null, reads: [], posts: [0], file: null });
    machine.loop.start();
    await done.promise;
    const bytes = Array.from({ length: 100 }, (_, i) => `${range}+0/1=${(100 - i).toString(16)}`);
    // The word write touches offset 1, which may not be posted: it exits.
    expect(events).toEqual([...bytes, 'exit 61', 'exit 60', 'exit f4']);
  });

  it('replays them in time also when no exit ever comes', async () => {
    const count = signal<void>();
    let seen = 0;
    guest(
      { blocks: ['1: outb %al, $0x60\n jmp 1b'] },
      {
        posted() {
          if (++seen === 20_000) count.resolve();
        },
        exit: () => true,
      },
    ).loop.addFast('pio', 0x60, 1, { shadow: null, reads: [], posts: [0], file: null });
    open[0]!.loop.start();
    await count.promise;
    await open[0]!.loop.pause();
    expect(open[0]!.loop.stats.posted + open[0]!.loop.stats.exits).toBeGreaterThanOrEqual(20_000);
  });

  it('keeps one order over two vCPUs that take turns', async () => {
    // They pass a token through memory: each posts its number only when the other has posted.
    const turns = (mine: number) => `
      mov $200, %cx
      1: movb 0x2000, %al
      cmp $${mine}, %al
      jne 1b
      movb $${mine}, %al
      outb %al, $0x60
      movb $${1 - mine}, 0x2000
      loop 1b
      ${DONE}`;
    const order: number[] = [];
    let ended = 0;
    const done = signal<void>();
    const machine = guest(
      { blocks: [turns(0), turns(1)] },
      {
        posted: (_range, _offset, _width, value) => order.push(value),
        exit() {
          if (++ended === 2) done.resolve();
          return false;
        },
      },
    );
    machine.loop.addFast('pio', 0x60, 1, { shadow: null, reads: [], posts: [0], file: null });
    machine.loop.start();
    await done.promise;
    expect(order).toEqual(Array.from({ length: 400 }, (_, i) => i % 2));
  });

  it('keeps each vCPU’s own order when both post at once, and loses none', async () => {
    const block = (port: number) => `
      mov $3000, %ecx
      1: mov %ecx, %eax
      outl %eax, $${port}
      dec %ecx
      jnz 1b
      ${DONE}`;
    const seen = new Map<number, number[]>([
      [0, []],
      [4, []],
    ]);
    let ended = 0;
    const done = signal<void>();
    const machine = guest(
      { blocks: [block(0x60), block(0x64)] },
      {
        posted: (_range, offset, _width, value) => seen.get(offset)?.push(value),
        exit(index) {
          const run = machine.runs[index]!;
          const { address, dataAt } = accessOf(run);
          if (address !== 0xf4) {
            seen.get(address - 0x60)?.push(run.getUint32(dataAt, true));
            return true;
          }
          if (++ended === 2) done.resolve();
          return false;
        },
      },
    );
    const every = [0, 1, 2, 3, 4, 5, 6, 7];
    machine.loop.addFast('pio', 0x60, 8, { shadow: null, reads: [], posts: every, file: null });
    machine.loop.start();
    await done.promise;
    const expected = Array.from({ length: 3000 }, (_, i) => 3000 - i);
    expect(seen.get(0)).toEqual(expected);
    expect(seen.get(4)).toEqual(expected);
  });

  it('loses nothing when the ring is full: the write exits and comes after what was posted', async () => {
    const code = `
      mov $6000, %ecx
      1: mov %ecx, %eax
      outl %eax, $0x60
      dec %ecx
      jnz 1b
      ${DONE}`;
    const values: number[] = [];
    let slow = 0;
    const done = signal<void>();
    const machine = guest(
      { blocks: [code] },
      {
        posted: (_range, _offset, _width, value) => values.push(value),
        exit(index) {
          const run = machine.runs[index]!;
          const { address, dataAt } = accessOf(run);
          if (address === 0xf4) {
            done.resolve();
            return false;
          }
          slow++;
          values.push(run.getUint32(dataAt, true));
          return true;
        },
      },
    );
    machine.loop.addFast('pio', 0x60, 4, { shadow: null, reads: [], posts: [0, 1, 2, 3], file: null });
    machine.loop.start();
    // The JS thread is away until the ring must be full: 4096 posts, then the vCPU stands in a slow exit.
    while (machine.loop.stats.exits === 0);
    expect(machine.loop.stats.posted).toBe(4096);
    await done.promise;
    expect(slow).toBeGreaterThan(0);
    expect(values).toEqual(Array.from({ length: 6000 }, (_, i) => 6000 - i));
  });

  it('takes windows off and puts them on while the vCPUs run; each post is told its own range', async () => {
    const loopCode = '1: outb %al, $0x60\n inb $0x61, %al\n jmp 1b\n';
    let live = 0;
    const wrong: number[] = [];
    const ranges = new Set<number>();
    const machine = guest(
      { blocks: [loopCode, loopCode] },
      {
        posted(range) {
          ranges.add(range);
          // removeFast replays a range's last posts before it returns.
          if (range !== live) wrong.push(range);
        },
        exit: () => true,
      },
    );
    const window = { shadow: Uint8Array.of(0, 5), reads: [1], posts: [0], file: null };
    machine.loop.start();
    for (let round = 0; round < 50; round++) {
      live = machine.loop.addFast('pio', 0x60, 2, window);
      await until(() => ranges.has(live));
      machine.loop.removeFast(live);
      live = -1;
      await turn();
    }
    await machine.loop.pause();
    expect(wrong).toEqual([]);
    expect(ranges.size).toBe(50);
  });

  it('refuses overlap, shadows that are too short, offsets outside and unknown ranges', () => {
    const { loop } = guest({ blocks: ['hlt'] }, {});
    const none = { shadow: null, reads: [], posts: [], file: null };
    const range = loop.addFast('pio', 0x60, 8, none);
    expect(() => loop.addFast('pio', 0x67, 8, none)).toThrow(RangeError);
    expect(() => loop.addFast('pio', 0x58, 9, none)).toThrow(RangeError);
    loop.addFast('pio', 0x58, 8, none);
    loop.addFast('mmio', 0x60, 8, none);
    expect(() => loop.addFast('pio', 0x80, 2, { ...none, shadow: new Uint8Array(1) })).toThrow(RangeError);
    expect(() => loop.addFast('pio', 0x80, 2, { ...none, posts: [2], file: null })).toThrow(RangeError);
    expect(() => loop.addFast('pio', 0x80, 0, none)).toThrow(RangeError);
    expect(() => loop.addFast('dma' as 'pio', 0x80, 1, none)).toThrow(TypeError);
    loop.removeFast(range);
    expect(() => loop.removeFast(range)).toThrow(RangeError);
    expect(() => loop.removeFast(77)).toThrow(RangeError);
  });
});
