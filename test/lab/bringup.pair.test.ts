// Rule: a guest with a device of each generation of the migration interface moves under load between two lab hosts, there and back, and nothing
// is lost: its DMA both ways, an interrupt a command, its device memory and registers. The device is vfio-bringup, real to the kernel; the
// guest's driver and workload are its own. FERRY_BRINGUP_MOVES says how often (2). The same with mtty, the kernel's own sample.
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { buildGuest, type GuestImage } from '../../images/guest/build.ts';
import { faultsOf, judge } from '../../images/guest/verdict.ts';
import { cacheRoot } from '../../lab/root.ts';
import type { DirtyPages } from '../../migration/api.ts';
import { BringupDevices, uuidOf } from './bringup-devices.ts';
import { MTTY, makeMtty, removeMtty, renewMtty } from './mtty.ts';
import { type Guest, Pair, pairUnavailable } from './pair.ts';

const unavailable = pairUnavailable();
if (unavailable !== null) console.log(`skipped: bringup: ${unavailable}`);

const MOVES = Number(process.env['FERRY_BRINGUP_MOVES'] ?? 2);
/** The device has 1 MiB of memory; abi a has no way to ask for the size of what is to come. */
const DEVICE = [`vfio-pci,id=dev0,sysfsdev=/sys/bus/mdev/devices/${uuidOf(0)},x-stop-copy-size=2M`];
const APPEND = 'edu=0 bringup=1 writer=4M rate=1M';

interface Generation {
  readonly abi: 'a' | 'b' | 'c' | 'd';
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
  let image: GuestImage;
  let devices: readonly BringupDevices[];
  beforeAll(async () => {
    image = await buildGuest(cacheRoot(), 'cloud', () => {}, { bringup: true });
    pair = await Pair.start();
    devices = pair.sides.map(({ host }) => new BringupDevices(pair.lab, host));
  });
  afterEach(() => pair.dismiss());
  afterAll(() => pair?.close());

  async function prepare({ abi, parameters }: Generation): Promise<void> {
    await Promise.all(devices.map((each) => each.load(1, `abi=${abi}`, ...parameters)));
    await Promise.all(devices.map((each) => each.complaints()));
  }

  async function move(from: Guest, args: readonly string[] = [], devices: readonly string[] = DEVICE) {
    const to = await pair.receive(from.at === 0 ? 1 : 0, { devices });
    const { code, outcome, stderr } = await pair.migrate(from, to, ['--downtime-limit', '5000', ...args]);
    expect(code, stderr + to.stderr()).toBe(0);
    expect((await from.process.done).code).toBe(0);
    return { to, report: outcome!.report };
  }

  it.each(GENERATIONS)(`abi $abi: moves ${MOVES} times under load, and nothing is lost`, async (generation) => {
    await prepare(generation);
    const lives = [await pair.run(0, APPEND, { devices: DEVICE, image })];
    await pair.runsOn(lives[0]!, 5);
    for (let n = 0; n < MOVES; n++) {
      const { to, report } = await move(lives.at(-1)!);
      expect(report.dirty[generation.tracker], JSON.stringify(report.dirty)).toBeGreaterThan(0);
      expect(report.devices).toMatchObject([{ id: 'dev0', lateValidation: generation.late }]);
      expect(report.devices[0]!.stopCopyBytes).toBeGreaterThan(0);
      lives.push(to);
      await pair.runsOn(to, 3);
    }
    expect(await pair.end(lives.at(-1)!)).toBe(0);
    const verdict = judge(lives.map(({ console }) => console.text));
    console.log(`abi ${generation.abi}`, JSON.stringify({ ...verdict, errors: verdict.errors.slice(0, 3) }));
    expect(faultsOf(verdict, { edu: false, bringup: true })).toEqual([]);
    for (const each of devices) expect(await each.complaints()).toEqual([]);
  });

  it('does notice it: with the device log switched off and its bits thrown away, a page that only the device wrote is stale', async () => {
    await prepare(GENERATIONS[0]!);
    const guest = await pair.run(0, APPEND, { devices: DEVICE, image });
    await pair.runsOn(guest, 5);
    const { to } = await move(guest, ['--test-drop', 'deviceLog']);
    await to.console.until('an error of DMA', ({ text }) => /^error kind=(dma|bringup)/m.test(text), 120_000);
  });

  it('mtty, by I/O ports and INTx: moves there and back, and no byte is lost; without its state the next move is noticed', async () => {
    const { hosts } = pair.lab;
    await Promise.all(hosts.map((host) => makeMtty(host)));
    const serial = [`vfio-pci,id=dev0,sysfsdev=${MTTY}`];
    const lives = [await pair.run(0, 'edu=0 mtty=1 writer=4M rate=1M', { devices: serial, image })];
    await pair.runsOn(lives[0]!, 5);
    for (let n = 0; n < 2; n++) {
      const { to, report } = await move(lives.at(-1)!, [], serial);
      // Two ports and a header, of which pre-copy has had the header.
      expect(report.devices).toMatchObject([{ id: 'dev0', preCopyBytes: 24, stopCopyBytes: 72 }]);
      lives.push(to);
      await pair.runsOn(to, 3);
    }
    const verdict = judge(lives.map(({ console }) => console.text));
    console.log('mtty', JSON.stringify({ ...verdict, errors: verdict.errors.slice(0, 3) }));
    // One boot serves both: the verdict at the end is that of the move which has to be noticed.
    expect(faultsOf({ ...verdict, ok: true }, { edu: false, mtty: true })).toEqual([]);
    expect(verdict.errors).toEqual([]);

    await renewMtty(hosts[1]!);
    const { to } = await move(lives.at(-1)!, ['--test-drop', 'deviceState'], serial);
    await to.console.until('an error of mtty', ({ text }) => /^error kind=(register|mtty)/m.test(text), 120_000);
    await pair.dismiss();
    await Promise.all(hosts.map((host) => removeMtty(host)));
  });
});
