// Rules (issue 2, "Bad input and faults"; main-job.md, "Convergence, deadlines, ends"), with edu and its variant driver in two lab hosts:
// whatever breaks before EOF, one guest goes on at the source through all of it, without a lost tick, its device at work; the destination
// never runs it and says why. After EOF the source never runs it by itself. At the end the guest moves after all.
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { faultsOf, judge } from '../../images/guest/verdict.ts';
import type { Fate } from '../fakes/harm-link.ts';
import { expectCancelled, expectFailed, FaultBench, PLACES, type Place } from './fault-bench.ts';
import { said } from './flat-console.ts';
import { type Guest, Pair, pairUnavailable, untilSaid } from './pair.ts';
import { soon } from './soon.ts';

const unavailable = pairUnavailable();
if (unavailable !== null) console.log(`skipped: faults: ${unavailable}`);

/** Few dirty pages, so that a move takes little time; the demo's limit. */
const APPEND = 'writer=8M rate=1M';
/** By our own watch, or by the kernel's (TCP_USER_TIMEOUT, keep-alive, ARP), whichever comes first. */
const SILENCE = /nothing moved between the hosts for 30 s|the peer has been silent for too long|EHOSTUNREACH/;
const LIMIT = ['--downtime-limit', '1500'];

describe.skipIf(unavailable !== null)('moves between two lab hosts that fail', () => {
  let pair: Pair;
  let bench: FaultBench;
  let source: Guest;

  beforeAll(async () => {
    pair = await Pair.start();
    bench = await FaultBench.over(pair);
    [source] = await Promise.all([pair.run(0, APPEND), prepare()]);
  });
  afterAll(() => pair?.close());

  /** It starts while the test before still looks at its guest: until a guest comes it has nothing open. */
  let next: Promise<Guest> | null = null;
  async function prepare(): Promise<void> {
    next = pair.receive(1);
    next.catch(() => undefined);
  }
  async function receive(): Promise<Guest> {
    const destination = await (next ?? pair.receive(1));
    next = null;
    return destination;
  }

  /** A move through a link that breaks at `place`; `then` does the rest of the harm. */
  async function harmed(place: Place, fate: Fate, destination: Guest, limit = LIMIT) {
    const link = await bench.link(destination, place, fate);
    const { process, moved } = bench.migrate(source, link.uri, ...limit);
    const early = moved.then(({ stderr }) => {
      throw new Error(`ferry migrate ended before the place of the fault: ${stderr}`);
    });
    early.catch(() => undefined);
    await soon('the place of the fault', Promise.race([link.struck, early]));
    return { link, process, moved };
  }

  /** A guest of its own, with the device that another one may just have lost its life with. */
  async function bootAgain(): Promise<void> {
    source.process.kill('SIGKILL');
    await source.process.done;
    [source] = await Promise.all([pair.run(0, APPEND), prepare()]);
  }

  const KILLED: [string, Place][] = [
    ['during RAM', PLACES.ram],
    ['during device data', PLACES.deviceData],
    ['just before PONG', PLACES.pong],
  ];
  it.each(KILLED)('the destination is killed %s', async (_when, place) => {
    const destination = await receive();
    const { link, moved } = await harmed(place, 'stall', destination);
    destination.process.kill('SIGKILL');
    expectFailed(await moved, /the peer (went away|closed the connection)/);
    const { console } = await bench.ended(destination);
    expect(console).toBe('');
    await Promise.all([bench.goesOn(source, 'failed'), prepare()]);
    link.close();
  });

  const BROKEN: [string, 'flip' | 'truncate', Place][] = [
    ['the stream is truncated in RAM', 'truncate', PLACES.ram],
    ['the stream is truncated in device data', 'truncate', PLACES.deviceData],
    ['a byte of a page header is flipped', 'flip', PLACES.pageHeader],
    ['a byte of the device data is flipped', 'flip', PLACES.deviceData],
    ['a byte of the states is flipped', 'flip', PLACES.states],
  ];
  it.each(BROKEN)('%s', async (_what, fate, place) => {
    const destination = await receive();
    const { link, moved } = await harmed(place, fate, destination);
    expectFailed(await moved, /the destination refused: ./);
    await bench.gaveUp(destination, /the guest did not arrive: ./);
    await Promise.all([bench.goesOn(source, 'failed'), prepare()]);
    link.close();
  });

  const UNFIT: [string, Parameters<Pair['receive']>[1], RegExp][] = [
    ['without the device', { devices: [] }, /no device vfio-pci-0 \(vfio-pci\) here/],
    ['with less RAM', { options: ['--memory', '128M'] }, /memory.*--memory here says/],
    ['with other vCPUs', { options: ['--cpus', '2'] }, /1 vCPUs, --cpus here says 2/],
  ];
  it.each(UNFIT)('a destination %s refuses before any RAM', async (_what, options, why) => {
    const destination = await pair.receive(1, options);
    const move = await pair.migrate(source, destination, LIMIT);
    expectFailed(move, why);
    expect(move.outcome?.report.rounds).toEqual([]);
    await bench.gaveUp(destination, why);
    await bench.goesOn(source, 'failed');
  });

  const CANCELLED: [string, Place][] = [
    ['in the set-up', PLACES.setup],
    ['during RAM', PLACES.ram],
    ['during device data', PLACES.deviceData],
    ['just before PONG', PLACES.pong],
  ];
  it.each(CANCELLED)('Ctrl-C in ferry migrate %s cancels, and waits until the guest goes on', async (_when, place) => {
    const destination = await receive();
    const { link, process, moved } = await harmed(place, 'stall', destination);
    process.kill('SIGINT');
    expectCancelled(await moved);
    await bench.gaveUp(destination, /the guest did not arrive: ./);
    await Promise.all([bench.goesOn(source, 'cancelled'), prepare()]);
    link.close();
  });

  it('migrate_cancel while nobody listens for it: the move ends as cancelled', async () => {
    const destination = await receive();
    const link = await bench.link(destination, PLACES.lastPing, 'stall');
    const started = await pair.ferry(0, 'migrate', source.control, link.uri, '--detach', ...LIMIT);
    expect(started.code, started.stderr).toBe(0);
    await soon('the place of the fault', link.struck);
    expect(await bench.qmp(source, { execute: 'migrate_cancel' })).toMatchObject({ return: {} });
    await bench.gaveUp(destination, /the guest did not arrive: ./);
    await Promise.all([bench.goesOn(source, 'cancelled'), prepare()]);
    link.close();
  });

  it('the link is cut without a word, for one guest during RAM, for the other in the pause: both go on, all four ends say why', async () => {
    const flat = await pair.runFlat(0, 'worker', 'pages=2048 tick=100000', 'tick n=5 ', { devices: [] });
    const [flatDestination, destination] = await Promise.all([pair.receive(1, { devices: [] }), receive()]);
    const slow = bench.migrate(flat, flatDestination.uri ?? '', ...LIMIT, '--bandwidth', '100000');
    await untilRamMoves(bench, flat);
    const { link, moved } = await harmed(PLACES.lastPing, 'hold', destination);
    await pair.lab.setLink(false);
    try {
      expect((await bench.status(destination)).status).toBe('inmigrate');
      // In the pause: the guest goes on after the deadline, the destination gives up later.
      expectFailed(await moved, /no answer from the destination within 10000 ms/);
      await bench.goesOn(source, 'failed');
      // What is between them closes nothing, as a source under SIGSTOP would not.
      await bench.gaveUp(destination, /nothing moved between the hosts for 30 s/);
      // During RAM: 30 s of silence.
      expectFailed(await slow.moved, SILENCE);
      await bench.gaveUp(flatDestination, SILENCE);
    } finally {
      await pair.lab.setLink(true);
    }
    await said(flat, /^tick n=\d+ .*errors=0 back=0\r?$/m, flat.console.text.length);
    flat.process.disconnect();
    await prepare();
    link.close();
  });

  it('the guest that lived through all this moves at last, and everything in it is right', async () => {
    const destination = await receive();
    const move = await pair.migrate(source, destination, LIMIT);
    expect(move.code, move.stderr).toBe(0);
    await pair.runsOn(destination, 2);
    expect(await pair.end(destination)).toBe(0);
    expect((await source.process.done).code).toBe(0);
    expect(faultsOf(judge([source.console.text, destination.console.text]), { edu: true })).toEqual([]);
  });

  it('a source that is killed before EOF: the destination gives up, and no driver binding has changed', async () => {
    const bound = await bindingOf(pair, 0);
    await bootAgain();
    const destination = await receive();
    const { link } = await harmed(PLACES.lastPing, 'stall', destination);
    source.process.kill('SIGKILL');
    await bench.gaveUp(destination, /the guest did not arrive: ./);
    expect(await bindingOf(pair, 0)).toBe(bound);
    expect(bound).toContain('edu-vfio-pci');
    link.close();
  });

  it('SHUT is lost: exit code 3, the source stays paused; cancel is refused; by hand it goes on', async () => {
    await bootAgain();
    const destination = await receive();
    // A limit with which it still waits for SHUT when all this has been looked at.
    const { link, moved } = await harmed(PLACES.shut, 'hold', destination, ['--downtime-limit', '20000']);
    await pair.runsOn(destination);
    const refused = await bench.qmp(source, { execute: 'migrate_cancel' });
    expect(refused).toMatchObject({ error: { desc: expect.stringMatching(/can no longer be cancelled/) } });
    const said = source.console.text;
    link.cut();
    const move = await moved;
    expect(move.code, move.stderr).toBe(3);
    expect(move.stderr).toMatch(/the guest may run there/);
    expect(move.stderr).not.toMatch(/the guest runs here/);
    expect(move.outcome).toMatchObject({ status: 'failed', unanswered: true });
    await untilSaid(source, 'it stays paused here');
    expect(await bench.status(source)).toMatchObject({ status: 'postmigrate' });
    await pair.runsOn(destination);
    expect(source.console.text).toBe(said);
    destination.process.kill('SIGKILL');
    await destination.process.done;
    expect(await bench.qmp(source, { execute: 'cont' })).toMatchObject({ return: {} });
    await pair.runsOn(source, 1.5);
    expect(await pair.end(source)).toBe(0);
    expect(faultsOf(judge([source.console.text]), { edu: true })).toEqual([]);
    link.close();
  });
});

async function bindingOf(pair: Pair, at: 0 | 1): Promise<string> {
  const { host, edu } = pair.sides[at];
  const sys = `/sys/bus/pci/devices/${edu.bdf}`;
  return host.run(`basename $(readlink ${sys}/driver); cat ${sys}/driver_override; cd /run/ferry && grep -r . .`);
}

/** The first round is under way: some 2 s after the verb was started, on a quiet host. */
async function untilRamMoves(bench: FaultBench, source: Guest): Promise<void> {
  const until = performance.now() + 60_000;
  while (performance.now() < until) {
    const { return: answer } = (await bench.qmp(source, { execute: 'query-migrate' })) as {
      return: { status?: string; 'x-ferry'?: { progress?: { sentBytes: number } } };
    };
    if (answer.status === 'active' && (answer['x-ferry']?.progress?.sentBytes ?? 0) > 1 << 20) return;
    await sleep(20);
  }
  throw new Error('no RAM moved');
}
