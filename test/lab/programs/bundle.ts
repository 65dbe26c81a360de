// Makes one CommonJS file of a TypeScript program, where a lab host can run it. Called by lab tests on the outer host.
import { join } from 'node:path';
import { build } from 'esbuild';

/** `name`: of a file in this directory without its ending. Gives the path that the lab host sees (its /hw). */
export async function bundleProgram(name: string, share: string): Promise<string> {
  await build({
    entryPoints: [join(import.meta.dirname, `${name}.ts`)],
    outfile: join(share, `${name}.mjs`),
    bundle: true,
    platform: 'node',
    format: 'esm',
    target: 'node20',
    external: ['*.node', 'koffi'],
    logLevel: 'warning',
  });
  return `/hw/${name}.mjs`;
}
