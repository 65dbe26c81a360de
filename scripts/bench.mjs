// npm run bench -- [NAME...]: bundles bench/NAME.ts into out/bench/ and runs it, each in turn (all of them without a name). stdout is
// one JSON object a line (bench/line.ts) and nothing else; what a bench has to say besides goes to stderr. Exit code 1 when one failed to run.
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

const root = resolve(dirname(fileURLToPath(import.meta.url)), '..');
// Files of bench/ that are there to be imported carry a dash (but for device-state, which is a bench) or are named here.
const runnable = readdirSync(join(root, 'bench'))
  .filter((file) => file.endsWith('.ts') && (!file.includes('-') || file === 'device-state.ts') && file !== 'line.ts')
  .map((file) => file.slice(0, -3))
  .sort();
const names = process.argv.length > 2 ? process.argv.slice(2) : runnable;
const unknown = names.filter((name) => !runnable.includes(name));
if (unknown.length > 0) {
  console.error(`bench: there is no ${unknown.join(', ')}; there are: ${runnable.join(', ')}`);
  process.exit(2);
}
const addon = process.env.FERRY_ADDON ?? join(root, 'build/Release/kvm_node.node');
if (!existsSync(addon)) {
  console.error(`bench: ${addon} is missing; run: npm run build:native`);
  process.exit(2);
}

const env = { ...process.env, FERRY_ADDON: addon };
delete env.NODE_EXTRA_CA_CERTS; // adds 28 ms to every start of Node

let failed = 0;
for (const name of names) {
  const outfile = join(root, 'out/bench', `${name}.cjs`);
  await build({
    entryPoints: [join(root, 'bench', `${name}.ts`)],
    outfile,
    bundle: true,
    platform: 'node',
    format: 'cjs',
    target: 'node20',
    external: ['*.node', 'koffi'],
    logLevel: 'warning',
    logOverride: { 'empty-import-meta': 'silent' },
  });
  const { status, signal } = spawnSync(process.execPath, [outfile], { cwd: root, env, stdio: 'inherit' });
  if (status !== 0) {
    console.error(`bench ${name}: ended with ${signal ?? `exit code ${status}`}`);
    failed = 1;
  }
}
process.exit(failed);
