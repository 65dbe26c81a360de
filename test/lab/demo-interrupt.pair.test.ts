// Rule: Ctrl-C at any moment of `ferry demo` ends everything that it started (exit code 1, no QEMU, no directory); SIGKILL leaves no QEMU,
// and its directory goes with the next start. A terminal's Ctrl-C arrives several times, passed on by npm and scripts/start.mjs.
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { labUnavailable } from '../../lab/packages.ts';
import { cacheRoot, repoRoot } from '../../lab/root.ts';

const bundle = join(repoRoot(), 'dist/ferry.cjs');
const unavailable = labUnavailable() ?? (existsSync(bundle) ? null : 'dist/ferry.cjs is missing: npm run build');
if (unavailable !== null) console.log(`skipped: demo-interrupt: ${unavailable}`);

/** Measured: 15 s to the move. */
const REACH_MS = 200_000;
/** Measured: 0.2 s from the signal to the end. */
const END_MS = 10_000;

describe.skipIf(unavailable !== null)('ferry demo, interrupted', () => {
  let dir: string;
  let demo: ChildProcess | null = null;
  let said = '';

  beforeEach(() => {
    dir = mkdtempSync(join(tmpdir(), 'fl-'));
  });
  afterEach(() => {
    demo?.kill('SIGKILL');
    rmSync(dir, { recursive: true, force: true });
  });

  const environment = () => ({ ...process.env, FERRY_LAB_DIR: dir, FERRY_CACHE: cacheRoot() });

  /** Resolves when it has said `word`. */
  async function demoUntil(word: string): Promise<ChildProcess> {
    const args = [bundle, 'demo', '--before', '1', '--after', '1', '--out', join(dir, '.out')];
    const child = spawn(process.execPath, args, {
      env: environment(),
      stdio: ['ignore', 'inherit', 'pipe'],
      cwd: repoRoot(),
      detached: true,
    });
    demo = child;
    said = '';
    child.stderr!.on('data', (bytes: Buffer) => {
      said += bytes.toString();
    });
    for (const limit = Date.now() + REACH_MS; !said.includes(word); await sleep(20)) {
      if (child.exitCode !== null) throw new Error(`the demo ended before "${word}": ${said}`);
      if (Date.now() > limit) throw new Error(`"${word}" was not said: ${said}`);
    }
    return child;
  }

  /** Pids of QEMUs whose command line names our lab directory. */
  function qemus(): string[] {
    return readdirSync('/proc').filter((pid) => {
      if (!/^\d+$/.test(pid)) return false;
      try {
        const line = readFileSync(`/proc/${pid}/cmdline`, 'latin1');
        return line.includes('qemu') && line.includes(dir);
      } catch {
        return false;
      }
    });
  }

  async function exitOf(child: ChildProcess): Promise<number | string | null> {
    for (const limit = Date.now() + END_MS; child.exitCode === null && child.signalCode === null; await sleep(20))
      if (Date.now() > limit) throw new Error(`it did not end: ${said}`);
    return child.exitCode ?? child.signalCode;
  }

  const labs = () => readdirSync(dir).filter((name) => !name.startsWith('.'));

  it.each([
    ['while the hosts boot', 'booting 2 lab hosts', 700],
    ['while the guest boots', 'both hosts:', 1500],
    ['during the move', 'moving it to', 1500],
  ])('by Ctrl-C %s', async (_when, word, laterMs) => {
    const child = await demoUntil(word);
    await sleep(laterMs);
    expect(qemus().length).toBeGreaterThan(0);
    // To the whole group, as a terminal does; and again, as npm does.
    process.kill(-child.pid!, 'SIGINT');
    await sleep(10);
    child.kill('SIGINT');
    expect(await exitOf(child), said).toBe(1);
    expect(said).toContain('stopped by SIGINT; everything is cleaned up');
    expect(said.match(/^ferry: /gm), said).toHaveLength(1);
    expect(qemus()).toEqual([]);
    expect(labs()).toEqual([]);
  });

  it('by SIGKILL: the hosts end with it, and the next start removes what is left', async () => {
    const child = await demoUntil('both hosts:');
    expect(qemus()).toHaveLength(2);
    child.kill('SIGKILL');
    expect(await exitOf(child)).toBe('SIGKILL');
    for (const limit = Date.now() + END_MS; qemus().length > 0 && Date.now() < limit; ) await sleep(20);
    expect(qemus()).toEqual([]);
    expect(labs()).toHaveLength(1);
    const next = spawnSync(process.execPath, [bundle, 'lab', 'ls'], { env: environment(), encoding: 'utf8' });
    expect(next.status, next.stderr).toBe(0);
    expect(labs()).toEqual([]);
  });
});
