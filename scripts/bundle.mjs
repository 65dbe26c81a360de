// Bundles cli/main.ts into dist/ferry.cjs (one file: 20 ms less at every start) and the lab's agent into dist/lab-agent.cjs, and keeps V8's
// bytecode of the first in dist/ferry.bytecode, for bin/ferry. Each appears whole: others may be starting Ferry meanwhile.
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { build } from 'esbuild';

const BYTECODE = 'dist/ferry.bytecode';

function replace(path, content) {
  const next = `${path}.${process.pid}`;
  writeFileSync(next, content);
  renameSync(next, path);
}

for (const [entryPoint, outfile] of [
  ['cli/main.ts', 'dist/ferry.cjs'],
  ['lab/agent.ts', 'dist/lab-agent.cjs'],
]) {
  const { outputFiles } = await build({
    entryPoints: [entryPoint],
    outfile,
    write: false,
    bundle: true,
    platform: 'node',
    format: 'cjs',
    target: 'node20',
    // bin/ferry reads it as Latin-1.
    charset: 'ascii',
    external: ['*.node', 'koffi'],
    logLevel: 'warning',
    logOverride: { 'empty-import-meta': 'silent' },
  });
  mkdirSync(dirname(outfile), { recursive: true });
  // The last 32 characters say which build it is.
  const id = createHash('sha256').update(outputFiles[0].contents).digest('hex').slice(0, 32);
  replace(outfile, `${outputFiles[0].text}//# build=${id}`);
}
rmSync(BYTECODE, { force: true });
// Without bytecode Ferry starts all the same, only later.
const { status, signal } = spawnSync(process.execPath, ['scripts/bytecode.cjs', BYTECODE], { stdio: 'ignore' });
if (status !== 0) console.error(`bundle: no ${BYTECODE}: scripts/bytecode.cjs ended with ${signal ?? status}`);
