// Dirty tracking of a running guest: every page whose bytes changed since the last collect is reported. Rules: issue 2 item 4 (KVM dirty
// log, VMM's own writes), vmm/api.ts DirtyTracker. The oracle is a copy of all RAM.
import { afterEach, describe, expect, it } from 'vitest';
import type { PageBitmap } from '../../devices/contract.ts';
import type { Machine } from '../../vmm/api.ts';
import { bootFlat, type FlatMachine } from './flat-machine.ts';

const PAGE = 4096;
const open: FlatMachine[] = [];
afterEach(async () => {
  for (const flat of open.splice(0)) await flat.machine.close();
});

async function worker(append = 'pages=200 batch=20 tick=2000'): Promise<FlatMachine> {
  const flat = await bootFlat('worker', { append, memory: 16 * 2 ** 20 });
  open.push(flat);
  await flat.machine.start();
  await flat.said(/tick n=2 /);
  return flat;
}

function ramOf(machine: Machine): Buffer {
  const copy = Buffer.alloc(machine.ram.size);
  machine.ram.copyOut(0, copy);
  return copy;
}

function changedPages(before: Buffer, after: Buffer): number[] {
  const pages: number[] = [];
  for (let at = 0; at < before.length; at += PAGE) {
    if (before.compare(after, at, at + PAGE, at, at + PAGE) !== 0) pages.push(at / PAGE);
  }
  return pages;
}

const missing = (pages: number[], bitmap: PageBitmap) => pages.filter((page) => !bitmap.test(page));

describe('KVM dirty log', () => {
  it('reports every page that the guest changed, in each of ten rounds, and not all of RAM', async () => {
    const flat = await worker();
    const { machine } = flat;
    await machine.pause('paused');
    await machine.dirty.start({ deviceLog: true, drop: null });
    (await machine.dirty.collect(false)).bitmap.zero();
    for (let round = 0; round < 10; round++) {
      const before = ramOf(machine);
      flat.skip();
      await machine.start();
      await flat.said(/tick n=\d+ /);
      await machine.pause('paused');
      const { bitmap, pages, failed } = await machine.dirty.collect(false);
      const changed = changedPages(before, ramOf(machine));
      expect(failed).toEqual([]);
      expect(changed.length).toBeGreaterThan(0);
      expect(missing(changed, bitmap), `round ${round}`).toEqual([]);
      expect(pages.kvm!).toBeGreaterThanOrEqual(changed.length);
      expect(bitmap.count).toBeLessThan(machine.ram.size / PAGE / 2);
      bitmap.zero();
    }
    await machine.dirty.stop();
  });

  it('a round that the test throws away is missed: the check above can fail', async () => {
    const flat = await worker();
    const { machine } = flat;
    await machine.pause('paused');
    await machine.dirty.start({ deviceLog: true, drop: 'kvmLastRound' });
    (await machine.dirty.collect(false)).bitmap.zero();
    const before = ramOf(machine);
    flat.skip();
    await machine.start();
    await flat.said(/tick n=\d+ /);
    await machine.pause('paused');
    const { bitmap, pages } = await machine.dirty.collect(true);
    expect(missing(changedPages(before, ramOf(machine)), bitmap).length).toBeGreaterThan(0);
    expect(pages.kvm).toBeGreaterThan(0);
  });

  it('goes off with stop(), and starts afresh', async () => {
    const flat = await worker();
    const { machine } = flat;
    for (let again = 0; again < 3; again++) {
      await machine.dirty.start({ deviceLog: true, drop: null });
      expect((await machine.dirty.collect(false)).bitmap.count).toBe(machine.ram.size / PAGE);
      await machine.dirty.stop();
    }
    await flat.said(/tick n=\d+ /);
  });

  it('a reset in the middle makes all of RAM dirty: the boot loader writes past every log', async () => {
    const flat = await worker();
    const { machine } = flat;
    await machine.dirty.start({ deviceLog: true, drop: null });
    (await machine.dirty.collect(false)).bitmap.zero();
    await machine.reset('host-qmp-system-reset');
    const { bitmap, pages } = await machine.dirty.collect(false);
    expect([bitmap.count, pages.vmm]).toEqual([machine.ram.size / PAGE, machine.ram.size / PAGE]);
  });
});
