// `npm test`: sets everything up and runs all tests: static checks, unit, fuzz, kvm, lab. `npm test -- unit kvm` runs only those.
// Two jobs at a time: a lab host has one CPU, and of a pair one host often waits for the other; three make tests of time fail on two cores.
// Output lines carry their job's name.
// Ends with "N passed, N failed" alone on a line; every skip is printed with its reason.
import { spawn } from 'node:child_process';
import { closeSync, existsSync, mkdirSync, openSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { basename, join } from 'node:path';
import { createInterface } from 'node:readline';
import { environment, fail, root, setup } from './setup.mjs';

const STAGES = ['unit', 'fuzz', 'kvm', 'lab'];
const TRACKS = 2;
/** Of a job's name. */
const WIDEST = 'demo-interrupt.pair'.length;
const TOOLS = {
  tsc: ['node_modules/.bin/tsc', '--noEmit'],
  biome: ['node_modules/.bin/biome', 'check', '--error-on-warnings', '.'],
};

const running = new Set();
let stopped = false;

/** Runs a program of the repository, its output line by line behind `name`. Resolves with the exit code; null: a signal ended it. */
function program(name, [command, ...args], env = {}) {
  return new Promise((resolve) => {
    // If this process is killed, its children are told to stop (prctl(2), PR_SET_PDEATHSIG), and clean up.
    const child = spawn('setpriv', ['--pdeathsig', 'TERM', command, ...args], {
      cwd: root,
      env: { ...environment, ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    running.add(child);
    for (const stream of [child.stdout, child.stderr]) {
      createInterface({ input: stream }).on('line', (line) => process.stdout.write(`${name.padEnd(WIDEST)} ${line}\n`));
    }
    child.on('error', (error) => process.stdout.write(`${name.padEnd(WIDEST)} ${command}: ${error.message}\n`));
    child.on('close', (code) => {
      running.delete(child);
      resolve(code);
    });
  });
}

function nothing() {
  return { passed: 0, failed: 0, skipped: 0, failures: [] };
}

/** Counts of the file that test-reporter.mjs writes. A run that died without a failed test (a crash of a worker) is a failure all the same. */
function countsOf(file, code) {
  const found = existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')) : nothing();
  if (code !== 0 && found.failed === 0) {
    found.failed = 1;
    found.failures.push(`${basename(file, '.json')} ended with ${code ?? 'a signal'} and no failed test`);
  }
  return found;
}

function vitest(name, project, ...args) {
  return async () => {
    const counts = join(root, 'out', `test-${name}.json`);
    rmSync(counts, { force: true });
    const line = [process.execPath, 'node_modules/vitest/vitest.mjs', 'run', '--project', project, '--passWithNoTests'];
    line.push('--reporter=./scripts/test-reporter.mjs', ...args);
    return countsOf(counts, await program(name, line, { FERRY_TEST_COUNTS: counts }));
  };
}

/** A check that is one test. */
function check(name, line) {
  return async () => {
    const failed = (await program(name, line)) === 0 ? 0 : 1;
    return { passed: 1 - failed, failed, skipped: 0, failures: failed ? [`${name}: its output is above`] : [] };
  };
}

function hasKvm() {
  try {
    closeSync(openSync('/dev/kvm', 'r+'));
    return true;
  } catch {
    return false;
  }
}

/** The tests on /dev/kvm: here, or in a lab host, which always has one. */
function kvm(extra) {
  if (hasKvm()) return vitest('kvm', 'kvm', ...extra);
  return async () => {
    const counts = join(root, 'out', 'test-kvm.json');
    rmSync(counts, { force: true });
    const line = [process.execPath, 'scripts/kvm-in-lab.mjs', counts, '--project', 'kvm', ...extra];
    return countsOf(counts, await program('kvm', line));
  };
}

/** Measured, the longest first: what begins late must not take long. Files that are not named here come after. */
const LONGEST = [
  'bringup.pair',
  'moves.pair',
  'faults.pair',
  'edu-guest.pair',
  'unit',
  'check-bringup',
  'kmod-bringup',
  'bring-up.pair',
  'vfio-check',
  'kvm',
  'boot',
  'iommufd',
  'vfio',
  'demo-interrupt.pair',
  'faults-input',
];

function labFiles() {
  return readdirSync(join(root, 'test/lab')).filter((file) => file.endsWith('.test.ts'));
}

/** `wanted`: stages; empty: all of them and the static checks. */
function jobs(wanted, extra) {
  const all = wanted.length === 0;
  const has = (stage) => all || wanted.includes(stage);
  const found = new Map();
  if (all) for (const [name, line] of Object.entries(TOOLS)) found.set(name, check(name, line));
  // Of the unit tests some wait for time to pass, and vitest by itself would take one file after the other on two CPUs.
  if (has('unit')) found.set('unit', vitest('unit', 'unit', '--maxWorkers=2', ...extra));
  if (has('fuzz')) found.set('fuzz', vitest('fuzz', 'fuzz', ...extra));
  if (has('kvm')) found.set('kvm', kvm(extra));
  for (const file of has('lab') ? labFiles() : []) {
    const name = file.replace(/\.test\.ts$/, '');
    found.set(name, vitest(name, 'lab', ...extra, `test/lab/${file}`));
  }
  const place = (name) => (LONGEST.includes(name) ? LONGEST.indexOf(name) : LONGEST.length);
  return [...found].sort(([a], [b]) => place(a) - place(b)).map(([, job]) => job);
}

async function track(queue, total) {
  for (let job = queue.shift(); job !== undefined && !stopped; job = queue.shift()) {
    const result = await job();
    for (const key of ['passed', 'failed', 'skipped']) total[key] += result[key];
    total.failures.push(...result.failures);
  }
}

try {
  setup();
} catch (error) {
  fail(error);
}
mkdirSync(join(root, 'out'), { recursive: true });
// A terminal's Ctrl-C reaches the children by itself; a kill of this process alone must reach them too. We stay until they have cleaned up.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
  process.on(signal, () => {
    stopped = true;
    for (const child of running) child.kill(signal);
  });
}
const wanted = process.argv.slice(2).filter((word) => STAGES.includes(word));
const extra = process.argv.slice(2).filter((word) => !STAGES.includes(word));
const queue = jobs(wanted, extra);
const total = nothing();
await Promise.all(Array.from({ length: TRACKS }, () => track(queue, total)));
if (stopped) total.failed++;
// Once more at the end: of a long output the last lines are read first, and sometimes they are all that was kept.
for (const failure of total.failures) process.stdout.write(`FAILED ${failure.slice(0, 300)}\n`);
if (total.skipped > 0) process.stdout.write(`\n${total.skipped} skipped, each with its reason above\n`);
process.stdout.write(`\n${total.passed} passed, ${total.failed} failed\n`);
process.exit(total.failed === 0 && total.passed > 0 ? 0 : 1);
