// The platform devices with their interrupts on /dev/kvm: test/guests/platform.c drives them through the IOAPIC as an operating system
// does. Rules: no transmitted byte is lost or late for want of an interrupt, the clock's second is a second, the power button's SCI is a
// level that one acknowledgement ends.
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, describe, expect, it } from 'vitest';
import { bootFlat, type FlatMachine } from './flat-machine.ts';
import { moveByHand } from './move-by-hand.ts';

const machines: FlatMachine[] = [];
afterEach(async () => {
  for (const { machine } of machines.splice(0)) await machine.close();
});

async function boot(append: string): Promise<FlatMachine> {
  const flat = await bootFlat('platform', { append, noReboot: true });
  machines.push(flat);
  await flat.machine.start();
  return flat;
}

async function moved(from: FlatMachine, append: string): Promise<FlatMachine> {
  const to = await moveByHand(from.machine, 'platform', { append, noReboot: true });
  machines.push(to);
  return to;
}

const letter = (n: number) => String.fromCharCode('a'.charCodeAt(0) + (n % 26));

describe('platform devices and a guest', () => {
  it('transmits by interrupts, 16 bytes each, and echoes what is typed', async () => {
    const flat = await boot('mode=uart lines=40');
    await flat.said(/type\n/);
    flat.type('every key that was typed comes back');
    await flat.said(/COMES BACK/);
    flat.type('x'.repeat(3000));
    flat.type('.');
    const { exitCode } = await flat.machine.ended;
    expect(exitCode).toBe(1);
    const lines = Array.from({ length: 40 }, (_, n) => `line ${letter(n)} of the interrupt-driven console\n`).join('');
    const echo = `type\nEVERY KEY THAT WAS TYPED COMES BACK${'X'.repeat(3000)}.\n`;
    const [said, irqs] = flat.text().split('uart irqs=') as [string, string];
    expect(said).toBe(lines + echo);
    expect(irqs).toMatch(/^\d+ left=0\n$/);
  });

  it('goes on transmitting through pauses', async () => {
    const flat = await boot('mode=uart lines=100');
    for (let pauses = 0; pauses < 10; pauses++) {
      await flat.machine.pause('paused');
      await flat.machine.start();
    }
    await flat.said(/type\n/);
    flat.type('.');
    await flat.machine.ended;
    expect(flat.text().match(/of the interrupt-driven console\n/g)?.length).toBe(100);
  });

  it('transmits on in another machine, and a third; what was typed and not read goes along', async () => {
    const append = 'mode=uart lines=100';
    const first = await boot(append);
    await first.said(/line d/);
    const second = await moved(first, append);
    await second.said(/type\n/);
    second.type(`${'y'.repeat(2000)}.`);
    const third = await moved(second, append);
    await third.machine.ended;
    const text = first.text() + second.text() + third.text();
    const lines = Array.from({ length: 100 }, (_, n) => `line ${letter(n)} of the interrupt-driven console\n`).join('');
    expect(text.split('\nuart ')[0]).toBe(`${lines}type\n${'Y'.repeat(2000)}.`);
    expect(second.text().startsWith('line a'), 'the second machine goes on where the first was').toBe(false);
  });

  it('the clock goes on interrupting in another machine', async () => {
    const append = 'mode=rtc seconds=3';
    const first = await boot(append);
    await sleep(1500);
    const second = await moved(first, append);
    await second.said(/rtc irqs=3 seconds=[3-9]\n/);
  });

  it('the clock interrupts once a second of its own', async () => {
    const flat = await boot('mode=rtc seconds=2');
    await flat.said(/rtc irqs=2 seconds=2\n/);
    expect((await flat.machine.ended).exitCode).toBe(1);
  });

  it('the power button is one SCI, and S5 ends the machine with 0', async () => {
    const flat = await boot('mode=button');
    await flat.said(/press\n/);
    flat.machine.powerdown();
    await flat.said(/button irqs=1 later=0\n/);
    expect(await flat.machine.ended).toMatchObject({ reason: 'guest-shutdown', exitCode: 0 });
  });
});
