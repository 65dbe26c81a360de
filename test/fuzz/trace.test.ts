// A trace from somebody else, damaged at random: it is shown, replayed or refused in one line (VmmError, or the SysError that it holds), and no
// file is made outside of the replay's own directory. The seed is printed.
import { mkdtempSync, openSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { openFeatureV2 } from '../../devices/vfio/migration/feature-v2.ts';
import { probeDevice } from '../../devices/vfio/probe.ts';
import { replayInfo } from '../../devices/vfio/trace/replay-info.ts';
import { replayWalk } from '../../devices/vfio/trace/replay-walk.ts';
import { showTrace } from '../../devices/vfio/trace/show.ts';
import { parseTrace, type TraceLine } from '../../devices/vfio/trace/trace-file.ts';
import { headerFor } from '../../devices/vfio/trace/trace-writer.ts';
import { TracingDoor } from '../../devices/vfio/trace/tracing-door.ts';
import { SysError, VmmError } from '../../native/errno.ts';
import { HostTree } from '../fakes/host-tree.ts';
import { FakeVfioKernel, migratable, regionInfo } from '../fakes/vfio-kernel.ts';
import { generator } from './generator.ts';

const BDF = '0000:65:00.0';
const ROUNDS = 800;
const native = { createBitmap: (): never => never(), eventFd: () => 0, eventTake: () => 0n };
function never(): never {
  throw new Error('nobody asks for a bitmap here');
}

let lines: string[];
let temporary: string;
const before = process.env['TMPDIR'];
beforeAll(async () => {
  temporary = mkdtempSync(join(tmpdir(), 'ferry-fuzz-'));
  lines = await record();
  process.env['TMPDIR'] = temporary;
});
afterAll(() => {
  if (before === undefined) delete process.env['TMPDIR'];
  else process.env['TMPDIR'] = before;
  rmSync(temporary, { recursive: true });
});

async function record(): Promise<string[]> {
  const tree = new HostTree();
  tree.device(BDF, 4, 'edu-vfio-pci');
  const kernel = new FakeVfioKernel();
  kernel.migration = migratable();
  kernel.regions = [regionInfo(0, 0x1000n, 7), regionInfo(1, 0x4000n, 7, [[0n, 0x2000n]])];
  kernel.irqs = [{ flags: 1, count: 1 }];
  const seen: TraceLine[] = [headerFor({ program: ['ferry', 'vfio', 'info'], data: true, notes: ['a note'] })];
  const door = new TracingDoor(kernel, { sink: { line: (line) => seen.push(line) }, paths: tree.paths, data: true });
  await probeDevice(door, tree.paths, BDF);
  const group = openSync(join(tree.paths.dev, 'vfio/4'), 'r+');
  const fd = door.ioctl('VFIO_GROUP_GET_DEVICE_FD', group, 0x3b6a, Buffer.from(`${BDF}\0`));
  door.pread(fd, 8, new Uint8Array(4));
  const device = openFeatureV2(door, fd, BDF);
  for (const state of ['pre-copy', 'stop-copy', 'stop', 'running'] as const) await device?.setState(state);
  tree.close();
  return seen.map((line) => JSON.stringify(line));
}

const STRANGE = [null, -1, 2 ** 53, 1e300, '', '../../../../tmp/x', 'zz', 'device ..', [], {}, true, '0x', { data: 7 }];

/** One value somewhere in the line becomes another, or goes. */
function mutate(value: Record<string, unknown>, below: (limit: number) => number): void {
  const keys = Object.keys(value);
  const key = keys[below(keys.length)];
  if (key === undefined) return;
  const inner = value[key];
  if (typeof inner === 'object' && inner !== null && below(2) === 0) mutate(inner as Record<string, unknown>, below);
  else if (below(4) === 0) delete value[key];
  else value[key] = STRANGE[below(STRANGE.length)];
}

function damaged(below: (limit: number) => number): string {
  const copy = [...lines];
  for (let times = 1 + below(3); times > 0; times--) {
    const at = below(copy.length);
    const kind = below(6);
    if (kind === 0) copy.splice(at, 1);
    else if (kind === 1) copy.splice(at, 0, copy[below(copy.length)] ?? '');
    else if (kind === 2) copy[at] = (copy[at] ?? '').slice(0, below(80));
    else {
      const value = JSON.parse(lines[at] ?? '{}') as Record<string, unknown>;
      mutate(value, below);
      copy[at] = JSON.stringify(value);
    }
  }
  return `${copy.join('\n')}\n`;
}

describe('a damaged trace', () => {
  it('is shown, replayed or refused, each in an orderly way', async () => {
    const seed = Number(process.env['FUZZ_SEED'] ?? Date.now() & 0x7fffffff);
    console.log(`trace fuzz: FUZZ_SEED=${seed}`);
    const below = generator(seed);
    let refused = 0;
    for (let round = 0; round < ROUNDS; round++) {
      const text = damaged(below);
      try {
        const trace = parseTrace('fuzz.trace', text);
        expect(showTrace(trace)).toMatch(/^trace of: /);
        const input = { trace, file: 'fuzz.trace', native };
        await replayWalk(input);
        await replayInfo(input);
      } catch (error) {
        refused += 1;
        const orderly = error instanceof VmmError || error instanceof SysError;
        expect(orderly, `seed ${seed} round ${round}: ${error instanceof Error ? error.stack : error}\n${text}`).toBe(
          true,
        );
        expect((error as Error).message).not.toContain('\n');
      }
    }
    expect(refused).toBeGreaterThan(ROUNDS / 10);
    // Each replay's directory is gone, and nothing else was made beside it.
    expect(readdirSync(temporary)).toEqual([]);
  });
});
