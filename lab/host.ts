// One lab host: the QEMU process, its agent, its shares. Called by lab/lab.ts. QEMU gets SIGKILL from the kernel when the thread that
// started it dies (prctl(2), PR_SET_PDEATHSIG), so no host outlives its owner. A QEMU that has ended by itself is a crashed lab host.
import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { openSync, readFileSync, truncateSync } from 'node:fs';
import { mkdir, open, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { VmmError } from '../native/errno.ts';
import { type AgentAddress, type Command, type CommandOptions, type RemoteProcess, startCommand } from './client.ts';
import type { HostRecord } from './lab-directory.ts';
import { findProgram } from './packages.ts';
import { backingFiles, type HostPlan, type LabDevice, qemuArguments } from './qemu-command.ts';
import { Qmp } from './qmp.ts';
import { isListening } from './unix-socket.ts';

export interface ExecOptions extends CommandOptions {
  readonly stdin?: string | Uint8Array | Readable;
  /** Called with each piece as it comes; then it is not collected. */
  readonly onStdout?: (chunk: Buffer) => void;
  readonly onStderr?: (chunk: Buffer) => void;
  /** SIGKILL to the process group after this time, and the promise rejects. */
  readonly timeoutMs?: number;
}

export interface ExecResult {
  readonly code: number | null;
  readonly signal: string | null;
  readonly stdout: string;
  readonly stderr: string;
  readonly stdoutBytes: Buffer;
}

export interface HostFiles {
  /** The bundled agent's text. */
  readonly agent: string;
}

const BOOT_LIMIT_MS = 120_000; // measured: 3.2-6 s
const READY = 'LAB AGENT READY';

async function prepare(plan: HostPlan, files: HostFiles): Promise<string> {
  const inner = join(plan.dir, 'work/.lab');
  await mkdir(inner, { recursive: true, mode: 0o700 });
  const secret = randomBytes(24).toString('hex');
  await writeFile(join(inner, 'secret'), `${secret}\n`, { mode: 0o600 });
  await writeFile(join(inner, 'agent.cjs'), files.agent);
  const settings = {
    LAB_NAME: plan.name,
    LAB_NODE: process.execPath,
    LAB_REPO: plan.repo,
    LAB_CACHE: plan.cache,
    LAB_FERRY_CACHE: plan.cache,
  };
  const lines = Object.entries(settings).map(([name, value]) => `${name}='${value.replace(/'/g, "'\\''")}'\n`);
  await writeFile(join(inner, 'host.env'), lines.join(''));
  for (const { path, size } of backingFiles(plan)) {
    await (await open(path, 'wx', 0o600)).close();
    truncateSync(path, size);
  }
  return secret;
}

export class LabHost {
  readonly name: string;
  readonly devices: readonly LabDevice[];
  /** The outer host's path of the directory that this host sees as /hw (read-write, coherent both ways). */
  readonly share: string;
  readonly plan: HostPlan;
  /** Resolves when QEMU is gone, with a sentence about how. */
  readonly ended: Promise<string>;
  readonly qmp: Qmp;
  readonly #qemu: ChildProcess;
  readonly #address: AgentAddress;
  #closing = false;
  #over: string | null = null;

  private constructor(
    plan: HostPlan,
    qemu: ChildProcess,
    parts: { ended: Promise<string>; qmp: Qmp; address: AgentAddress },
  ) {
    this.plan = plan;
    this.name = plan.name;
    this.devices = plan.devices;
    this.share = join(plan.dir, 'work');
    this.#qemu = qemu;
    this.ended = parts.ended;
    this.qmp = parts.qmp;
    this.#address = parts.address;
    this.ended.then((how) => (this.#over = how));
  }

  /** Boots it; resolves when the agent answers. `signal` ends it before that. */
  static async boot(plan: HostPlan, files: HostFiles, signal: AbortSignal | null): Promise<LabHost> {
    const secret = await prepare(plan, files);
    const log = openSync(join(plan.dir, 'qemu.log'), 'a', 0o600);
    const qemu = spawn(
      findProgram('setpriv') ?? 'setpriv',
      ['--pdeathsig', 'KILL', findProgram('qemu-system-x86_64') ?? 'qemu-system-x86_64', ...qemuArguments(plan)],
      // A process group of its own: a terminal's Ctrl-C is the owner's to answer, who closes the lab in his order.
      { stdio: ['ignore', log, log], detached: true },
    );
    const how = { text: null as string | null };
    const ended = new Promise<string>((resolve) => {
      const over = (text: string) => {
        how.text = text;
        resolve(text);
      };
      qemu.on('error', (error) => over(`could not be started: ${error.message}`));
      qemu.on('exit', (code, signal) => over(code === null ? `ended by ${signal}` : `ended with code ${code}`));
    });
    try {
      const until = async (what: string, there: () => boolean) => {
        const limit = Date.now() + BOOT_LIMIT_MS;
        while (!there()) {
          if (how.text !== null) throw bootError(plan, `its QEMU ${how.text}`);
          signal?.throwIfAborted();
          if (Date.now() > limit) throw bootError(plan, `no ${what} within ${BOOT_LIMIT_MS / 1000} s`);
          await sleep(20);
        }
      };
      await until('monitor', () => isListening(join(plan.dir, 'qmp.sock')));
      const qmp = await Qmp.open(join(plan.dir, 'qmp.sock'));
      const port = await forwardedPort(qmp);
      await until('agent', () => readText(join(plan.dir, 'serial.log')).includes(READY));
      return new LabHost(plan, qemu, { ended, qmp, address: { port, secret } });
    } catch (error) {
      qemu.kill('SIGKILL');
      throw error;
    }
  }

  /** How to reach it, for other processes. */
  record(): HostRecord {
    return {
      name: this.name,
      port: this.#address.port,
      secretFile: join(this.share, '.lab/secret'),
      qemuPid: this.#qemu.pid ?? 0,
      devices: this.devices,
      dir: this.plan.dir,
    };
  }

  get crashed(): boolean {
    return this.#over !== null && !this.#closing;
  }

  /** The serial console so far. */
  consoleLog(): string {
    return readText(join(this.plan.dir, 'serial.log'));
  }

  /** Starts a command; a line goes to bash, an array is a program and its arguments. */
  spawn(command: Command, options: CommandOptions = {}): RemoteProcess {
    return startCommand(this.#address, command, options);
  }

  /** Runs a command to its end. Rejects when it could not be run or the host is gone, not when its code is other than 0. */
  async exec(command: Command, options: ExecOptions = {}): Promise<ExecResult> {
    const child = this.spawn(command, options);
    return collect(child, options, (error) => this.#explain(error));
  }

  /** The same, and a code other than 0 is an error that shows stderr. Resolves with stdout. */
  async run(command: Command, options: ExecOptions = {}): Promise<string> {
    const { code, signal, stdout, stderr } = await this.exec(command, options);
    if (code === 0) return stdout;
    const said = (stderr || stdout).trim().split('\n').slice(-20).join('\n');
    throw new VmmError('ELAB', `${this.name}: ${JSON.stringify(command)} ended with ${code ?? signal}: ${said}`, {
      exitCode: 1,
    });
  }

  async insmod(path: string, ...parameters: string[]): Promise<void> {
    await this.run(['insmod', path, ...parameters]);
  }

  /** The address of the first device of a kind. */
  bdf(kind: LabDevice['kind']): string {
    const found = this.devices.find((each) => each.kind === kind);
    if (found === undefined) throw new VmmError('ELAB', `${this.name} has no ${kind}; start the lab with one`);
    return found.bdf;
  }

  /** Like a crash of the machine: SIGKILL to QEMU. */
  async kill(): Promise<void> {
    this.#closing = true;
    this.#qemu.kill('SIGKILL');
    await this.ended;
    this.qmp.close();
  }

  close(): Promise<void> {
    return this.kill();
  }

  async #explain(error: Error): Promise<Error> {
    // The connection breaks a moment before the process is seen to be gone.
    await Promise.race([this.ended, sleep(500)]);
    if (!this.crashed) return error;
    const tail = this.consoleLog().trimEnd().split('\n').slice(-60).join('\n');
    return new VmmError(
      'ELABCRASH',
      `the lab host ${this.name} crashed (QEMU ${this.#over}); the end of its console:\n${tail}`,
      {
        cause: error,
        exitCode: 1,
      },
    );
  }
}

function readText(path: string): string {
  try {
    return readFileSync(path, 'latin1');
  } catch {
    return '';
  }
}

function bootError(plan: HostPlan, what: string): VmmError {
  const console = readText(join(plan.dir, 'serial.log')).trim().split('\n').slice(-8).join(' | ');
  const qemu = readText(join(plan.dir, 'qemu.log')).trim().split('\n').slice(-3).join(' | ');
  return new VmmError(
    'ELAB',
    `the lab host ${plan.name} did not come up: ${what}. QEMU: ${qemu || '-'} Console: ${console || '-'}`,
    {
      exitCode: 1,
    },
  );
}

/** Which port of the outer host QEMU's user network took for the agent. */
async function forwardedPort(qmp: Qmp): Promise<number> {
  const text = String(await qmp.execute('human-monitor-command', { 'command-line': 'info usernet' }));
  const port = /TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s/.exec(text)?.[1];
  if (port === undefined) throw new VmmError('ELAB', `QEMU forwards no port for the agent: ${text}`, { exitCode: 1 });
  return Number(port);
}

/** Runs a started command to its end; shared by LabHost and `ferry lab exec`. */
export async function collect(
  child: RemoteProcess,
  options: ExecOptions,
  explain: (error: Error) => Promise<Error>,
): Promise<ExecResult> {
  const out: Buffer[] = [];
  const err: Buffer[] = [];
  child.stdout.on('data', options.onStdout ?? ((chunk: Buffer) => out.push(chunk)));
  child.stderr.on('data', options.onStderr ?? ((chunk: Buffer) => err.push(chunk)));
  if (options.stdin === undefined || typeof options.stdin === 'string' || options.stdin instanceof Uint8Array)
    child.stdin.end(options.stdin ?? '');
  else options.stdin.pipe(child.stdin);
  let late = false;
  const timer =
    options.timeoutMs === undefined
      ? null
      : setTimeout(() => {
          late = true;
          child.kill('SIGKILL');
        }, options.timeoutMs);
  try {
    const status = await child.done;
    if (status.error !== null)
      throw new VmmError('ELAB', `the lab host could not run the command: ${status.error}`, { exitCode: 1 });
    if (late)
      throw new VmmError(
        'ETIMEDOUT',
        `a command in the lab host took longer than ${options.timeoutMs} ms; it said: ${Buffer.concat([...out, ...err])
          .toString()
          .slice(-2000)}`,
        {
          exitCode: 1,
        },
      );
    const stdoutBytes = Buffer.concat(out);
    const { code, signal } = status;
    return { code, signal, stdout: stdoutBytes.toString(), stderr: Buffer.concat(err).toString(), stdoutBytes };
  } catch (error) {
    throw await explain(error as Error);
  } finally {
    if (timer !== null) clearTimeout(timer);
  }
}
