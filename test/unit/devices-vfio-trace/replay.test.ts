// Rule: what was recorded of a client is answered again to the same client, with no kernel behind it, and gives the same; what does not fit is
// one line that names the line of the trace, what it expects and what was asked.
import { closeSync, existsSync, openSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { KernelDevice } from '../../../devices/vfio/kernel-device.ts';
import type { KernelDoor } from '../../../devices/vfio/kernel-door.ts';
import { openDmaLog } from '../../../devices/vfio/migration/dma-log.ts';
import { openFeatureV2 } from '../../../devices/vfio/migration/feature-v2.ts';
import { probeDevice } from '../../../devices/vfio/probe.ts';
import { ReplayDoor } from '../../../devices/vfio/trace/replay-door.ts';
import { ReplayHost } from '../../../devices/vfio/trace/replay-host.ts';
import { replayInfo } from '../../../devices/vfio/trace/replay-info.ts';
import { hasWalk, replayWalk } from '../../../devices/vfio/trace/replay-walk.ts';
import { type CallLine, parseTrace, type Trace, type TraceLine } from '../../../devices/vfio/trace/trace-file.ts';
import { headerFor, payloadOf } from '../../../devices/vfio/trace/trace-writer.ts';
import { TracingDoor } from '../../../devices/vfio/trace/tracing-door.ts';
import { HostTree } from '../../fakes/host-tree.ts';
import { FakeVfioKernel, migratable, regionInfo } from '../../fakes/vfio-kernel.ts';

const BDF = '0000:65:00.0';
const FILE = 'bug.trace';
let tree: HostTree;
let kernel: FakeVfioKernel;
let lines: TraceLine[];
let door: KernelDoor;

beforeEach(() => {
  tree = new HostTree();
  tree.device(BDF, 4, 'edu-vfio-pci');
  kernel = new FakeVfioKernel();
  kernel.migration = migratable();
  kernel.dmaLogging = 'works';
  kernel.regions = [regionInfo(0, 0x1000n, 7), new Uint8Array(0), regionInfo(2, 0x4000n, 7, [[0n, 0x2000n]])];
  kernel.irqs = [{ flags: 1, count: 1 }];
  lines = [headerFor({ program: ['ferry', 'vfio', 'info', BDF], data: true, notes: [] })];
  door = new TracingDoor(kernel, { sink: { line: (line) => lines.push(line) }, paths: tree.paths, data: true });
});
afterEach(() => tree.close());

/** Through the text, as a user's file comes. */
const trace = (): Trace => parseTrace(FILE, `${lines.map((line) => JSON.stringify(line)).join('\n')}\n`);
/** Its paths, as on a host that is not in a directory of a test. */
const said = <T>(offer: T): T => JSON.parse(JSON.stringify(offer, big).replaceAll(tree.root, ''), small) as T;
const big = (_key: string, value: unknown) => (typeof value === 'bigint' ? { bigint: String(value) } : value);
const small = (_key: string, value: unknown) =>
  typeof value === 'object' && value !== null && 'bigint' in value ? BigInt(String(value.bigint)) : value;
const native = { createBitmap: (pages: number) => kernel.createBitmap(pages), eventFd: () => 0, eventTake: () => 0n };
const input = () => ({ trace: trace(), file: FILE, native });
const lineOf = (what: string) => lines.findIndex((line) => 'what' in line && line.what.startsWith(what)) + 1;

describe('ferry vfio info', () => {
  it('says the same of the trace as of the device, and asks for every call of it', async () => {
    const offer = await probeDevice(door, tree.paths, BDF);
    expect(await replayInfo(input())).toEqual([said(offer)]);
    const host = new ReplayHost(trace());
    const replay = new ReplayDoor({ ...input(), paths: host.paths, only: null, optional: null });
    await probeDevice(replay, host.paths, BDF);
    expect(replay.left).toEqual([]);
    expect(replay.mismatch).toBeNull();
    replay.close();
    host.close();
    expect(existsSync(host.paths.sys)).toBe(false);
  });

  it('says the same of a mediated device', async () => {
    const uuid = '83b8f4f2-509f-382f-3c1e-e6bfe0fa1001';
    tree.mediated(uuid, 7);
    const offer = await probeDevice(door, tree.paths, uuid);
    expect(offer.device).toMatchObject({ bdf: uuid, group: 7, driver: 'some_mdev' });
    expect(await replayInfo(input())).toEqual([said(offer)]);
  });

  it('says the same of a device that offers less', async () => {
    kernel.migration = null;
    kernel.dmaLogging = 'none';
    kernel.answers.set('VFIO_DEVICE_GET_IRQ_INFO', 22);
    const offer = await probeDevice(door, tree.paths, BDF);
    expect(offer.blocker).not.toBeNull();
    expect(await replayInfo(input())).toEqual([said(offer)]);
  });

  it('that failed fails again by the same errno', async () => {
    kernel.answers.set('VFIO_DEVICE_GET_REGION_INFO', 5);
    await expect(probeDevice(door, tree.paths, BDF)).rejects.toThrow('VFIO_DEVICE_GET_REGION_INFO: EIO');
    await expect(replayInfo(input())).rejects.toThrow('VFIO_DEVICE_GET_REGION_INFO: EIO');
  });

  it('of a trace that differs names the line, what it expects and what was asked', async () => {
    await probeDevice(door, tree.paths, BDF);
    const at = lineOf('VFIO_DEVICE_GET_INFO');
    lines.splice(at - 1, 1);
    await expect(replayInfo(input())).rejects.toThrow(
      `${FILE}: line ${at} expects VFIO_DEVICE_GET_REGION_INFO(index=0) of device ${BDF}, but VFIO_DEVICE_GET_INFO was asked`,
    );
    lines[0] = headerFor({ program: ['qemu-system-x86_64'], data: true, notes: [] });
    await expect(replayInfo(input())).rejects.toThrow(
      /was asked; this is a trace of 'qemu-system-x86_64', which may well call in another order than ferry vfio info/,
    );
    lines[0] = headerFor({ program: ['ferry', 'vfio', 'info', BDF], data: true, notes: [] });
    lines.splice(at - 1);
    await expect(replayInfo(input())).rejects.toThrow(
      `${FILE}: has no further call of device ${BDF}, but VFIO_DEVICE_GET_INFO was asked`,
    );
  });

  it('of a trace that leads out of its directory, or lacks what a call has, is refused', async () => {
    await probeDevice(door, tree.paths, BDF);
    const device = lines.find((line) => 'device' in line)!.device;
    const refused = (change: object, text: RegExp) => {
      const kept = lines;
      lines = [...lines.slice(0, 1), { device: { ...device, ...change } }];
      expect(trace).toThrow(text);
      lines = kept;
    };
    refused({ bdf: '../../../../tmp/x' }, /bug.trace line 2 has no usable 'bdf' of its device: the file is damaged/);
    refused({ driver: '../../x' }, /no usable 'driver'/);
    refused({ cdev: '..' }, /no usable 'cdev'/);
    refused({ group: '../x' }, /no usable 'group'/);
    lines.push({ call: 'open', on: 'group ../../../escaped' } as never);
    expect(trace).toThrow(/line \d+ has no usable 'at' of its call/);
    lines.pop();
    lines.push({ at: 0, us: 0, call: 'open', fd: 1, on: 'group ../../../escaped', what: 'open', result: 1 });
    const host = new ReplayHost(trace());
    expect(existsSync(`${host.paths.dev}/../../escaped`)).toBe(false);
    host.close();
  });

  it('needs a device in the trace', async () => {
    await expect(replayInfo(input())).rejects.toThrow(/no device was opened in this trace/);
  });
});

describe('a replayed device', () => {
  async function record(use: (device: KernelDevice, fd: number) => Promise<void> | void): Promise<void> {
    const offer = await openAll(door);
    await use(offer.device, offer.fd);
    await offer.device.close();
  }
  async function openAll(through: KernelDoor): Promise<{ device: KernelDevice; fd: number }> {
    const fd = through.ioctl('VFIO_GROUP_GET_DEVICE_FD', group(), 0x3b6a, Buffer.from(`${BDF}\0`));
    const parts = {
      kind: 'group',
      name: BDF,
      door: through,
      fd,
      migration: null,
      dmaLog: null,
      closing: null,
    } as const;
    return { device: new KernelDevice({ ...parts, closed: async () => {} }), fd };
  }
  let groupFd = -1;
  const replays: ReplayDoor[] = [];
  const group = () => groupFd;
  beforeEach(() => {
    groupFd = openSync(`${tree.paths.dev}/vfio/4`, 'r+');
  });
  afterEach(() => {
    for (const each of replays.splice(0)) each.close();
    closeSync(groupFd);
  });
  function replay(): ReplayDoor {
    const made = new ReplayDoor({ ...input(), paths: tree.paths, only: null, optional: null });
    replays.push(made);
    return made;
  }

  it('gives register values, and insists on what is written', async () => {
    const value = new Uint8Array(4);
    const use = async (device: KernelDevice) => {
      device.readRegion(2, 8, value);
      device.writeRegion(2, 8, Uint8Array.of(1, 2, 3, 4));
    };
    await record(use);
    const again = await openAll(replay());
    await use(again.device);
    expect([...value]).toEqual([0xab, 0xab, 0xab, 0xab]);
    const other = await openAll(replay());
    other.device.readRegion(2, 8, value);
    expect(() => other.device.writeRegion(2, 8, Uint8Array.of(1, 2, 3, 5))).toThrow(
      /line \d+ \(pwrite\(region 2\+0x8, 4\)\) wrote other bytes than those that are written now/,
    );
    const third = await openAll(replay());
    expect(() => third.device.readRegion(2, 12, value)).toThrow(
      /line \d+ expects pread\(region 2\+0x8, 4\) of device 0000:65:00.0, but pread\(0x2000000000c, 4\) was asked/,
    );
  });

  it('cannot give bytes that were not kept, and says how to have them', async () => {
    await record((device) => device.readRegion(0, 0, new Uint8Array(100)));
    for (const line of lines) if ('payload' in line) delete (line.payload as { data?: string }).data;
    const { device } = await openAll(replay());
    expect(() => device.readRegion(0, 0, new Uint8Array(100))).toThrow(/are not in the trace: record it with --data/);
  });

  it('gives a dirty bitmap where the trace has one, and never an empty one instead', async () => {
    const range = { gpa: 0, size: 0x40000, slice: { ram: {} as never, offset: 0x10000, size: 0x40000 } };
    const marked: unknown[] = [];
    const bitmap = { pages: 64, set: () => {}, orBytes: (...args: unknown[]) => marked.push(args) } as never;
    await record(async (_device, fd) => openDmaLog(door, fd, BDF)!.report(range, bitmap));
    const without = replay();
    const first = await openAll(without);
    const log = openDmaLog(without, first.fd, BDF)!;
    await expect(log.report(range, bitmap)).rejects.toThrow(/dirty pages of line \d+ .* are not in the trace/);
    const report = lines.find((line): line is CallLine => 'what' in line && line.what.includes('REPORT'))!;
    Object.assign(report, { bitmap: payloadOf(Uint8Array.of(3, 0, 0, 0, 0, 0, 0, 0), 8, true) });
    const withOne = replay();
    const second = await openAll(withOne);
    await openDmaLog(withOne, second.fd, BDF)!.report(range, bitmap);
    expect(marked).toEqual([[0x10000, Buffer.from([3, 0, 0, 0, 0, 0, 0, 0]), 4096]]);
  });

  it('cannot be mapped: its registers are trapped', async () => {
    await record(() => {});
    const { device } = await openAll(replay());
    expect(device.mapArea(0, { start: 0, length: 4096 })).toBeNull();
  });
});

describe('the migration part', () => {
  /** What a program of its own did, whose reads of the data fd are in the trace. */
  async function session(): Promise<void> {
    const group = openSync(`${tree.paths.dev}/vfio/4`, 'r+');
    const device = openFeatureV2(door, door.ioctl('GET_DEVICE_FD', group, 0x3b6a, Buffer.from(`${BDF}\0`)), BDF)!;
    await device.setState('pre-copy');
    await device.precopyInfo();
    await device.stopCopySize();
    stream(1000, null);
    stream(24, null);
    stream(-1, 'ENOMSG');
    kernel.migration!.fail = { errno: 5, state: 0 };
    await device.setState('stop-copy').catch(() => {});
    closeSync(group);
  }
  function stream(result: number, errno: string | null): void {
    const at = Math.max(...lines.map((line) => ('at' in line ? line.at : 0)));
    const moved = errno === null ? { payload: payloadOf(new Uint8Array(result), result, false) } : { errno };
    lines.push({
      at,
      us: 1,
      call: 'read',
      fd: 9,
      on: `data 1 of ${BDF}`,
      what: 'read(4096)',
      length: 4096,
      result,
      ...moved,
    });
  }

  it('is walked by our own code: each step with what came of it', async () => {
    kernel.answers.set('GET_DEVICE_FD', () => kernel.eventFd());
    await session();
    expect(hasWalk(trace().calls)).toBe(true);
    const steps = await replayWalk(input());
    expect(steps.map(({ text }) => text)).toEqual([
      'can STOP_COPY P2P PRE_COPY',
      'RUNNING -> PRE_COPY',
      '4096 bytes initial, 12 dirty',
      '5000 bytes when stopped',
      'stream: 1024 bytes in 2 reads, then ENOMSG: no more for now',
      `${BDF}: the device refused to go from PRE_COPY to STOP_COPY (EIO); it is in ERROR`,
    ]);
    expect(steps.map(({ ok }) => ok)).toEqual([true, true, true, true, true, false]);
    expect(steps[1]?.line).toBe(lineOf('VFIO_DEVICE_FEATURE(SET MIG_DEVICE_STATE'));
  });

  it('says where Ferry does otherwise than the traced program', async () => {
    kernel.answers.set('GET_DEVICE_FD', () => kernel.eventFd());
    await session();
    // This program did not ask for the state after the refusal.
    lines.splice(lineOf('VFIO_DEVICE_FEATURE(GET MIG_DEVICE_STATE)') - 1, 1);
    const steps = await replayWalk(input());
    expect(steps.at(-1)).toMatchObject({
      ok: false,
      text: `${FILE}: has no further call of device ${BDF}, but VFIO_DEVICE_FEATURE(GET MIG_DEVICE_STATE) was asked`,
    });
  });

  it('loads what was written in one step, and leaves out what Ferry never does', async () => {
    kernel.answers.set('GET_DEVICE_FD', () => kernel.eventFd());
    const group = openSync(`${tree.paths.dev}/vfio/4`, 'r+');
    const device = openFeatureV2(door, door.ioctl('GET_DEVICE_FD', group, 0x3b6a, Buffer.from(`${BDF}\0`)), BDF)!;
    closeSync(group);
    await device.setState('resuming');
    for (const size of [97, 3]) wrote(size, null);
    await device.setState('stop');
    // The session is over: this program tries all the same.
    wrote(-1, 'ENODEV');
    await device.setState('resuming');
    wrote(-1, 'EINVAL');
    const on = `data 2 of ${BDF}`;
    lines.push({
      ...(lines.at(-1) as CallLine),
      call: 'ioctl',
      on,
      what: 'VFIO_MIG_GET_PRECOPY_INFO',
      request: 0x3b79,
    });
    const steps = await replayWalk(input());
    expect(steps.map(({ ok, text }) => [ok, text])).toEqual([
      [true, 'can STOP_COPY P2P PRE_COPY'],
      [true, 'RUNNING -> RESUMING'],
      [true, 'stream: 100 bytes in 2 writes'],
      [true, 'RESUMING -> STOP'],
      [true, 'write(4096): the session has ended, so Ferry does not ask'],
      [true, 'STOP -> RESUMING'],
      [false, 'the device refused bytes of the stream (EINVAL) after 0'],
      [true, 'what is left of pre-copy: Ferry does not ask in RESUMING'],
    ]);
  });
  function wrote(result: number, errno: string | null): void {
    stream(result, errno);
    const opened = lines.filter((line) => 'made' in line && line.made?.on.startsWith('data ')).length;
    Object.assign(lines.at(-1) as object, { call: 'write', what: 'write(4096)', on: `data ${opened} of ${BDF}` });
  }

  it('ends also when lines are in another order than the calls began', async () => {
    kernel.answers.set('GET_DEVICE_FD', () => kernel.eventFd());
    await session();
    // A program's second thread: its call began first and ended last.
    const at = lineOf('VFIO_DEVICE_FEATURE(GET MIG_DATA_SIZE)') - 1;
    lines[at] = { ...(lines[at] as CallLine), at: 0 };
    const steps = await replayWalk(input());
    expect(steps[0]?.line).toBe(at + 1);
    expect(steps).toHaveLength(8);
  });

  it('of a program that does not know pre-copy info version 2 is walked without it', async () => {
    kernel.answers.set('GET_DEVICE_FD', () => kernel.eventFd());
    await session();
    const all = await replayWalk(input());
    const before = lines.length;
    lines = lines.filter((line) => !('what' in line && line.what.includes('MIG_PRECOPY_INFOv2')));
    expect(lines.length).toBeLessThan(before);
    expect((await replayWalk(input())).map(({ text }) => text)).toEqual(all.map(({ text }) => text));
  });

  it('is nothing that a trace of ferry vfio info has', async () => {
    await probeDevice(door, tree.paths, BDF);
    expect(hasWalk(trace().calls)).toBe(false);
  });
});
