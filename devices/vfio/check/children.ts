// The parent's side of a check: a child process that runs the rules, and a watchdog over it. A call that never returns cannot be ended by anyone
// but the kernel, so the child is killed, its kernel stacks are the finding, and the next rule gets a new child. Called by check.ts.
// proc(5): /proc/PID/task/TID/stack, which only root may read.
import { type ChildProcess, spawn } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Readable } from 'node:stream';
import { VmmError } from '../../../native/errno.ts';
import type { Generation, RuleResult } from './rule.ts';

/** What a child sends, a JSON line each, on its fd 3. */
export type FromChild =
  | {
      readonly kind: 'ready';
      readonly generation: Generation;
      /** How it was found. */
      readonly facts: readonly string[];
      readonly exerciser: string | null;
      readonly offers: readonly string[];
      /** Whether /dev/kmsg could be read. */
      readonly kernelLog: boolean;
    }
  /** The device cannot be opened, or the like: there is no check. */
  | { readonly kind: 'refused'; readonly code: string; readonly message: string; readonly exitCode: number }
  | { readonly kind: 'result'; readonly result: RuleResult }
  /** A mistake of ours. */
  | { readonly kind: 'failed'; readonly message: string }
  /** Calls go on ending; at most one a second. */
  | { readonly kind: 'alive' };

export type Ready = Extract<FromChild, { kind: 'ready' }>;

export type Ended =
  | { readonly kind: 'result'; readonly result: RuleResult }
  | { readonly kind: 'failed'; readonly message: string }
  /** A call did not return in time; what its threads were doing. */
  | { readonly kind: 'hung'; readonly stack: string; readonly ms: number }
  /** The child was ended by a signal that we did not send: the kernel does that to who meets an oops. */
  | { readonly kind: 'killed'; readonly signal: string };

export interface ChildCommand {
  readonly file: string;
  readonly args: readonly string[];
  /** For one call, and for opening the device. A rule may take longer, as long as its calls end. */
  readonly limitMs: number;
  readonly proc: string;
}

const KILL_MS = 10_000;
/** More of them say nothing new, and each costs the whole limit. */
const MOST_HANGS = 3;

export class RuleChildren {
  readonly #command: ChildCommand;
  #child: Child | null = null;
  #ready: Ready | null = null;
  /** A killed child that does not die holds the device. */
  #stuck: string | null = null;
  #hangs = 0;

  constructor(command: ChildCommand) {
    this.#command = command;
  }

  /** Starts the first child. Throws VmmError when the device cannot be checked. */
  async start(): Promise<Ready> {
    this.#ready ??= await this.#open();
    return this.#ready;
  }

  async run(rule: string): Promise<Ended> {
    if (this.#stuck !== null) return { kind: 'failed', message: this.#stuck };
    if (this.#hangs >= MOST_HANGS) return { kind: 'failed', message: `${this.#hangs} rules before it never ended` };
    if (this.#child === null) await this.#open();
    const child = this.#child as Child;
    child.write(rule);
    const answer = await child.next(this.#command.limitMs);
    if (answer === 'late') return this.#hung(child);
    if (answer === 'gone') {
      this.#child = null;
      const how = await child.ended;
      if (how.signal !== null) return { kind: 'killed', signal: how.signal };
      return { kind: 'failed', message: `the process of the rule ended with code ${how.code}` };
    }
    if (answer.kind === 'result' || answer.kind === 'failed') return answer;
    return { kind: 'failed', message: `the process of the rule said '${answer.kind}'` };
  }

  async close(): Promise<void> {
    const child = this.#child;
    this.#child = null;
    if (child === null) return;
    child.endInput();
    if (!(await child.goneWithin(KILL_MS))) {
      child.kill();
      await child.goneWithin(KILL_MS);
    }
  }

  async #open(): Promise<Ready> {
    const child = new Child(this.#command);
    const answer = await child.next(this.#command.limitMs);
    if (answer !== 'late' && answer !== 'gone' && answer.kind === 'ready') {
      this.#child = child;
      return answer;
    }
    child.kill();
    if (answer !== 'late' && answer !== 'gone' && answer.kind === 'refused') {
      throw new VmmError(answer.code, answer.message, { exitCode: answer.exitCode });
    }
    const how = answer === 'late' ? 'did not answer' : 'ended before it had opened the device';
    throw new VmmError('check-child', `the process that runs the rules ${how}: see dmesg`, { exitCode: 1 });
  }

  async #hung(child: Child): Promise<Ended> {
    const stack = stacksOf(this.#command.proc, child.pid);
    this.#child = null;
    this.#hangs++;
    child.kill();
    if (!(await child.goneWithin(KILL_MS))) this.#stuck = 'a call that never ended holds the device: reboot this host';
    return { kind: 'hung', stack, ms: this.#command.limitMs };
  }
}

class Child {
  readonly #process: ChildProcess;
  readonly #messages: FromChild[] = [];
  #wake: (() => void) | null = null;
  #gone = false;
  readonly ended: Promise<{ readonly code: number | null; readonly signal: string | null }>;

  constructor(command: ChildCommand) {
    const child = spawn(command.file, [...command.args], { stdio: ['pipe', 'inherit', 'inherit', 'pipe'] });
    this.#process = child;
    // A child that ends while it is written to is told of by 'exit'.
    child.stdin?.on('error', () => {});
    this.ended = new Promise((resolve) => {
      child.on('error', () => this.#over(() => resolve({ code: 127, signal: null })));
      child.on('close', (code, signal) => this.#over(() => resolve({ code, signal })));
    });
    createInterface({ input: child.stdio[3] as Readable }).on('line', (line) => {
      this.#messages.push(JSON.parse(line) as FromChild);
      this.#wake?.();
    });
  }

  get pid(): number {
    return this.#process.pid ?? -1;
  }

  #over(resolve: () => void): void {
    this.#gone = true;
    resolve();
    this.#wake?.();
  }

  write(line: string): void {
    this.#process.stdin?.write(`${line}\n`);
  }

  endInput(): void {
    this.#process.stdin?.end();
  }

  kill(): void {
    this.#process.kill('SIGKILL');
  }

  next(ms: number): Promise<FromChild | 'late' | 'gone'> {
    return new Promise((resolve) => {
      let timer = setTimeout(() => done('late'), ms);
      const done = (what: FromChild | 'late' | 'gone') => {
        this.#wake = null;
        clearTimeout(timer);
        resolve(what);
      };
      this.#wake = () => {
        const message = this.#messages.shift();
        if (message?.kind === 'alive') {
          clearTimeout(timer);
          timer = setTimeout(() => done('late'), ms);
          this.#wake?.();
        } else if (message !== undefined) done(message);
        else if (this.#gone) done('gone');
      };
      this.#wake();
    });
  }

  async goneWithin(ms: number): Promise<boolean> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<false>((resolve) => {
      timer = setTimeout(() => resolve(false), ms);
    });
    const gone = await Promise.race([this.ended.then(() => true), late]);
    clearTimeout(timer);
    return gone;
  }
}

/** Kernel stacks of the threads that are in a call of VFIO, else of all; innermost first. */
function stacksOf(proc: string, pid: number): string {
  const tasks = join(proc, String(pid), 'task');
  let stacks: string[];
  try {
    stacks = readdirSync(tasks).map((tid) => readFileSync(join(tasks, tid, 'stack'), 'utf8').trim());
  } catch (error) {
    return `(its kernel stacks cannot be read: ${(error as NodeJS.ErrnoException).code})`;
  }
  const ours = stacks.filter((stack) => /vfio|ioctl|vfs_read|vfs_write/.test(stack));
  const text = (ours.length > 0 ? ours : stacks).map((stack) => stack.replace(/\[<0>\] /g, '').replace(/\n/g, ' < '));
  return text.join(' | ');
}
