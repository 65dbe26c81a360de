// Rule: `ferry vfio trace` passes the command's end through and refuses bad words in one line; what it wrote can be shown and is replayed.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from 'vitest';
import { openDoor, SHARED_OPTIONS } from '../../../cli/machine-options.ts';
import { startVerb } from '../../../cli/verb-frame.ts';
import { vfioVerb } from '../../../cli/vfio.ts';
import { kvmNode } from '../../../native/addon.ts';

const bundle = join(import.meta.dirname, '../../../dist/ferry.cjs');
if (!existsSync(bundle))
  console.log('skipped: stdin and stdout of a traced command: dist/ferry.cjs is missing: npm run build');

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'ferry-cli-trace-'));
});
afterAll(() => rmSync(folder, { recursive: true }));
afterEach(() => vi.restoreAllMocks());

async function ferry(...args: string[]): Promise<{ code: number; out: string; err: string }> {
  const seen = { out: '', err: '' };
  for (const [stream, name] of [
    [process.stdout, 'out'],
    [process.stderr, 'err'],
  ] as const) {
    vi.spyOn(stream, 'write').mockImplementation((text) => {
      seen[name] += text;
      return true;
    });
  }
  const code = await vfioVerb.run(args);
  vi.restoreAllMocks();
  return { code, ...seen };
}

it('ferry run and ferry receive take --vfio-trace, and only then is the door another', async () => {
  const file = join(folder, 'own');
  const start = await startVerb({ name: 'run', options: SHARED_OPTIONS, help: '' }, ['--vfio-trace', file]);
  expect(start?.registry.helpFor('vfio-pci')).not.toBeNull();
  await vi.waitFor(() => expect(readFileSync(file, 'utf8')).toMatch(/\n$/), { timeout: 10_000 });
  expect(JSON.parse(readFileSync(file, 'utf8'))).toMatchObject({
    trace: 'ferry-vfio',
    program: ['ferry', 'run', '--vfio-trace', file],
    notes: expect.arrayContaining([expect.stringContaining('not visible')]),
  });
  expect(await openDoor(null, [])).toBe(kvmNode());
});

describe('ferry vfio trace', () => {
  it('records a command into a file that it shows, with its exit code', async () => {
    const file = join(folder, 'trace');
    expect(await ferry('trace', '-o', file, '--', 'sh', '-c', 'exit 9')).toEqual({ code: 9, out: '', err: '' });
    expect(JSON.parse(readFileSync(file, 'utf8').split('\n')[0] ?? '')).toMatchObject({
      trace: 'ferry-vfio',
      program: ['sh', '-c', 'exit 9'],
      data: false,
    });
    const { out } = await ferry('trace', '--show', file);
    expect(out).toMatch(/^trace of: sh -c exit 9\n/);
    expect(out).toMatch(/ended: exit code 9\n$/);
    await expect(ferry('replay', file)).rejects.toThrow(/no device was opened in this trace/);
  });

  it('lists on stderr without -o, and says which signal killed the command', async () => {
    const { code, err } = await ferry('trace', '--', 'sh', '-c', 'kill -TERM $$');
    expect(code).toBe(128 + 15);
    expect(err).toMatch(/ended: killed by SIGTERM\nferry: sh was killed by SIGTERM\n$/);
  });

  it("leaves options behind -- to the command, and passes Ferry's signals on", async () => {
    expect((await ferry('trace', '--', 'sh', '-c', 'exit $#', 'sh', '--help', '-o')).code).toBe(2);
    const script = 'trap "exit 33" TERM; kill -TERM $PPID; while :; do sleep 0.05; done';
    expect((await ferry('trace', '--', 'sh', '-c', script)).code).toBe(33);
  });

  it('passes on what comes while the command is being started', async () => {
    const addon = kvmNode();
    const start = addon.traceProgram;
    vi.spyOn(addon, 'traceProgram').mockImplementation((...given) => {
      process.emit('SIGTERM', 'SIGTERM');
      return start(...given);
    });
    expect((await ferry('trace', '--', 'sleep', '60')).code).toBe(128 + 15);
  });

  it('refuses what makes no sense in one line', async () => {
    await expect(ferry('trace')).rejects.toThrow(/either -- COMMAND or --show FILE is wanted/);
    await expect(ferry('trace', '--show', 'x', '--', 'true')).rejects.toThrow(/either/);
    await expect(ferry('trace', '--', '/no/such')).rejects.toThrow(
      '/no/such cannot be traced: it cannot be started (ENOENT)',
    );
    await expect(ferry('trace', '-o', join(folder, 'none/t'), '--', 'true')).rejects.toThrow(
      /cannot be written \(ENOENT\)/,
    );
    await expect(ferry('replay')).rejects.toThrow(/one FILE is wanted/);
    await expect(ferry('replay', join(folder, 'none'))).rejects.toThrow(/cannot be read \(ENOENT\)/);
    expect((await ferry('trace', '--help')).out).toMatch(/^usage: ferry vfio trace/);
    expect((await ferry('replay', '--help')).out).toMatch(/^usage: ferry vfio replay/);
  });

  it.skipIf(!existsSync(bundle))('gives the command our stdin and stdout', () => {
    const program = join(import.meta.dirname, '../../../bin/ferry');
    const traced = spawnSync(program, ['vfio', 'trace', '-o', join(folder, 't'), '--', 'cat'], {
      input: 'through',
      encoding: 'utf8',
    });
    expect(traced).toMatchObject({ status: 0, stdout: 'through', stderr: '' });
  });
});
