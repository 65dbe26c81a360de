// Rule: a traced program behaves as it would alone, and every call that it makes on a file of interest is told, however it came by the fd:
// threads, children, exec, dup, sockets, in dynamic and in static programs. Small C programs use files in the place of /dev/vfio.
import { execFileSync, spawn } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { traceForeign } from '../../../devices/vfio/trace/foreign.ts';
import { callText } from '../../../devices/vfio/trace/show.ts';
import type { CallLine, EndLine, TraceLine } from '../../../devices/vfio/trace/trace-file.ts';
import { KIND_NUMBERS, tracerRules } from '../../../devices/vfio/trace/tracer-rules.ts';
import { kvmNode, type TraceRules } from '../../../native/addon.ts';
import { HostTree } from '../../fakes/host-tree.ts';

// TIOCGPTPEER and the type of terminal ioctls. asm-generic/ioctls.h
const TIOCGPTPEER = 0x5441;
const ANY = 0xffffffff;

let folder: string;
let tree: HostTree;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'ferry-tracer-'));
  const source = join(import.meta.dirname, 'tracer/calls.c');
  for (const [name, flags] of [
    ['dynamic', []],
    ['static', ['-static']],
  ] as const) {
    execFileSync('gcc', ['-w', '-pthread', ...flags, '-o', join(folder, name), source]);
  }
});
afterAll(() => rmSync(folder, { recursive: true }));
beforeEach(() => {
  tree = new HostTree();
  tree.device('0000:65:00.0', 4, 'vfio-pci');
});
afterEach(() => tree.close());

interface Traced {
  readonly code: number | null;
  readonly signal: number | null;
  readonly calls: CallLine[];
  readonly ends: EndLine['end'][];
  /** "group 4: VFIO_GROUP_GET_STATUS = ENOTTY" */
  readonly text: string[];
}

async function trace(
  command: readonly string[],
  options: { data?: boolean; rules?: TraceRules; started?: (pid: number) => void } = {},
): Promise<Traced> {
  const lines: TraceLine[] = [];
  const end = await traceForeign(kvmNode(), command, {
    sink: { line: (line) => lines.push(line) },
    paths: tree.paths,
    data: options.data ?? false,
    rules: options.rules ?? null,
    started: options.started ?? (() => {}),
  });
  const calls = lines.filter((line): line is CallLine => 'call' in line);
  return {
    ...end,
    calls,
    ends: lines.flatMap((line) => ('end' in line ? [line.end] : [])),
    text: calls.map(({ on, what, result, errno }) => `${on}: ${what} = ${errno ?? result}`),
  };
}
const run = (kind: string, what: string, ...rest: string[]) =>
  trace([join(folder, kind), tree.paths.dev, what, ...rest]);
const STATUS = 'group 4: VFIO_GROUP_GET_STATUS = ENOTTY';
const count = (text: readonly string[], line: string) => text.filter((each) => each === line).length;

describe.each(['dynamic', 'static'])('a %s program', (kind) => {
  it('is seen in every call that it makes on a file of interest, and in none on another', async () => {
    const { code, text, calls } = await run(kind, 'every');
    expect(code).toBe(0);
    expect(text.map((line) => line.replaceAll(tree.paths.dev, 'DEV'))).toEqual(
      [
        expect.stringMatching(/^group 4: open\(DEV\/vfio\/4\) = \d+$/),
        expect.stringMatching(/^container: open\(DEV\/vfio\/vfio\) = \d+$/),
        'group 4: VFIO_GROUP_SET_CONTAINER = ENOTTY',
        'group 4: VFIO_GROUP_GET_DEVICE_FD(0000:65:00.0) = ENOTTY',
        'container: VFIO_SET_IOMMU(VFIO_TYPE1v2_IOMMU) = ENOTTY',
        'container: VFIO_IOMMU_MAP_DMA(iova=0x1000 size=0x2000 flags=READ|WRITE) = ENOTTY',
        // Its argument is no memory of the program's.
        'container: VFIO_IOMMU_MAP_DMA = ENOTTY',
        'group 4: ioctl 0x3b7f = ENOTTY',
        'group 4: write(8) = 8',
        'group 4: pwrite(0x10, 4) = 4',
        'group 4: pread(0x0, 8) = 8',
        'group 4: read(3) = 3',
        'group 4: pwrite(0x20, 8) = 8',
        'group 4: pread(0x20, 8) = 8',
        'group 4: poll = 1',
        'group 4: mmap(0x0, 0x1000, READ) = 140737488355328',
        'group 4: close = 0',
      ].map((each, i) => (i === 15 ? expect.stringMatching(/^group 4: mmap\(0x0, 0x1000, READ\) = \d+$/) : each)),
    );
    const [group, container] = calls;
    expect(calls[2]?.given).toEqual({ container: container?.fd });
    expect(calls.at(-3)).toMatchObject({ fd: group?.fd, given: { events: 'POLLIN' }, answer: { revents: 'POLLIN' } });
    expect(callText(calls[7]!)).toContain('ioctl 0x3b7f = ENOTTY  20000000');
    expect(calls.every(({ at, us, tid, pid }) => at >= 0 && us >= 0 && tid === pid)).toBe(true);
  });

  it('shows what was moved as length and hash, and with data as it is', async () => {
    const { calls } = await run(kind, 'every');
    const write = calls.find(({ what }) => what === 'write(8)');
    expect(write?.payload).toEqual({ length: 8, hash: expect.stringMatching(/^[0-9a-f]{16}$/) });
    const kept = await trace([join(folder, kind), tree.paths.dev, 'every'], { data: true });
    const moved = kept.calls.flatMap(({ what, payload }) =>
      payload === undefined ? [] : [[what, Buffer.from(payload.data ?? '', 'base64').toString('latin1')]],
    );
    expect(moved).toEqual([
      ['write(8)', '12345678'],
      ['pwrite(0x10, 4)', 'ABCD'],
      ['pread(0x0, 8)', '12345678'],
      ['read(3)', '123'],
      ['pwrite(0x20, 8)', '12345678'.replace(/^.../, '123')],
      ['pread(0x20, 8)', '12345678'],
    ]);
    expect(kept.calls.find(({ what }) => what === 'write(8)')?.payload?.hash).toBe(write?.payload?.hash);
  });

  it('is followed through its threads', async () => {
    const { text, calls } = await run(kind, 'threads');
    expect(count(text, STATUS)).toBe(8);
    expect(new Set(calls.filter(({ call }) => call === 'ioctl').map(({ tid }) => tid)).size).toBe(8);
    expect(new Set(calls.map(({ pid }) => pid)).size).toBe(1);
  });

  it('is followed through its children, which have fds of their own', async () => {
    const { text, calls } = await run(kind, 'fork');
    // Each child once, before it closed its fd; the parent, whose fd is open still.
    expect(count(text, STATUS)).toBe(4);
    expect(new Set(calls.filter(({ call }) => call === 'ioctl').map(({ pid }) => pid)).size).toBe(4);
  });

  it('is followed through vfork and exec: what exec closes is gone', async () => {
    const { text, code } = await run(kind, 'exec');
    expect(code).toBe(0);
    expect(count(text, STATUS)).toBe(2);
    expect(count(text, 'group 4: close = 0')).toBe(2);
  });

  it('is followed through the exec of a thread that is not its first', async () => {
    const { text, code, calls } = await run(kind, 'thread-exec');
    expect(code).toBe(0);
    expect(count(text, STATUS)).toBe(1);
    const [opened] = calls;
    expect(opened?.tid).not.toBe(opened?.pid);
    expect(calls.at(-1)).toMatchObject({ pid: opened?.pid, tid: opened?.pid });
  });

  it('uses copies of an fd, and numbers that name something else later', async () => {
    const { text, calls } = await run(kind, 'copies');
    expect(count(text, STATUS)).toBe(4);
    // fd itself; 50, which dup2 gave away; and 51 and up, by close_range.
    expect(count(text, 'group 4: close = 0')).toBe(4);
    expect(calls.filter(({ made }) => made !== undefined)).toHaveLength(4);
  });

  it('sends an fd to another process by a socket', async () => {
    const { text, calls } = await run(kind, 'rights');
    const arrival = calls.find(({ call }) => call === 'recvmsg');
    expect(arrival?.on).toBe('group 4');
    expect(arrival?.pid).not.toBe(calls[0]?.pid);
    expect(count(text, STATUS)).toBe(1);
  });
});

/** Children of this process that nobody has waited for. proc(5): pid (comm) state ppid */
function zombies(): string[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name) && existsSync(`/proc/${name}/stat`))
    .map((name) => readFileSync(`/proc/${name}/stat`, 'latin1'))
    .filter((stat) => stat.slice(stat.lastIndexOf(')')).startsWith(`) Z ${process.pid} `));
}

describe('what comes of a program', () => {
  it('is its exit code, or the signal that killed it; both are in the trace', async () => {
    expect(await run('dynamic', 'exit', '42')).toMatchObject({
      code: 42,
      signal: null,
      ends: [{ code: 42, signal: null }],
    });
    const dead = await run('dynamic', 'dies');
    expect(dead).toMatchObject({ code: null, signal: 9, ends: [{ code: null, signal: 'SIGKILL' }] });
    expect(dead.text).toHaveLength(1);
  });

  it('is a SysError when it cannot be started, and leaves nothing behind', async () => {
    await expect(trace(['/no/such/program'])).rejects.toMatchObject({ syscall: 'exec', code: 'ENOENT' });
    await expect(trace([folder])).rejects.toMatchObject({ code: 'EACCES' });
    await expect(trace([])).rejects.toThrow(TypeError);
    expect(zombies()).toEqual([]);
  });

  it('is decided by signals as without a tracer: handlers run, a stopped process goes on', async () => {
    // Before its handler is there, SIGUSR1 would kill it.
    const ready = join(tree.root, 'ready');
    const waits = await trace([join(folder, 'dynamic'), tree.paths.dev, 'waits', ready], {
      started: (pid) => {
        const timer = setInterval(() => {
          if (!existsSync(ready)) return;
          clearInterval(timer);
          process.kill(pid, 'SIGUSR1');
        }, 10);
      },
    });
    expect(waits).toMatchObject({ code: 41, signal: null });
    expect(await run('dynamic', 'stops')).toMatchObject({ code: 5 });
  });

  it('that waits in a call is told of when a signal ends the call', async () => {
    execFileSync('mkfifo', [join(tree.paths.dev, 'vfio/fifo')]);
    const { code, calls } = await run('dynamic', 'pipe');
    expect(code).toBe(7);
    expect(calls.at(-1)).toMatchObject({ what: 'read(1)', errno: 'interrupted' });
    expect(calls.at(-1)?.us).toBeGreaterThan(100_000);
  });

  it('tells files that could not be opened, and files by what they are, not by how they were called', async () => {
    const { text } = await run('dynamic', 'fails');
    expect(text.map((line) => line.replaceAll(tree.paths.dev, 'DEV').replace(/\d+$/, 'N'))).toEqual([
      'group 4: open(DEV/vfio/4) = N',
      'container: open(DEV/vfio/vfio) = EEXIST',
    ]);
  });
});

describe('an ioctl', () => {
  it('that points to a list shows the list', async () => {
    mkdirSync(join(tree.paths.dev, 'vfio/devices'));
    writeFileSync(join(tree.paths.dev, 'vfio/devices/vfio0'), '');
    const { calls } = await run('static', 'logging');
    expect(calls.at(-1)).toMatchObject({
      on: 'device vfio0',
      what: 'VFIO_DEVICE_FEATURE(SET DMA_LOGGING_START)',
      given: {
        num_ranges: 2,
        ranges: [
          { iova: '0x0', length: '0x1000' },
          { iova: '0x100000000', length: '0x2000' },
        ],
      },
    });
  });

  it('that gives an fd makes a file whose calls are told too', async () => {
    // The only ioctl that does so without a device: a terminal's other end.
    const rules: TraceRules = {
      ...tracerRules(tree.paths),
      paths: [
        { prefix: '/dev/ptmx', exact: true, kind: KIND_NUMBERS.other },
        { prefix: '/dev/pts/ptmx', exact: true, kind: 0 },
      ],
      ioctlType: 0x54,
      makers: Uint32Array.of(KIND_NUMBERS.other, TIOCGPTPEER, ANY, ANY, KIND_NUMBERS.data),
    };
    const { calls } = await trace([join(folder, 'static'), tree.paths.dev, 'terminal'], { rules });
    const made = calls.find(({ request }) => request === TIOCGPTPEER);
    const write = calls.find(({ what }) => what === 'write(5)');
    expect(made?.result).toBeGreaterThan(2);
    expect(write).toMatchObject({ fd: made?.result, result: 5, payload: { length: 5 } });
  });
});

it('a program whose parent is killed while it starts children loses none of them, and ends', async () => {
  const script = '(sleep 0.2; kill -9 $$) & while :; do /bin/true & done';
  // Without a sanitizer's library: a bash that was killed in the middle of a fork did not survive its fork handlers (TSan).
  const bash = ['env', '-u', 'LD_PRELOAD', 'bash', '-c'];
  expect(await trace([...bash, script])).toMatchObject({ code: null, signal: 9, calls: [] });
  expect(await trace([...bash, 'for i in $(seq 100); do (exit 3) & done; wait; exit 6'])).toMatchObject({
    code: 6,
  });
});

it('the program dies with its tracer', async () => {
  const script = `
    const { createRequire } = require('node:module');
    const addon = require(${JSON.stringify(process.env['FERRY_ADDON'] ?? join(process.cwd(), 'build/Release/kvm_node.node'))});
    const none = new Uint32Array(0);
    const tracer = addon.traceProgram(['sleep', '1000'], { paths: [], ioctlType: 0, pointers: none, makers: none, sizes: none });
    console.log(tracer.pid);
    tracer.next();
  `;
  const owner = spawn(process.execPath, ['-e', script], { stdio: ['ignore', 'pipe', 'inherit'] });
  const pid = await new Promise<number>((resolve, reject) => {
    owner.stdout.on('data', (chunk: Buffer) => resolve(Number(chunk)));
    owner.on('exit', () => reject(new Error('the tracer ended by itself')));
  });
  owner.kill('SIGKILL');
  for (let i = 0; i < 200; i++) {
    try {
      process.kill(pid, 0);
    } catch {
      return;
    }
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error(`${pid} outlived its tracer`);
});
