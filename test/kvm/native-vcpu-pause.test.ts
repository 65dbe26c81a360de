// vCPU threads on the real /dev/kvm with guests of a few instructions: pausing, starting and closing in every state.
import { describe, expect, it } from 'vitest';
import { readRegisters } from '../../native/kvm.ts';
import { DONE, loopGuests, SPIN, signal, turn, until } from './loop-guests.ts';
import { accessOf, hasKvm } from './native-guest.ts';

const { guest } = loopGuests();

describe.skipIf(!hasKvm)('pause and start', () => {
  it('stops a spinning guest, which stands still until start()', async () => {
    const machine = guest({ blocks: [SPIN, SPIN] }, {});
    machine.loop.start();
    await until(() => machine.memory.getUint32(0x2000, true) > 0);
    await machine.loop.pause();
    const stopped = machine.memory.getUint32(0x2000, true);
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(machine.memory.getUint32(0x2000, true)).toBe(stopped);
    expect(readRegisters(machine.vcpus[1]!.fd).rip).toBeGreaterThanOrEqual(0x1400n);
    machine.loop.start();
    await until(() => machine.memory.getUint32(0x2000, true) !== stopped);
  });

  it('kicks a vCPU out of HLT with the in-kernel irqchip and lets it go on sleeping', async () => {
    const machine = guest({ blocks: ['movb $1, 0x2000\n 1: hlt\n movb $2, 0x2000\n jmp 1b'], irqchip: true }, {});
    for (let round = 0; round < 20; round++) {
      machine.loop.start();
      await until(() => machine.memory.getUint8(0x2000) === 1);
      await machine.loop.pause();
    }
    expect(machine.memory.getUint8(0x2000)).toBe(1);
  });

  it('waits for an exit that is not answered yet and completes it: the instruction is over, its result in the register', async () => {
    const machine = guest(
      { blocks: [`inb $0x60, %al\n ${SPIN}`] },
      {
        exit(index) {
          const run = machine.runs[index]!;
          run.setUint8(accessOf(run).dataAt, 0x5a);
          return true;
        },
      },
    );
    machine.loop.start();
    // The exit lies in the mailbox, the JS thread has not been back to the event loop.
    while (machine.loop.stats.exits === 0);
    await machine.loop.pause();
    const { rax, rip } = readRegisters(machine.vcpus[0]!.fd);
    expect(rax & 0xffn).toBe(0x5an);
    expect(rip).toBe(0x1002n);
    expect(machine.memory.getUint32(0x2000, true)).toBe(0);
  });

  it('completes an exit that was left parked, and start() goes on behind it', async () => {
    const held = signal<void>();
    const again = signal<void>();
    const machine = guest(
      { blocks: [`outb %al, $0x64\n movb $1, 0x2000\n ${DONE}`] },
      {
        exit(index) {
          (accessOf(machine.runs[index]!).address === 0x64 ? held : again).resolve();
          return false;
        },
      },
    );
    machine.loop.start();
    await held.promise;
    await machine.loop.pause();
    expect(readRegisters(machine.vcpus[0]!.fd).rip).toBe(0x1002n);
    expect(machine.memory.getUint8(0x2000)).toBe(0);
    machine.loop.start();
    await again.promise;
    expect(machine.memory.getUint8(0x2000)).toBe(1);
  });

  it('may be asked for inside the handler of an exit: that exit is completed with the handler’s answer', async () => {
    const paused = signal<void>();
    const machine = guest(
      { blocks: [`inb $0x60, %al\n ${SPIN}`] },
      {
        exit(index) {
          machine.loop.pause().then(paused.resolve);
          const run = machine.runs[index]!;
          run.setUint8(accessOf(run).dataAt, 0x3c);
          return true;
        },
      },
    );
    machine.loop.start();
    await paused.promise;
    expect(readRegisters(machine.vcpus[0]!.fd).rax & 0xffn).toBe(0x3cn);
  });

  it('drains the ring: when pause() resolves every posted write has been replayed', async () => {
    let replayed = 0;
    const machine = guest(
      { blocks: ['1: outb %al, $0x60\n jmp 1b'] },
      {
        posted() {
          replayed++;
        },
        exit() {
          replayed++;
          return true;
        },
      },
    );
    machine.loop.addFast('pio', 0x60, 1, { shadow: null, reads: [], posts: [0], file: null });
    for (let round = 0; round < 20; round++) {
      machine.loop.start();
      await turn();
      await machine.loop.pause();
      expect(replayed).toBe(machine.loop.stats.posted + machine.loop.stats.exits);
    }
  });

  it('holds through 1000 cycles with a vCPU that spins, one in HLT and one that exits all the time', async () => {
    let exits = 0;
    const blocks = [SPIN, '1: hlt\n jmp 1b', '1: inb $0x60, %al\n incl 0x2004\n jmp 1b'];
    const machine = guest(
      { blocks, irqchip: true, hotWindowUs: 20 },
      {
        exit() {
          exits++;
          return true;
        },
      },
    );
    for (let round = 0; round < 1000; round++) {
      machine.loop.start();
      if (round % 2 === 0) await turn();
      await machine.loop.pause();
    }
    // On a busy machine a cycle may be over before a vCPU has entered the guest: the last one lets each get somewhere.
    machine.loop.start();
    await until(() => machine.memory.getUint32(0x2000, true) > 0 && machine.memory.getUint32(0x2004, true) > 0);
    await machine.loop.pause();
    expect(exits, 'exits served and counted').toBe(machine.loop.stats.exits);
    // Each IN that was answered is followed by its increment, or the guest stands between the two.
    expect(exits - machine.memory.getUint32(0x2004, true), 'accesses completed').toBeLessThanOrEqual(1);
  });

  it('refuses start() while a pause is under way, and resolves every pause() that was asked for', async () => {
    const machine = guest({ blocks: ['1: inb $0x60, %al\n jmp 1b'] }, { exit: () => true });
    await machine.loop.pause();
    machine.loop.start();
    machine.loop.start();
    // An exit that the event loop has not come to holds the pause open.
    while (machine.loop.stats.exits === 0);
    const both = [machine.loop.pause(), machine.loop.pause()];
    expect(() => machine.loop.start()).toThrow('a pause is under way');
    await Promise.all(both);
    machine.loop.start();
  });
});

describe.skipIf(!hasKvm)('close', () => {
  it('joins threads that spin, wait for an answer or sleep in HLT, and detaches kvm_run', async () => {
    const waiting = signal<void>();
    const machine = guest(
      { blocks: [SPIN, '1: hlt\n jmp 1b', 'outb %al, $0x60\n'], irqchip: true },
      {
        exit() {
          waiting.resolve();
          return false;
        },
      },
    );
    machine.loop.start();
    await waiting.promise;
    await machine.loop.close();
    expect(machine.vcpus[0]!.run.byteLength).toBe(0);
    expect(() => machine.loop.start()).toThrow('closed');
    await machine.loop.close();
  });

  it('may be called inside a handler', async () => {
    const closed = signal<void>();
    const machine = guest(
      { blocks: ['1: outb %al, $0x60\n jmp 1b', '1: outb %al, $0x61\n jmp 1b'] },
      {
        exit() {
          machine.loop.close().then(closed.resolve);
          return true;
        },
      },
    );
    machine.loop.start();
    await closed.promise;
  });

  it('rejects a pause that it overtakes', async () => {
    const machine = guest({ blocks: ['1: inb $0x60, %al\n jmp 1b'] }, { exit: () => true });
    machine.loop.start();
    // An exit lies in the mailbox and the event loop has not come to it: the pause cannot be over yet.
    while (machine.loop.stats.exits === 0);
    const pause = machine.loop.pause();
    const outcome = expect(pause).rejects.toThrow('pause: ECANCELED');
    await machine.loop.close();
    await outcome;
  });
});
