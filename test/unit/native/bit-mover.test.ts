// Rule: every form of the merge's inner loop does the same, whichever this processor is best at. bit-mover.cc is the oracle.
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';

const folder = mkdtempSync(join(tmpdir(), 'ferry-bit-mover-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

it('moves, counts and clears the same bits in each of its forms, and nothing behind them', () => {
  const program = join(folder, 'check');
  const sources = [join(import.meta.dirname, 'bit-mover.cc'), join(process.cwd(), 'native/src/bit_mover.cc')];
  execFileSync('g++', ['-std=c++17', '-O2', '-Wall', '-Werror', '-o', program, ...sources]);
  const forms = Number(execFileSync(program, { encoding: 'latin1' }));
  console.log(`bit-mover: ${forms} of 3 forms run on this processor`);
  expect(forms).toBeGreaterThanOrEqual(1);
});
