// Runs vitest in a lab host, for a machine without /dev/kvm: boots one, runs, brings the counts out, ends it. Called by test.mjs.
// Usage: node scripts/kvm-in-lab.mjs COUNTS.json [vitest's arguments]
import { spawn } from 'node:child_process';
import { copyFileSync, existsSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { environment, root } from './setup.mjs';

const FERRY = join(root, 'dist/ferry.cjs');
const NAME = `kvm-tests-${process.pid}`;
const MEMORY_MIB = 3072;

const [counts, ...args] = process.argv.slice(2);

function ferryLab(args, stdio) {
  return spawn('setpriv', ['--pdeathsig', 'TERM', process.execPath, FERRY, 'lab', ...args], {
    cwd: root,
    env: environment,
    stdio,
  });
}

/** Resolves with the exit code. */
function ended(child) {
  return new Promise((resolve) => child.on('close', (code) => resolve(code ?? 1)));
}

/** Resolves when the lab is up; rejects when it ends instead. */
function up(lab) {
  return new Promise((resolve, reject) => {
    createInterface({ input: lab.stderr }).on('line', (line) => {
      process.stderr.write(`${line}\n`);
      if (line.startsWith(`lab ${NAME} is up`)) resolve();
    });
    lab.on('close', (code) => reject(new Error(`the lab ended with ${code}`)));
  });
}

async function outputOf(args) {
  const child = ferryLab(args, ['ignore', 'pipe', 'inherit']);
  let text = '';
  child.stdout.on('data', (bytes) => {
    text += bytes;
  });
  await ended(child);
  return text;
}

/** Inside, the repository is read-only, but vitest and the tests write into it: what they write is forgotten with the host. */
const SCRIPT = `mkdir -p /tmp/upper /tmp/work
mount -t overlay -o lowerdir="$0",upperdir=/tmp/upper,workdir=/tmp/work overlay "$0" && cd "$0" || exit 1
export FERRY_TEST_COUNTS=/hw/counts.json FERRY_TEST_PATIENCE=10
exec "$1" node_modules/vitest/vitest.mjs run --reporter=./scripts/test-reporter.mjs "\${@:2}"`;

process.stderr.write('this machine has no /dev/kvm that can be opened: the tests run in a lab host\n');
const lab = ferryLab(
  ['up', NAME, '--hosts', '1', '--devices', '', '--memory', String(MEMORY_MIB), '--foreground'],
  ['ignore', 'inherit', 'pipe'],
);
let command = null;
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
  process.on(signal, () => {
    command?.kill('SIGTERM');
    lab.kill('SIGTERM');
  });
}
const over = ended(lab);
await up(lab);
command = ferryLab(
  ['exec', '--lab', NAME, '/bin/bash', '-c', SCRIPT, root, process.execPath, ...args],
  ['ignore', 'inherit', 'inherit'],
);
const code = await ended(command);
const record = JSON.parse(await outputOf(['ls', '--json'])).find(({ name }) => name === NAME);
const inside = join(record?.hosts[0].dir ?? '', 'work/counts.json');
if (existsSync(inside)) copyFileSync(inside, counts);
lab.kill('SIGTERM');
await over;
process.exit(code);
