// Runs a bundled bench a second time in a lab host of its own (its KVM is real SVM, emulated by TCG), by way of `ferry lab`. Its lines come
// out on our stdout. Called by the benches that need one. FERRY_BENCH_LAB=0 leaves it out; where no lab can be had the reason goes to stderr.
import { spawnSync } from 'node:child_process';

const NAME = `bench-${process.pid}`;

function ferry(...args: string[]): { status: number | null; output: string } {
  const run = spawnSync('bin/ferry', ['lab', ...args], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] });
  return { status: run.status, output: run.stdout ?? '' };
}

/** `bundle` is run by node in the repository's directory with `env`; false when there was no lab or it failed there. */
export function runInLab(bundle: string, env: Readonly<Record<string, string>>): boolean {
  if (process.env['FERRY_BENCH_LAB'] === '0') return true;
  if (ferry('up', NAME, '--hosts', '1').status !== 0) {
    console.error('bench: not measured in a lab host: none came up (is the bundle built? npm run build)');
    return false;
  }
  try {
    const settings = Object.entries(env).map(([name, value]) => `${name}='${value}'`);
    const command = `cd '${process.cwd()}' && ${settings.join(' ')} node '${bundle}'`;
    const { status, output } = ferry('exec', '--lab', NAME, command);
    process.stdout.write(output);
    return status === 0;
  } finally {
    ferry('down', NAME);
  }
}
