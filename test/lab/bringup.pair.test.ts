// Rule: a guest with a device of each generation of the migration interface moves under load between two lab hosts, there and back, and nothing
// is lost: its DMA both ways, an interrupt a command, its device memory and registers; and whatever the device or its driver refuses on the
// way, the guest goes on where it was. The device is vfio-bringup, real to the kernel; the guest's driver and workload are its own.
// The same with mtty, the kernel's own sample. FERRY_BRINGUP_MOVES says how often it moves (2), the last time after the faults.
// FERRY_FAULTS=all tries every fault with every generation, not one of each kind with some; FERRY_FAULTS_SEED repeats a draw.
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { buildGuest, type GuestImage } from '../../images/guest/build.ts';
import { faultsOf, judge } from '../../images/guest/verdict.ts';
import { cacheRoot } from '../../lab/root.ts';
import type { DirtyPages } from '../../migration/api.ts';
import { generator } from '../fuzz/generator.ts';
import { BringupDevices, uuidOf } from './bringup-devices.ts';
import { FaultBench } from './fault-bench.ts';
import { Ladder, notesOf } from './ladder.ts';
import { type Abi, dealt, LADDERS } from './ladder-faults.ts';
import { MTTY, makeMtty, removeMtty, renewMtty } from './mtty.ts';
import { type Guest, Pair, pairUnavailable } from './pair.ts';

const unavailable = pairUnavailable();
if (unavailable !== null) console.log(`skipped: bringup: ${unavailable}`);

const MOVES = Number(process.env['FERRY_BRINGUP_MOVES'] ?? 2);
const SEED = Number(process.env['FERRY_FAULTS_SEED'] ?? Date.now() % 0x7fffffff);
const FAULTS = process.env['FERRY_FAULTS'] === 'all' ? LADDERS : dealt(generator(SEED));
/** The device has 1 MiB of memory; abi a has no way to ask for the size of what is to come. */
const DEVICE = [`vfio-pci,id=dev0,sysfsdev=/sys/bus/mdev/devices/${uuidOf(0)},x-stop-copy-size=2M`];
const APPEND = 'edu=0 bringup=2 writer=4M rate=1M';
const LIMITS = ['--downtime-limit', '5000'];

/** Measured: 5 s a move and 5-8 s a fault on a quiet machine. */
const patience = (moves: number) => 120_000 + 60_000 * moves;

interface Generation {
  readonly abi: Abi;
  readonly parameters: readonly string[];
  /** Who tells which pages the device has written. */
  readonly tracker: keyof DirtyPages;
  /** The driver judges its state only on the way to RUNNING. */
  readonly late: boolean;
}
const GENERATIONS: readonly Generation[] = [
  { abi: 'd', parameters: [], tracker: 'deviceLog', late: false },
  { abi: 'c', parameters: [], tracker: 'container', late: false },
  { abi: 'b', parameters: ['region_type=2', 'late_validation=1'], tracker: 'region', late: true },
  { abi: 'a', parameters: [], tracker: 'region', late: false },
];

describe.skipIf(unavailable !== null)('a guest with vfio-bringup', () => {
  let pair: Pair;
  let bench: FaultBench;
  let image: GuestImage;
  let devices: readonly BringupDevices[];
  beforeAll(async () => {
    image = await buildGuest(cacheRoot(), 'cloud', () => {}, { bringup: true });
    pair = await Pair.start();
    bench = await FaultBench.over(pair);
    devices = pair.sides.map(({ host }) => new BringupDevices(pair.lab, host));
  });
  afterAll(() => pair?.close());

  async function boot({ abi, parameters }: Generation): Promise<Guest> {
    await Promise.all(devices.map((each) => each.load(1, `abi=${abi}`, 'hard_reset=1', ...parameters)));
    await Promise.all(devices.map((each) => each.complaints()));
    const guest = await pair.run(0, APPEND, { devices: DEVICE, image, memory: '128M' });
    await pair.runsOn(guest, 5);
    return guest;
  }

  async function move(from: Guest, to: Guest, args: readonly string[] = []) {
    const { code, outcome, stderr } = await pair.migrate(from, to, [...LIMITS, ...args]);
    expect(code, stderr + to.stderr()).toBe(0);
    expect((await from.process.done).code).toBe(0);
    return outcome!.report;
  }

  /** The device's own tracker has told of pages, and its state went over. */
  async function moveOn(lives: Guest[], to: Guest, tracker: keyof DirtyPages, late: boolean): Promise<void> {
    const report = await move(lives.at(-1)!, to);
    expect(report.dirty[tracker], JSON.stringify(report.dirty)).toBeGreaterThan(0);
    expect(report.devices).toMatchObject([{ id: 'dev0', lateValidation: late }]);
    expect(report.devices[0]!.stopCopyBytes).toBeGreaterThan(0);
    lives.push(to);
    await pair.runsOn(to, 3);
  }

  const elsewhere = ({ at }: Guest) => pair.receive(at === 0 ? 1 : 0, { devices: DEVICE });

  describe.each(GENERATIONS)('abi $abi', (generation) => {
    const { abi, tracker, late } = generation;
    const lives: Guest[] = [];
    afterAll(() => pair?.dismiss());

    it(
      `moves ${MOVES - 1} times under load, and nothing is lost`,
      async () => {
        lives.push(await boot(generation));
        for (let n = 1; n < MOVES; n++) {
          await moveOn(lives, await elsewhere(lives.at(-1)!), tracker, late);
        }
        const verdict = judge(lives.map(({ console }) => console.text));
        expect([verdict.lostTicks, verdict.errors, notesOf(lives)]).toEqual([0, [], []]);
      },
      patience(MOVES),
    );

    it(
      `goes on where it is whatever fails, and moves once more (FERRY_FAULTS_SEED=${SEED})`,
      async () => {
        console.log(`abi ${abi}: ${FAULTS[abi].length} faults of ${LADDERS[abi].length}`);
        await Promise.all(devices.map((each) => each.set({ late_validation: '0' })));
        const options = { devices: DEVICE };
        const ladder = new Ladder({ bench, devices, options, lives, limits: LIMITS });
        await ladder.climb(FAULTS[abi]);
        const to = await ladder.destination();
        await moveOn(lives, to, tracker, false);
        expect(await pair.end(to)).toBe(0);
        const verdict = judge(lives.map(({ console }) => console.text));
        console.log(`abi ${abi}`, JSON.stringify({ ...verdict, errors: verdict.errors.slice(0, 3) }));
        expect(faultsOf(verdict, { edu: false, bringup: true })).toEqual([]);
        expect(notesOf(lives)).toEqual(ladder.met);
        for (const each of devices) expect(await each.complaints()).toEqual([]);
      },
      patience(FAULTS[abi].length),
    );
  });

  it('does notice it: with the device log switched off and its bits thrown away, a page that only the device wrote is stale', async () => {
    const guest = await boot(GENERATIONS[0]!);
    const to = await elsewhere(guest);
    await move(guest, to, ['--test-drop', 'deviceLog']);
    await to.console.until('an error of DMA', ({ text }) => /^error kind=(dma|bringup)/m.test(text), 120_000);
    await pair.dismiss();
  });

  describe('mtty, by I/O ports and INTx', () => {
    const serial = [`vfio-pci,id=dev0,sysfsdev=${MTTY}`];
    const boot = () => pair.run(0, 'edu=0 mtty=1 writer=4M rate=1M', { devices: serial, image, memory: '128M' });
    beforeAll(() => Promise.all(pair.lab.hosts.map((host) => makeMtty(host))));
    afterAll(() => Promise.all(pair.lab.hosts.map((host) => removeMtty(host))));

    it('moves there and back, and no byte is lost', async () => {
      const lives = [await boot()];
      await pair.runsOn(lives[0]!, 3);
      for (const at of [1, 0] as const) {
        const to = await pair.receive(at, { devices: serial });
        const report = await move(lives.at(-1)!, to);
        // Two ports and a header, of which pre-copy has had the header.
        expect(report.devices).toMatchObject([{ id: 'dev0', preCopyBytes: 24, stopCopyBytes: 72 }]);
        lives.push(to);
        await pair.runsOn(to, 3);
      }
      expect(await pair.end(lives.at(-1)!)).toBe(0);
      const verdict = judge(lives.map(({ console }) => console.text));
      console.log('mtty', JSON.stringify({ ...verdict, errors: verdict.errors.slice(0, 3) }));
      expect(faultsOf(verdict, { edu: false, mtty: true })).toEqual([]);
    });

    it('does notice a move without its state', async () => {
      const guest = await boot();
      await pair.runsOn(guest, 3);
      await renewMtty(pair.lab.hosts[1]!);
      const to = await pair.receive(1, { devices: serial });
      await move(guest, to, ['--test-drop', 'deviceState']);
      await to.console.until('an error of mtty', ({ text }) => /^error kind=(register|mtty)/m.test(text), 120_000);
      await pair.dismiss();
    });
  });
});
