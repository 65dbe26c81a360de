// Bundles cli/main.ts into dist/ferry.cjs (one file: 20 ms less at every start) and the lab's agent into dist/lab-agent.cjs.
import { existsSync } from 'node:fs';
import { build } from 'esbuild';

const common = {
  bundle: true,
  platform: 'node',
  format: 'cjs',
  target: 'node20',
  external: ['*.node', 'koffi'],
  logLevel: 'warning',
  logOverride: { 'empty-import-meta': 'silent' },
};
for (const [entry, outfile] of [
  ['cli/main.ts', 'dist/ferry.cjs'],
  ['lab/agent.ts', 'dist/lab-agent.cjs'],
]) {
  if (existsSync(entry)) await build({ ...common, entryPoints: [entry], outfile });
}
