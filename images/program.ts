// Runs one of the programs that build the images (apt-get, dpkg, make, cpio ...) to its end. Called by everything under images/lab and
// images/kmod. A failure is a VmmError that says what was run and the last line that it wrote; the whole output is in `log` if one was given.
import { spawn } from 'node:child_process';
import { createWriteStream } from 'node:fs';
import { VmmError } from '../native/errno.ts';

export interface ProgramOptions {
  readonly cwd?: string;
  readonly env?: NodeJS.ProcessEnv;
  /** Written to stdin. */
  readonly input?: string;
  /** stdout goes into this file instead of the result. */
  readonly outFile?: string;
  /** What was being done, for the error message: "building the kernel modules". */
  readonly purpose: string;
  /** Exit codes that are not a failure besides 0. */
  readonly accept?: readonly number[];
}

function tail(text: string): string {
  const lines = text.split('\n').filter((line) => line.trim() !== '');
  return lines.slice(-3).join(' | ') || 'no output';
}

/** Resolves with stdout. */
export function runProgram(program: string, args: readonly string[], options: ProgramOptions): Promise<string> {
  return new Promise((resolve, reject) => {
    const fail = (found: string, cause?: unknown) =>
      reject(
        new VmmError('EIMAGE', `${options.purpose}: ${program} ${args[0] ?? ''} ${found}`, { cause, exitCode: 1 }),
      );
    const env = { ...process.env, LC_ALL: 'C', ...options.env, PATH: `${process.env['PATH']}:/usr/sbin:/sbin` };
    const child = spawn(program, args, { cwd: options.cwd, env, stdio: ['pipe', 'pipe', 'pipe'] });
    let out = '';
    let err = '';
    const file = options.outFile === undefined ? null : createWriteStream(options.outFile);
    const written = file === null ? Promise.resolve() : new Promise<void>((done) => file.on('close', () => done()));
    if (file === null) child.stdout.setEncoding('utf8').on('data', (chunk: string) => (out += chunk));
    else child.stdout.pipe(file);
    child.stderr.setEncoding('utf8').on('data', (chunk: string) => (err += chunk));
    child.stdin.on('error', () => {});
    child.stdin.end(options.input ?? '');
    child.on('error', (error) => fail(`could not be started (${error.message})`, error));
    child.on('close', (code, signal) => {
      if (code === 0 || (code !== null && options.accept?.includes(code))) written.then(() => resolve(out), reject);
      else fail(`ended with ${code === null ? signal : `code ${code}`}: ${tail(err || out)}`);
    });
  });
}
