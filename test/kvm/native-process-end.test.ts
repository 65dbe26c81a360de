// A process that ends while its vCPUs run: no hang, no crash, its own exit code. Three vCPUs: one spins, one posts, one exits to JS.
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { buildSync } from 'esbuild';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { hasKvm } from './native-guest.ts';

const PROGRAM = `
import { makeGuest } from './test/kvm/native-guest.ts';
const blocks = ['1: incl 0x2000\\n jmp 1b', '1: outb %al, $0x60\\n jmp 1b', '1: outb %al, $0x61\\n jmp 1b'];
let exits = 0;
const guest = makeGuest({ blocks, hotWindowUs: 20 }, {
  exit() { if (++exits === 100) end(); return true; },
  posted() {},
});
guest.loop.addFast('pio', 0x60, 1, { shadow: null, reads: [], posts: [0], file: null });
guest.loop.start();
function end() {
  const how = process.argv[2];
  if (how === 'exit') process.exit(7);
  if (how === 'throw') throw new Error('from a handler');
  if (how === 'signal') process.kill(process.pid, 'SIGTERM');
  if (how === 'close') guest.close();
}
`;

describe.skipIf(!hasKvm)('a process with running vCPUs', () => {
  let folder = '';
  beforeAll(() => {
    folder = mkdtempSync(join(process.cwd(), 'out-end-'));
    writeFileSync(join(folder, 'program.ts'), PROGRAM.replace('./test', '../test'));
    buildSync({
      entryPoints: [join(folder, 'program.ts')],
      outfile: join(folder, 'program.cjs'),
      bundle: true,
      platform: 'node',
      format: 'cjs',
      external: ['*.node', 'koffi'],
      logOverride: { 'empty-import-meta': 'silent' },
    });
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  it.each([
    ['exit', 7, null],
    ['throw', 1, null],
    ['signal', null, 'SIGTERM'],
    ['close', 0, null],
  ])('ends by %s', (how, status, signal) => {
    const run = spawnSync(process.execPath, [join(folder, 'program.cjs'), how], { timeout: 30_000, encoding: 'utf8' });
    expect([run.status, run.signal], run.stderr).toEqual([status, signal]);
  });
});
