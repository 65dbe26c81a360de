// Two processes on /dev/kvm and a fault at every phase: destination killed, link cut, stream truncated, a byte flipped, migration cancelled.
// One guest lives through all of it at the source: no tick lost, no page wrong, its device running; the destination never runs it and says
// why. "Never two running" is what the reader of both consoles sees. At the end it moves after all. main-job.md, "Convergence, deadlines, ends".
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { type Fate, type Harm, Link } from '../fakes/harm-link.ts';
import { flatConfig } from './flat-machine.ts';
import { bundleNode, NodeProcess } from './migration-processes.ts';
import { judgeTicks } from './worker-console.ts';

const DEVICES = [{ type: 'blob', id: 'blob0', slot: null, properties: { seed: 7 } }];
let directory = '';
let script = '';
let sourceNode: NodeProcess | null = null;
const nodes: NodeProcess[] = [];
let links: Link[] = [];
let sockets = 0;

beforeAll(async () => {
  const out = resolve(import.meta.dirname, '../../out');
  mkdirSync(out, { recursive: true });
  directory = mkdtempSync(join(out, 'migration-'));
  script = bundleNode(directory);
  sourceNode = await bootSource();
});
afterEach(() => {
  for (const link of links) link.close();
  links = [];
});
afterAll(() => {
  for (const node of nodes) node.kill();
  rmSync(directory, { recursive: true });
});

async function bootSource(): Promise<NodeProcess> {
  const node = new NodeProcess(script);
  nodes.push(node);
  node.send({
    do: 'boot',
    config: { ...flatConfig('worker', { append: 'pages=256 batch=8 tick=20000' }), devices: DEVICES },
  });
  await node.event('booted');
  await node.until('a first tick', () => node.text.includes('tick n=3 '));
  return node;
}

interface Waiting {
  readonly node: NodeProcess;
  readonly path: string;
  /** Its word on why it gave up. */
  refused(): Promise<string>;
}

/** A destination that has given up waits for the next guest: whatever came over the link, it has put everything back. */
let idle: NodeProcess | null = null;

async function destination(change: object = {}): Promise<Waiting> {
  const node = idle ?? new NodeProcess(script);
  if (idle === null) nodes.push(node);
  idle = null;
  const from = node.events.length;
  const path = join(directory, `d${sockets++}`);
  const wanted = { devices: [{ ...DEVICES[0], properties: { seed: 9 } }], ...change };
  node.send({ do: 'receive', uri: `unix:${path}`, wanted });
  await node.event('listening', from);
  const refused = async (): Promise<string> => {
    const { error } = await node.event('refused', from);
    idle = node;
    return String(error);
  };
  return { node, path, refused };
}

async function linkTo(path: string, harm: Harm | null): Promise<{ uri: string; link: Link }> {
  const near = join(directory, `l${sockets++}`);
  const link = await Link.open(near, path, harm);
  links.push(link);
  return { uri: `unix:${near}`, link };
}

function bytes(hex: string, text = ''): Uint8Array {
  return Buffer.concat([Buffer.from(hex, 'hex'), Buffer.from(text)]);
}
const ping = (value: string): Uint8Array => bytes(`0800020004${value}`);

const PHASES: readonly { name: string; marker: Uint8Array; direction: Harm['direction']; occurrence: number }[] = [
  { name: 'before the configuration', marker: bytes('', 'ferry/config'), direction: 'forward', occurrence: 1 },
  { name: 'at the first device data', marker: bytes('', 'blob0/vfio'), direction: 'forward', occurrence: 1 },
  { name: 'in the RAM', marker: bytes('03', 'ram'), direction: 'forward', occurrence: 3 },
  { name: 'after RAM END, before the last device data', marker: ping('00000003'), direction: 'forward', occurrence: 1 },
  { name: 'after the last device data', marker: ping('00000004'), direction: 'forward', occurrence: 1 },
  { name: 'in the states', marker: bytes('', 'ferry/core'), direction: 'forward', occurrence: 1 },
  { name: 'at the check sum', marker: bytes('', 'ferry/crc'), direction: 'forward', occurrence: 1 },
  { name: 'at the last PING', marker: ping('7e5ac33d'), direction: 'forward', occurrence: 1 },
  { name: 'just before the last PONG', marker: bytes('000200047e5ac33d'), direction: 'back', occurrence: 1 },
];
const FAULTS = ['kill', 'cut', 'truncate', 'flip', 'cancel'] as const;

/** Runs one harmed migration of the one source, and holds what must be true afterwards. */
async function harmed(phase: (typeof PHASES)[number], fault: (typeof FAULTS)[number]): Promise<void> {
  const source = sourceNode!;
  const { node, path, refused } = await destination();
  const strike = (link: Link): Fate => {
    if (fault === 'kill') node.kill();
    if (fault === 'cancel') source.send({ do: 'cancel' });
    if (fault === 'kill' || fault === 'cut') setImmediate(() => link.cut());
    return fault === 'flip' || fault === 'truncate' ? fault : 'hold';
  };
  const { uri, link } = await linkTo(path, { ...phase, strike });
  const from = source.events.length;
  source.send({ do: 'migrate', uri });
  const outcome = await source.event('outcome', from);
  expect(link.struck).toBe(true);
  expect(outcome).toMatchObject({
    status: fault === 'cancel' ? 'cancelled' : 'failed',
    unanswered: false,
    state: 'running',
    device: 'running',
  });
  if (fault !== 'cancel') expect(String(outcome['error']).length).toBeGreaterThan(10);
  // What held the link would keep the destination waiting for as long as TCP takes; here the link ends with the case.
  link.cut();
  if (fault !== 'kill') expect((await refused()).length).toBeGreaterThan(5);
  const before = source.text.length;
  await source.until('ticks at the source', () => (source.text.slice(before).match(/tick n=/g)?.length ?? 0) >= 3);
  expect(node.text).toBe('');
  expect(judgeTicks(source.text, '')).toMatchObject({ lost: 0, errors: 0, back: 0 });
}

describe.each(FAULTS)('%s', (fault) => {
  const phases = PHASES.filter(({ direction }) => fault !== 'truncate' || direction === 'forward');
  it.each(phases.map((phase) => [phase.name, phase] as const))(
    '%s: the guest goes on at the source, the destination never runs it',
    (_name, phase) => harmed(phase, fault),
  );
});

describe('other ends', () => {
  it('a silent link during the pause is a failure after the deadline of 10 s, and the guest goes on', async () => {
    const source = sourceNode!;
    const { node, path, refused } = await destination();
    const { uri, link } = await linkTo(path, { ...PHASES[7]!, strike: () => 'hold' });
    const from = source.events.length;
    const began = performance.now();
    source.send({ do: 'migrate', uri });
    const outcome = await source.event('outcome', from);
    expect(outcome).toMatchObject({ status: 'failed', state: 'running', device: 'running' });
    expect(outcome['error']).toMatch(/no answer from the destination within 10000 ms/);
    expect(performance.now() - began).toBeGreaterThan(9_900);
    link.cut();
    await refused();
    expect(node.text).toBe('');
    expect(judgeTicks(source.text, '')).toMatchObject({ lost: 0, errors: 0, back: 0 });
  });

  it('a source that is killed before EOF: the destination gives up and says so', async () => {
    const source = await bootSource();
    const { node, path, refused } = await destination();
    const strike = (link: Link): 'hold' => {
      source.kill();
      setImmediate(() => link.cut());
      return 'hold';
    };
    const { uri } = await linkTo(path, { ...PHASES[6]!, strike });
    source.send({ do: 'migrate', uri });
    expect((await refused()).length).toBeGreaterThan(5);
    expect(node.text).toBe('');
    node.send({ do: 'state' });
    expect(await node.event('state')).toMatchObject({ state: 'inmigrate' });
  });

  it('a link that is cut after EOF: unanswered, the source stays postmigrate, the guest runs there alone', async () => {
    const source = await bootSource();
    const { node, path } = await destination();
    // SHUT: 0001 0004 00000000, after the report.
    const strike = (link: Link): 'hold' => {
      setImmediate(() => link.cut());
      return 'hold';
    };
    const { uri } = await linkTo(path, { marker: bytes('0001000400000000'), direction: 'back', occurrence: 1, strike });
    source.send({ do: 'migrate', uri });
    expect(await source.event('outcome')).toMatchObject({ status: 'failed', unanswered: true, state: 'postmigrate' });
    const said = source.text;
    await node.event('arrived');
    await node.until('ticks at the destination', () => (node.text.match(/tick n=/g)?.length ?? 0) >= 10);
    expect(source.text).toBe(said);
    expect(judgeTicks(source.text, node.text)).toMatchObject({ lost: 0, errors: 0, back: 0 });
  });

  const UNFIT: [string, object, RegExp][] = [
    ['without the device', { devices: [] }, /no device blob0 \(blob\) here/],
    ['with less RAM', { memory: 1 << 20 }, /--memory here says 1048576/],
    ['with other vCPUs', { cpus: 3 }, /1 vCPUs, --cpus here says 3/],
  ];
  it.each(UNFIT)('a destination %s refuses before any RAM, and both sides say why', async (_what, change, why) => {
    const source = sourceNode!;
    const { node, path, refused } = await destination(change);
    const from = source.events.length;
    source.send({ do: 'migrate', uri: `unix:${path}` });
    const outcome = await source.event('outcome', from);
    expect(outcome).toMatchObject({ status: 'failed', unanswered: false, state: 'running', device: 'running' });
    expect(outcome['error']).toMatch(why);
    expect(await refused()).toMatch(why);
    expect(node.text).toBe('');
    expect(judgeTicks(source.text, '')).toMatchObject({ lost: 0, errors: 0, back: 0 });
  });

  it('the guest that lived through all this moves at last, by TCP, and every tick and page is right', async () => {
    const source = sourceNode!;
    const node = new NodeProcess(script);
    nodes.push(node);
    node.send({ do: 'receive', uri: 'tcp:127.0.0.1:0', wanted: { devices: DEVICES } });
    const { uri } = await node.event('listening');
    const from = source.events.length;
    source.send({ do: 'migrate', uri });
    expect(await source.event('outcome', from)).toMatchObject({
      status: 'completed',
      error: null,
      state: 'postmigrate',
    });
    await node.until('ticks at the destination', () => (node.text.match(/tick n=/g)?.length ?? 0) >= 40);
    node.send({ do: 'type', text: 'q' });
    await node.event('ended');
    const verdict = judgeTicks(source.text, node.text);
    expect(verdict).toMatchObject({ lost: 0, errors: 0, back: 0 });
    expect(verdict.checks).toBeGreaterThan(256);
  });
});
