// Rule: with a tracing door around the kernel everything works as before, and each call is one line that says what was asked, of which file,
// what came back and how long it took. Against the kernel of test/fakes.
import { existsSync, mkdtempSync, openSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { KernelDoor } from '../../../devices/vfio/kernel-door.ts';
import { openDmaLog } from '../../../devices/vfio/migration/dma-log.ts';
import { openFeatureV2 } from '../../../devices/vfio/migration/feature-v2.ts';
import { probeDevice } from '../../../devices/vfio/probe.ts';
import { callText, showTrace } from '../../../devices/vfio/trace/show.ts';
import { type CallLine, parseTrace, readTrace, type TraceLine } from '../../../devices/vfio/trace/trace-file.ts';
import { headerFor, TraceWriter } from '../../../devices/vfio/trace/trace-writer.ts';
import { TracingDoor } from '../../../devices/vfio/trace/tracing-door.ts';
import { HostTree } from '../../fakes/host-tree.ts';
import { FakeVfioKernel, migratable, regionInfo } from '../../fakes/vfio-kernel.ts';

const BDF = '0000:65:00.0';
let tree: HostTree;
let kernel: FakeVfioKernel;
let lines: TraceLine[];

beforeEach(() => {
  tree = new HostTree();
  tree.device(BDF, 4, 'edu-vfio-pci');
  kernel = new FakeVfioKernel();
  kernel.migration = migratable();
  kernel.regions = [regionInfo(0, 0x1000n, 7), new Uint8Array(0), regionInfo(2, 0x4000n, 7, [[0n, 0x2000n]])];
  kernel.irqs = [{ flags: 1, count: 1 }];
  lines = [];
});
afterEach(() => tree.close());

const traced = (data = false): KernelDoor =>
  new TracingDoor(kernel, { sink: { line: (line) => lines.push(line) }, paths: tree.paths, data });
const calls = (): CallLine[] => lines.filter((line): line is CallLine => 'call' in line);

describe('ferry vfio info', () => {
  it('finds the same, and its calls are there in order, each with its file', async () => {
    const plain = await probeDevice(kernel, tree.paths, BDF);
    const seen = kernel.names.splice(0);
    expect(await probeDevice(traced(), tree.paths, BDF)).toEqual(plain);
    expect(kernel.names).toEqual(seen);
    const text = calls().map(({ on, what, result, errno }) => `${on}: ${what} = ${errno ?? result}`);
    expect(text.filter((line) => !line.includes('GET_IRQ'))).toEqual([
      'group 4: VFIO_GROUP_SET_CONTAINER = 0',
      'container: VFIO_SET_IOMMU(VFIO_TYPE1v2_IOMMU) = 0',
      'container: VFIO_IOMMU_GET_INFO = 0',
      'container: VFIO_IOMMU_GET_INFO = 0',
      expect.stringMatching(/^group 4: VFIO_GROUP_GET_DEVICE_FD\(0000:65:00.0\) = \d+$/),
      'device 0000:65:00.0: VFIO_DEVICE_FEATURE(PROBE GET MIGRATION) = 0',
      'device 0000:65:00.0: VFIO_DEVICE_FEATURE(GET MIGRATION) = 0',
      'device 0000:65:00.0: VFIO_DEVICE_FEATURE(PROBE SET MIG_PRECOPY_INFOv2) = 0',
      'device 0000:65:00.0: VFIO_DEVICE_FEATURE(SET MIG_PRECOPY_INFOv2) = ENOTTY',
      'device 0000:65:00.0: VFIO_DEVICE_FEATURE(GET MIG_DEVICE_STATE) = 0',
      'device 0000:65:00.0: VFIO_DEVICE_FEATURE(PROBE SET DMA_LOGGING_START) = ENOTTY',
      'device 0000:65:00.0: VFIO_DEVICE_GET_INFO = 0',
      'device 0000:65:00.0: VFIO_DEVICE_GET_REGION_INFO(index=0) = 0',
      'device 0000:65:00.0: VFIO_DEVICE_GET_REGION_INFO(index=1) = EINVAL',
      'device 0000:65:00.0: VFIO_DEVICE_GET_REGION_INFO(index=2) = 0',
      'device 0000:65:00.0: VFIO_DEVICE_GET_REGION_INFO(index=2) = 0',
      'device 0000:65:00.0: VFIO_DEVICE_FEATURE(GET MIG_DATA_SIZE) = 0',
      'device 0000:65:00.0: close = 0',
      'group 4: VFIO_GROUP_UNSET_CONTAINER = 0',
    ]);
    expect(lines.find((line) => 'device' in line)).toEqual({ device: { ...plain.device, cdev: null, iommufd: false } });
    expect(calls().every(({ at, us }) => Number.isInteger(at) && Number.isInteger(us) && us >= 0)).toBe(true);
  });
});

describe('a migration session', () => {
  it('shows states, the data fd by its own name, and refusals', async () => {
    const door = traced();
    const device = openFeatureV2(door, openDevice(door), BDF)!;
    await device.setState('pre-copy');
    await device.precopyInfo();
    await device.setState('stop-copy');
    kernel.migration!.fail = { errno: 5, state: 0 };
    await expect(device.setState('stop')).rejects.toThrow(/EIO/);
    const text = calls().map(
      ({ on, what, errno, made }) => `${on}: ${what}${errno ?? ''}${made ? ` -> ${made.on}` : ''}`,
    );
    expect(text.slice(-6)).toEqual([
      `device ${BDF}: VFIO_DEVICE_FEATURE(SET MIG_DEVICE_STATE device_state=PRE_COPY) -> data 1 of ${BDF}`,
      `data 1 of ${BDF}: VFIO_MIG_GET_PRECOPY_INFO`,
      `device ${BDF}: VFIO_DEVICE_FEATURE(SET MIG_DEVICE_STATE device_state=STOP_COPY)`,
      `device ${BDF}: VFIO_DEVICE_FEATURE(SET MIG_DEVICE_STATE device_state=STOP)EIO`,
      `device ${BDF}: VFIO_DEVICE_FEATURE(GET MIG_DEVICE_STATE)`,
      `data 1 of ${BDF}: close`,
    ]);
  });

  it('shows what pointers mean, never an address: RAM, lists, bitmaps', async () => {
    kernel.dmaLogging = 'works';
    const door = traced();
    const log = openDmaLog(door, openDevice(door), BDF)!;
    await log.start([{ start: 0, length: 0x10000 }], 4096);
    const bitmap = { pages: 16, count: 0, set: () => {} } as never;
    await log.report({ gpa: 0, size: 0x10000, slice: { ram: {} as never, offset: 0, size: 0x10000 } }, bitmap);
    expect(calls().at(-2)?.given).toMatchObject({ num_ranges: 1, ranges: [{ iova: '0x0', length: '0x10000' }] });
    expect(calls().at(-1)?.given).toMatchObject({ bitmap: 'bitmap of 16 pages from page 0', length: '0x10000' });
  });
});

describe('register accesses', () => {
  it('are told by region, and kept whole where they are small; large ones as length and hash', async () => {
    const door = traced();
    const fd = openDevice(door);
    const arg = regionInfo(2, 0n, 0).slice(0, 32);
    door.ioctl('VFIO_DEVICE_GET_REGION_INFO', fd, 0x3b6c, arg);
    door.pread(fd, 2 * 2 ** 40 + 0x10, new Uint8Array(4));
    await door.pwriteAsync(fd, 2n * 2n ** 40n, new Uint8Array(100));
    expect(() => door.mapFd(fd, 2 * 2 ** 40, 0x1000, true)).toThrow('EINVAL');
    const [read, write, map] = calls().slice(-3);
    expect(read).toMatchObject({
      what: 'pread(region 2+0x10, 4)',
      result: 4,
      payload: { length: 4, data: 'q6urqw==' },
    });
    expect(write).toMatchObject({ what: 'pwrite(region 2+0x0, 100)', payload: { length: 100 } });
    expect(write?.payload?.data).toBeUndefined();
    expect(write?.payload?.hash).toMatch(/^[0-9a-f]{16}$/);
    expect(map).toMatchObject({ what: 'mmap(region 2+0x0, 0x1000, READ|WRITE)', errno: 'EINVAL' });
    const kept = traced(true);
    await kept.preadAsync(openDevice(kept), 0, new Uint8Array(100));
    expect(calls().at(-1)?.payload?.data).toHaveLength(136);
  });

  it('that the door refuses by itself are no calls of the kernel', () => {
    kernel.answers.set('BAD', () => {
      throw new RangeError('the argument is shorter than what the kernel would read');
    });
    expect(() => traced().ioctl('BAD', 0, 0x3b6b, new Uint8Array(1))).toThrow(RangeError);
    expect(lines).toEqual([]);
  });
});

function openDevice(door: KernelDoor): number {
  const group = openSync(join(tree.paths.dev, 'vfio/4'), 'r+');
  return door.ioctl('VFIO_GROUP_GET_DEVICE_FD', group, 0x3b6a, Buffer.from(`${BDF}\0`));
}

describe('the file', () => {
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'ferry-trace-'));
  });
  afterEach(() => rmSync(folder, { recursive: true }));
  const options = { program: ['ferry', 'vfio', 'info'], data: false, notes: ['a note'] };

  it('is complete after close(), private, and reads back as what was written', async () => {
    const path = join(folder, 'trace');
    const writer = new TraceWriter(path, options);
    const door = new TracingDoor(kernel, { sink: writer, paths: tree.paths, data: false });
    for (let i = 0; i < 200; i++) await probeDevice(door, tree.paths, BDF);
    writer.close();
    writer.close();
    expect(statSync(path).mode & 0o777).toBe(0o600);
    const trace = readTrace(path);
    expect(trace.header).toMatchObject({ ...options, version: 1 });
    // Each time the device's fd is closed too.
    expect(trace.calls.length).toBe(kernel.calls.length + 200);
    expect(trace.calls[0]?.line).toBe(2);
    expect(trace.devices.map(({ bdf }) => bdf)).toEqual([BDF]);
    expect(trace.cut).toBe(false);
    expect(showTrace(trace)).toContain(
      'device 0000:65:00.0: VFIO_DEVICE_GET_REGION_INFO(index=0) = 0  flags=READ|WRITE|MMAP size=0x1000',
    );
  });

  it('that is full ends the trace, not the program, and is said once', () => {
    const writer = new TraceWriter('/dev/full', options);
    for (let i = 0; i < 3000; i++) writer.line({ end: { at: i, pid: 1, code: 0, signal: null } });
    writer.close();
    expect(writer.failed?.message).toContain('ENOSPC');
  });

  it('is refused in one line that says what to do', () => {
    const path = join(folder, 'trace');
    expect(() => new TraceWriter(join(folder, 'none/trace'), options)).toThrow(
      /none\/trace cannot be written \(ENOENT\)/,
    );
    expect(() => readTrace(path)).toThrow(/cannot be read \(ENOENT\)/);
    writeFileSync(path, 'hello\n');
    expect(() => readTrace(path)).toThrow(/is no trace of ferry/);
    const header = JSON.stringify(headerFor(options));
    expect(() => parseTrace('t', header.replace('"version":1', '"version":2'))).toThrow(
      /version 2, this ferry reads version 1/,
    );
    expect(() => parseTrace('t', `${header}\n{\n`)).toThrow(/t line 2 is not JSON/);
    expect(parseTrace('t', `${header}\n{"call":"io`)).toMatchObject({ calls: [], cut: true });
    expect(existsSync(path)).toBe(true);
    expect(readFileSync(path, 'utf8')).toBe('hello\n');
  });
});

it('an unknown call is shown with its bytes', () => {
  const line = {
    at: 1_500_000,
    us: 3,
    call: 'ioctl',
    fd: 5,
    on: 'device x',
    what: 'ioctl 0x3bff',
    before: '0800',
    result: -1,
    errno: 'ENOTTY',
  };
  expect(callText(line)).toBe('    1.500000  device x: ioctl 0x3bff = ENOTTY  0800  (3 us)');
});
