// Rule: docs/bring-up.md has no block that its lab test could not run, and that test can fail: output that is not as written is told apart, and
// a command that fails is noticed.
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { repoRoot } from '../../../lab/root.ts';
import { BlockShell, blocksOf, isPrinted } from '../../lab/runnable-document.ts';

describe('a document whose commands are run', () => {
  it('is read block by block: commands, what they print, files to write', () => {
    const text = ['## One', '```sh', 'ls', '```', 'words', '```text', 'a', '```', '```js x.mjs', 'let y', '```', ''];
    expect(blocksOf(text.join('\n'))).toEqual([
      { line: 2, part: 'One', file: null, text: 'ls\n', prints: 'a\n' },
      { line: 9, part: 'One', file: 'x.mjs', text: 'let y\n', prints: null },
    ]);
  });

  it.each([
    ['a language that nobody runs', '```python\n1\n```\n', /line 1: nobody knows how to run a block of "python"/],
    ['one that is not said what it is', '```\nls\n```\n', /line 1: nobody knows/],
    ['one without an end', '```sh\nls\n', /line 1: the block has no end/],
    ['output without its command', '```text\na\n```\n', /line 1: a text block stands behind/],
    ['a block by indentation', 'words\n\n    ls\n', /line 3: an indented block/],
  ])('has no %s', (_, text, message) => {
    expect(() => blocksOf(text)).toThrow(message);
  });

  it.each([
    ['one\ntwo\n', '\none\ntwo  \r\n', true],
    ['one\n', 'one\ntwo\n', false],
    ['...\ntwo\n', 'one\none\ntwo\n', true],
    ['...\ntwo\n', 'two\n', true],
    ['one\n...\n', 'zero\none\n', false],
    ['a ... ms (b)\n', 'a 12.5 ms (b)\n', true],
    ['a ... ms\n', 'a 12\nb ms\n', false],
    ['a.c\n', 'abc\n', false],
    ['...\na\nb\n...\nc\n', 'a\na\nb\nc\nb\nc\n', true],
    ['...\na\n...\nb\n', 'b\na\n', false],
    ['a\n...\n', 'a\n', true],
  ])('compares %j with the printed %j: %s', (wanted, printed, same) => {
    expect(isPrinted(wanted, printed)).toBe(same);
  });

  it('is typed into one shell: variables and directory stay, a failed command is named, an awaited one is not', async () => {
    const scratch = mkdtempSync(join(tmpdir(), 'ferry-document-'));
    const shell = new BlockShell({ cwd: repoRoot(), scratch, env: process.env });
    try {
      expect(await shell.run(`x=5\ncd '${scratch}'\n`, 10_000)).toEqual({ output: '', failed: '' });
      expect(shell.directory).toBe(scratch);
      expect(await shell.run('echo $x; echo y >&2\n', 10_000)).toEqual({ output: '5\ny\n', failed: '' });
      expect((await shell.run('false $x\necho on\n', 10_000)).failed).toBe('false $x');
      expect(await shell.run('false || echo "code $?"\n', 10_000)).toEqual({ output: 'code 1\n', failed: '' });
      await expect(shell.run('sleep 60\n', 100)).rejects.toThrow(/not over after 0.1 s/);
    } finally {
      shell.kill();
      rmSync(scratch, { recursive: true });
    }
  });

  it('is docs/bring-up.md: all of its blocks can be run', () => {
    const blocks = blocksOf(readFileSync(join(repoRoot(), 'docs/bring-up.md'), 'utf8'));
    expect(blocks.filter(({ prints }) => prints !== null).length).toBeGreaterThan(5);
    expect(blocks.filter(({ file }) => file !== null).map(({ file }) => file)).toEqual(['exerciser.mjs']);
  });
});
