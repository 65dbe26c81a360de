// Gives the text of the bundled agent, dist/lab-agent.cjs. Called by lab/lab.ts. From a checkout whose bundle is missing or older than the
// agent's sources it bundles anew: a test must never run yesterday's agent.
import { existsSync, statSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { runProgram } from '../images/program.ts';

const SOURCES = ['lab/agent.ts', 'lab/frames.ts'];

export async function agentBundle(root: string): Promise<string> {
  const bundle = join(root, 'dist/lab-agent.cjs');
  const built = statSync(bundle, { throwIfNoEntry: false })?.mtimeMs ?? 0;
  const sources = SOURCES.map((each) => join(root, each));
  if (sources.every((each) => !existsSync(each) || statSync(each).mtimeMs <= built)) return readFile(bundle, 'utf8');
  return runProgram(
    join(root, 'node_modules/.bin/esbuild'),
    [sources[0]!, '--bundle', '--platform=node', '--format=cjs', '--target=node20'],
    { purpose: "bundling the lab's agent" },
  );
}
