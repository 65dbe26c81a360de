// `npm test`: sets everything up and runs all tests: static checks, unit, fuzz, kvm, lab. `npm test -- unit kvm` runs only those.
// Ends with "N passed, N failed" alone on a line; every skip is printed with its reason.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { environment, fail, root, setup } from './setup.mjs';

const STAGES = ['unit', 'fuzz', 'kvm', 'lab'];

function stage(name, extra) {
  const counts = join(root, 'out', `test-${name}.json`);
  rmSync(counts, { force: true });
  process.stderr.write(`\n=== ${name}\n`);
  const result = spawnSync(
    process.execPath,
    [
      'node_modules/vitest/vitest.mjs',
      'run',
      '--project',
      name,
      '--passWithNoTests',
      '--reporter=./scripts/test-reporter.mjs',
      ...extra,
    ],
    { cwd: root, env: { ...environment, FERRY_TEST_COUNTS: counts }, stdio: ['ignore', 'inherit', 'inherit'] },
  );
  const found = existsSync(counts) ? JSON.parse(readFileSync(counts, 'utf8')) : { passed: 0, failed: 0, skipped: 0 };
  // A run that died without a failed test (a crash of a worker, a broken import) is a failure all the same.
  if (result.status !== 0 && found.failed === 0) found.failed = 1;
  return found;
}

function staticChecks() {
  process.stderr.write('=== static checks: tsc, biome\n');
  let failed = 0;
  for (const [tool, args] of [
    ['node_modules/.bin/tsc', ['--noEmit']],
    ['node_modules/.bin/biome', ['check', '--error-on-warnings', '.']],
  ]) {
    if (spawnSync(tool, args, { cwd: root, env: environment, stdio: ['ignore', 'inherit', 'inherit'] }).status !== 0)
      failed++;
  }
  return { passed: 2 - failed, failed, skipped: 0 };
}

try {
  setup();
} catch (error) {
  fail(error);
}
mkdirSync(join(root, 'out'), { recursive: true });
const wanted = process.argv.slice(2).filter((word) => STAGES.includes(word));
const extra = process.argv.slice(2).filter((word) => !STAGES.includes(word));
const total = { passed: 0, failed: 0, skipped: 0 };
const results = wanted.length === 0 ? [staticChecks()] : [];
for (const name of wanted.length === 0 ? STAGES : wanted) results.push(stage(name, extra));
for (const result of results) for (const key of Object.keys(total)) total[key] += result[key];
process.stdout.write(`\n${total.passed} passed, ${total.failed} failed, ${total.skipped} skipped\n`);
process.exit(total.failed === 0 && total.passed > 0 ? 0 : 1);
