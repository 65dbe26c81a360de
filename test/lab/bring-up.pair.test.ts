// Rule: docs/bring-up.md is true: each command in it runs as it stands, in the document's order, and prints what the document says that it
// prints. It begins in the repository, as a reader does, and ends without a lab; what it writes is in a directory of the test's.
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { repoRoot } from '../../lab/root.ts';
import { pairUnavailable } from './pair.ts';
import { type Block, BlockShell, blocksOf, isPrinted } from './runnable-document.ts';

const unavailable = pairUnavailable();
if (unavailable !== null) console.log(`skipped: bring-up: ${unavailable}`);

/** Measured: 70 s for the checks with an exerciser on a busy machine, of all blocks the longest. */
const BLOCK_MS = 300_000;
const DOCUMENT = 'docs/bring-up.md';

describe.skipIf(unavailable !== null)(DOCUMENT, () => {
  const blocks = blocksOf(readFileSync(join(repoRoot(), DOCUMENT), 'utf8'));
  let scratch: string;
  let env: NodeJS.ProcessEnv;
  let shell: BlockShell;
  let broken: string | null = null;
  beforeAll(() => {
    scratch = mkdtempSync(join(tmpdir(), 'ferry-bring-up-'));
    mkdirSync(join(scratch, 'tmp'));
    env = { ...process.env, FERRY_LAB_DIR: join(scratch, 'labs'), TMPDIR: join(scratch, 'tmp') };
    shell = new BlockShell({ cwd: repoRoot(), scratch, env });
  });
  afterAll(() => {
    shell.kill();
    execFileSync(join(repoRoot(), 'bin/ferry'), ['lab', 'down', '--all'], { env });
    rmSync(scratch, { recursive: true, force: true });
  });

  /** What a guest or a Ferry that runs behind the scenes has said. */
  function logs(): string {
    const here = shell.directory;
    const names = readdirSync(here).filter((name) => name.endsWith('.log'));
    return names.map((name) => `--- ${name}\n${readFileSync(join(here, name), 'utf8').slice(-1500)}`).join('\n');
  }

  async function follow(block: Block): Promise<void> {
    if (block.file !== null) {
      writeFileSync(join(shell.directory, block.file), block.text);
      return;
    }
    const { output, failed } = await shell.run(block.text, BLOCK_MS);
    const place = `${DOCUMENT}, line ${block.line}`;
    if (failed !== '') throw new Error(`${place}: "${failed}" failed:\n${output}\n${logs()}`);
    if (block.prints !== null && !isPrinted(block.prints, output))
      throw new Error(`${place} prints something else:\n${output}\n${logs()}`);
    console.log(`${place}:\n${block.text}${output}`);
  }

  it.each([...new Set(blocks.map(({ part }) => part))])('%s', async (part) => {
    expect(broken, 'an earlier part failed').toBeNull();
    broken = part;
    for (const block of blocks.filter((each) => each.part === part)) await follow(block);
    broken = null;
  });

  it('leaves no lab behind', () => {
    expect(readdirSync(join(scratch, 'labs'))).toEqual([]);
  });
});
