// The koffi one-shots against what the system says by other ways.
import { execFileSync, spawn } from 'node:child_process';
import { closeSync, existsSync, mkdtempSync, openSync, readFileSync, readSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { buildSync } from 'esbuild';
import { describe, expect, it } from 'vitest';
import { kvmNode } from '../../../native/addon.ts';
import { SysError } from '../../../native/errno.ts';
import {
  affinityCount,
  memlockLimit,
  pollNow,
  rawTerminal,
  setNonBlocking,
  signalWhenParentDies,
  tryLock,
} from '../../../native/syscalls.ts';

describe('syscalls', () => {
  it('memlockLimit is what /proc says', () => {
    const soft = /Max locked memory\s+(\S+)/.exec(readFileSync('/proc/self/limits', 'utf8'))?.[1];
    expect(memlockLimit()).toBe(soft === 'unlimited' ? null : Number(soft));
  });

  it('affinityCount agrees with nproc and with the addon', () => {
    expect(affinityCount()).toBe(Number(execFileSync('nproc', { encoding: 'utf8' })));
    expect(affinityCount()).toBe(kvmNode().cpuCount());
  });

  it('tryLock excludes another open file, not its own duplicate, and ends with unlock', () => {
    const folder = mkdtempSync(join(tmpdir(), 'ferry-lock-'));
    const [a, b] = [openSync(join(folder, 'l'), 'w'), openSync(join(folder, 'l'), 'r')];
    expect(tryLock(a, 'exclusive')).toBe(true);
    expect(tryLock(b, 'shared')).toBe(false);
    expect(tryLock(a, 'shared')).toBe(true);
    expect(tryLock(b, 'shared')).toBe(true);
    expect(tryLock(b, 'exclusive')).toBe(false);
    expect(tryLock(a, 'unlock')).toBe(true);
    expect(tryLock(b, 'exclusive')).toBe(true);
    closeSync(a);
    closeSync(b);
    rmSync(folder, { recursive: true });
    expect(() => tryLock(99999, 'shared')).toThrow('flock: EBADF');
  });

  it('rawTerminal turns echo and line mode off and restores what was there; refuses what is no terminal', () => {
    const master = openSync('/dev/ptmx', 'r+');
    const settings = () => execFileSync('stty', ['-a'], { encoding: 'utf8', stdio: [master, 'pipe', 'inherit'] });
    const cooked = settings();
    expect(cooked).toMatch(/ echo /);
    const terminal = rawTerminal(master);
    expect(settings()).toMatch(/ -echo /);
    expect(settings()).toMatch(/ -icanon /);
    terminal.restore();
    expect(settings()).toBe(cooked);
    closeSync(master);
    const file = openSync('/dev/null', 'r');
    expect(() => rawTerminal(file)).toThrow(SysError);
    closeSync(file);
  });

  it('pollNow and setNonBlocking: an eventfd is readable when it was signalled, and an empty one does not keep a read waiting', () => {
    const addon = kvmNode();
    const fd = addon.eventFd();
    try {
      expect(pollNow(fd)).toBe(false);
      addon.eventSignal(fd);
      expect(pollNow(fd)).toBe(true);
    } finally {
      addon.closeFd(fd);
    }
    const tty = openSync('/dev/ptmx', 'r+');
    try {
      setNonBlocking(tty);
      expect(() => readSync(tty, new Uint8Array(1))).toThrow('EAGAIN');
      expect(() => setNonBlocking(-1)).toThrow('fcntl(F_GETFL): EBADF');
    } finally {
      closeSync(tty);
    }
  });

  it('signalWhenParentDies: a child ends when its parent is killed', async () => {
    expect(() => signalWhenParentDies(9999)).toThrow('prctl(PR_SET_PDEATHSIG): EINVAL');
    const folder = mkdtempSync(join(process.cwd(), 'out-syscalls-'));
    try {
      const bundle = join(folder, 'syscalls.cjs');
      buildSync({
        entryPoints: ['native/syscalls.ts'],
        outfile: bundle,
        bundle: true,
        platform: 'node',
        format: 'cjs',
        external: ['koffi'],
        logOverride: { 'empty-import-meta': 'silent' },
      });
      const child = `require('${bundle}').signalWhenParentDies(9); console.log(process.pid); setTimeout(() => {}, 60000);`;
      const parent = spawn(
        process.execPath,
        [
          '-e',
          `require('child_process').spawn(process.execPath, ['-e', ${JSON.stringify(child)}], { stdio: 'inherit' })`,
        ],
        { stdio: ['ignore', 'pipe', 'inherit'] },
      );
      const pid = await new Promise<number>((resolve) => parent.stdout.once('data', (text) => resolve(Number(text))));
      expect(existsSync(`/proc/${pid}`)).toBe(true);
      parent.kill('SIGKILL');
      const gone = () => !existsSync(`/proc/${pid}`) || / Z /.test(readFileSync(`/proc/${pid}/stat`, 'utf8'));
      while (!gone()) await new Promise((resolve) => setTimeout(resolve, 5));
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
});
