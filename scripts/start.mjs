// `npm start`: sets everything up, then runs the demo: two lab hosts, a guest with a passed-through device, moved live from one to the other.
// Plain node without dependencies. Ctrl-C goes to the demo, which cleans up; the exit code is the demo's.
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { environment, fail, root, setup } from './setup.mjs';

try {
  setup();
} catch (error) {
  fail(error);
}

// If this process is killed, the demo is told to stop (prctl(2), PR_SET_PDEATHSIG), and cleans up.
const demo = spawn(
  'setpriv',
  ['--pdeathsig', 'TERM', process.execPath, join(root, 'dist/ferry.cjs'), 'demo', ...process.argv.slice(2)],
  { cwd: root, env: environment, stdio: 'inherit' },
);
// A terminal's Ctrl-C reaches the child by itself; a kill of this process alone must reach it too. We stay until it has cleaned up.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => demo.kill(signal));
demo.on('exit', (code, signal) => process.exit(signal ? 1 : (code ?? 1)));
