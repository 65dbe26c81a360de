// A document whose commands are run as they stand: its fenced blocks, in order, and whether what they print is what it says. Used by
// test/lab/bring-up.pair.test.ts; pure but for BlockShell, which is one bash for the whole document, as a reader's terminal is.
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import { readlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

export interface Block {
  /** Of the opening fence. */
  readonly line: number;
  /** The heading that it stands under. */
  readonly part: string;
  /** What the reader does with it: types it, or writes it into a file. */
  readonly file: string | null;
  readonly text: string;
  /** What a command prints, in the end; null: the document does not say. */
  readonly prints: string | null;
}

/** `sh` is typed, `text` behind it is what is printed, `js NAME` is written into a file. Throws for a block that is none of them. */
export function blocksOf(document: string): Block[] {
  const blocks: Block[] = [];
  let part = '';
  let open: { line: number; info: string; lines: string[] } | null = null;
  for (const [index, line] of document.split('\n').entries()) {
    const fence = /^```(.*)$/.exec(line);
    if (fence === null) {
      if (open !== null) open.lines.push(line);
      else if (line.startsWith('## ')) part = line.slice(3);
      else if (/^ {4}/.test(line)) throw new Error(`line ${index + 1}: an indented block cannot be run; fence it`);
    } else if (open === null) open = { line: index + 1, info: fence[1] ?? '', lines: [] };
    else {
      take(blocks, part, open);
      open = null;
    }
  }
  if (open !== null) throw new Error(`line ${open.line}: the block has no end`);
  return blocks;
}

function take(blocks: Block[], part: string, open: { line: number; info: string; lines: string[] }): void {
  const { line, info } = open;
  const text = `${open.lines.join('\n')}\n`;
  const named = /^\w+ ([\w.-]+)$/.exec(info);
  if (info === 'sh') blocks.push({ line, part, file: null, text, prints: null });
  else if (named !== null) blocks.push({ line, part, file: named[1] ?? '', text, prints: null });
  else if (info === 'text') {
    const last = blocks.pop();
    if (last === undefined || last.file !== null || last.prints !== null)
      throw new Error(`line ${line}: a text block stands behind the commands that print it`);
    blocks.push({ ...last, prints: text });
  } else throw new Error(`line ${line}: nobody knows how to run a block of "${info}"`);
}

/** `wanted` is all of what was printed; a line of ... stands for any lines, ... in a line for any text. */
export function isPrinted(wanted: string, printed: string): boolean {
  const patterns = wanted.trim().split('\n').map(linePattern);
  const lines = printed.replace(/\r/g, '').trim().split('\n');
  let [at, line] = [0, 0];
  let gap: { after: number; line: number } | null = null;
  // What does not fit behind a gap is the gap's; only the last gap need be looked at again, as each takes as little as it can.
  while (line < lines.length) {
    const pattern = patterns[at];
    if (pattern === null) gap = { after: ++at, line };
    else if (pattern?.test(lines[line]!.trimEnd())) [at, line] = [at + 1, line + 1];
    else if (gap === null) return false;
    else [at, line] = [gap.after, ++gap.line];
  }
  return patterns.slice(at).every((pattern) => pattern === null);
}

/** null: any lines. */
function linePattern(line: string): RegExp | null {
  if (line === '...') return null;
  const parts = line
    .trimEnd()
    .split('...')
    .map((part) => part.replace(/[\\^$.*+?()[\]{}|/-]/g, '\\$&'));
  return new RegExp(`^${parts.join('.*')}$`);
}

export interface Printed {
  readonly output: string;
  /** The command that ended with another code than 0 and without an ||; empty: none did. */
  readonly failed: string;
}

const MARK = 'the-block-is-over';

/** stdin of the commands is the reader's keyboard, at which he types nothing. */
export class BlockShell {
  readonly #bash: ChildProcessWithoutNullStreams;
  readonly #scratch: string;
  #output = '';
  #looks: () => void = () => {};
  #blocks = 0;

  constructor(options: { readonly cwd: string; readonly scratch: string; readonly env: NodeJS.ProcessEnv }) {
    this.#scratch = options.scratch;
    this.#bash = spawn('bash', ['-c', 'exec bash --norc 2>&1'], { cwd: options.cwd, env: options.env, detached: true });
    this.#bash.stdout.on('data', (chunk: Buffer) => {
      this.#output += chunk.toString();
      this.#looks();
    });
    this.#bash.on('exit', () => this.#looks());
    this.#bash.stdin.on('error', () => {});
    this.#bash.stdin.write("trap 'failed=$BASH_COMMAND' ERR\n");
  }

  /** Where the reader stands. */
  get directory(): string {
    return readlinkSync(`/proc/${this.#bash.pid}/cwd`);
  }

  run(text: string, limitMs: number): Promise<Printed> {
    const file = join(this.#scratch, `block-${this.#blocks++}.sh`);
    writeFileSync(file, text);
    this.#output = '';
    this.#bash.stdin.write(`failed=; . '${file}'; printf '\\n${MARK} %s\\n' "$failed"\n`);
    return new Promise((resolve, reject) => {
      const late = () => reject(new Error(`not over after ${limitMs / 1000} s:\n${text}It said:\n${this.#output}`));
      const timer = setTimeout(late, limitMs);
      this.#looks = () => {
        const found = new RegExp(`\\n${MARK} (.*)\\n$`).exec(this.#output);
        if (found === null && this.#bash.exitCode === null) return;
        clearTimeout(timer);
        if (found === null) reject(new Error(`the shell has ended in:\n${text}It said:\n${this.#output}`));
        else resolve({ output: this.#output.slice(0, found.index), failed: found[1] ?? '' });
      };
    });
  }

  /** With all that it has started and that did not leave its process group. */
  kill(): void {
    if (this.#bash.pid !== undefined && this.#bash.exitCode === null) process.kill(-this.#bash.pid, 'SIGTERM');
  }
}
