// `ferry vfio trace` and `ferry vfio replay`: records or shows every VFIO and iommufd call of a program, and plays a recording back to Ferry's
// own code with no device. Called by vfio.ts. The tracer of other programs is native/src/tracer*.cc.
import { HOST_PATHS } from '../devices/vfio/kernel-door.ts';
import { FOREIGN_TRACE_NOTES, traceForeign } from '../devices/vfio/trace/foreign.ts';
import { replayInfo } from '../devices/vfio/trace/replay-info.ts';
import { hasWalk, replayWalk } from '../devices/vfio/trace/replay-walk.ts';
import { showLine, showTrace } from '../devices/vfio/trace/show.ts';
import { readTrace, type TraceLine } from '../devices/vfio/trace/trace-file.ts';
import { headerFor, TraceWriter } from '../devices/vfio/trace/trace-writer.ts';
import { signalName } from '../devices/vfio/trace/traced-file.ts';
import { kvmNode } from '../native/addon.ts';
import { SysError, VmmError } from '../native/errno.ts';
import { type OptionTable, optionHelp, parseOptions, wantsHelp } from './options.ts';
import { bigintsAsText, offerText } from './vfio.ts';

const TRACE_OPTIONS: OptionTable = {
  output: {
    kind: 'value',
    value: 'FILE',
    short: 'o',
    help: 'write the trace into FILE, as JSON lines, instead of a list on stderr',
  },
  data: { kind: 'flag', value: '', help: 'keep what was read and written, not only its length and hash' },
  show: { kind: 'value', value: 'FILE', help: 'print a recorded trace as a readable list' },
};

const TRACE_HELP = `usage: ferry vfio trace [-o FILE] [--data] -- COMMAND [ARGUMENT...]
       ferry vfio trace --show FILE

Runs COMMAND and records every call that it makes on VFIO and iommufd files: ioctl (decoded), read, write, pread, pwrite, poll, mmap, dup,
open, close, and files that come through sockets; in its threads and children, and in static programs too. Of Ferry itself:
'ferry run --vfio-trace FILE', 'ferry receive --vfio-trace FILE', 'ferry vfio info ADDRESS --vfio-trace FILE'.

${optionHelp(TRACE_OPTIONS)}

Not visible: accesses to mapped BARs, io_uring, splice, sendfile, 32-bit programs. A trace holds addresses and register values, with --data also
device state and what a guest had in it: look at it before you pass it on.
COMMAND has Ferry's stdin, stdout and stderr; signals sent to Ferry go to it. It dies with Ferry. Setuid programs run without their rights.
Ferry waits until all that COMMAND started has ended. Exit code: COMMAND's; 128 + N when signal N killed it; 2 bad input.

Example: a bug report, and what is done with it
  ferry vfio trace -o bug.trace --data -- qemu-system-x86_64 ... -device vfio-pci,host=65:00.0
  ferry vfio trace --show bug.trace
  ferry vfio replay bug.trace
`;

const REPLAY_OPTIONS: OptionTable = {
  info: { kind: 'flag', value: '', help: "play it to 'ferry vfio info'" },
  migration: { kind: 'flag', value: '', help: 'play the migration part: states, sizes, streams' },
  json: { kind: 'flag', value: '', help: 'print JSON on stdout' },
};

const REPLAY_HELP = `usage: ferry vfio replay FILE [--info | --migration] [--json]

Gives the answers that are in a trace to Ferry's own code, with no device and without root: what a user has seen is seen again.
A trace with changes of the migration state is played to the code that migrates, each change, size and stream in the trace's order;
any other is played to 'ferry vfio info', and prints what that printed.

${optionHelp(REPLAY_OPTIONS)}

Calls must come in the order of the trace, file by file. The first one that does not is said: what line N expects, and what was asked.
Exit code: 0 played to its end; 1 a call did not fit, or a step failed as it did for the user; 2 bad input.
`;

export async function traceCommand(args: readonly string[]): Promise<number> {
  const end = args.indexOf('--');
  const own = end === -1 ? args : args.slice(0, end);
  if (wantsHelp(own)) {
    process.stdout.write(TRACE_HELP);
    return 0;
  }
  const parsed = parseOptions('vfio trace', TRACE_OPTIONS, own);
  const show = parsed.value('show');
  const command = end === -1 ? [] : args.slice(end + 1);
  if (parsed.words.length > 0 || (show === null) === (command.length === 0)) {
    throw new VmmError(
      'usage',
      'ferry vfio trace: either -- COMMAND or --show FILE is wanted; see ferry vfio trace --help',
    );
  }
  if (show !== null) {
    process.stdout.write(showTrace(readTrace(show)));
    return 0;
  }
  return record(command, parsed.value('output'), parsed.flag('data'));
}

async function record(command: readonly string[], output: string | null, data: boolean): Promise<number> {
  const options = { program: command, data, notes: FOREIGN_TRACE_NOTES };
  const writer = output === null ? null : new TraceWriter(output, options);
  const list = { line: (line: TraceLine) => process.stderr.write(`${showLine(line)}\n`) };
  const signals = new ForwardedSignals();
  try {
    const { code, signal } = await traceForeign(kvmNode(), command, {
      sink: writer ?? list,
      paths: HOST_PATHS,
      data,
      rules: null,
      started(pid) {
        signals.to(pid);
        if (writer === null) list.line(headerFor(options));
      },
    });
    if (signal === null) return code ?? 1;
    process.stderr.write(`ferry: ${command[0]} was killed by ${signalName(signal)}\n`);
    return 128 + signal;
  } catch (cause) {
    if (!(cause instanceof SysError)) throw cause;
    throw new VmmError('trace', `${command[0]} cannot be traced: ${hint(cause)}`, { cause });
  } finally {
    signals.close();
    writer?.close();
  }
}

function hint(error: SysError): string {
  if (error.syscall === 'exec') return `it cannot be started (${error.code})`;
  if (error.code === 'EPERM' || error.code === 'EACCES') {
    return `${error.syscall} is not allowed here (${error.code}): see kernel.yama.ptrace_scope, and the seccomp profile of a container`;
  }
  return `${error.syscall} failed (${error.code})`;
}

/** What reaches Ferry alone is passed on; a terminal sends SIGINT and SIGQUIT to the command too. To be made before the command is started, which
 *  may send one at once; what comes before its process is known waits for it. */
class ForwardedSignals {
  readonly #handlers: { name: NodeJS.Signals; handler: () => void }[] = [];
  readonly #waiting: NodeJS.Signals[] = [];
  #pid: number | null = null;

  constructor() {
    const atTerminal = process.stdin.isTTY || process.stdout.isTTY || process.stderr.isTTY;
    for (const name of ['SIGTERM', 'SIGHUP', 'SIGINT', 'SIGQUIT', 'SIGUSR1', 'SIGUSR2', 'SIGCONT'] as const) {
      const both = atTerminal && (name === 'SIGINT' || name === 'SIGQUIT');
      const handler = () => {
        if (both) return;
        if (this.#pid === null) this.#waiting.push(name);
        else kill(this.#pid, name);
      };
      process.on(name, handler);
      this.#handlers.push({ name, handler });
    }
  }

  to(pid: number): void {
    this.#pid = pid;
    for (const name of this.#waiting.splice(0)) kill(pid, name);
  }

  close(): void {
    for (const { name, handler } of this.#handlers.splice(0)) process.off(name, handler);
  }
}

/** It may have ended already, with children of its left. */
function kill(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch {
    process.stderr.write(`ferry: ${signal} was not passed on: the command has ended, what it started has not\n`);
  }
}

export async function replayCommand(args: readonly string[]): Promise<number> {
  if (wantsHelp(args)) {
    process.stdout.write(REPLAY_HELP);
    return 0;
  }
  const parsed = parseOptions('vfio replay', REPLAY_OPTIONS, args);
  const [file, ...rest] = parsed.words;
  if (file === undefined || rest.length > 0 || (parsed.flag('info') && parsed.flag('migration'))) {
    throw new VmmError('usage', 'ferry vfio replay: one FILE is wanted; see ferry vfio replay --help');
  }
  const trace = readTrace(file);
  const input = { trace, file, native: kvmNode() };
  const json = parsed.flag('json');
  if (parsed.flag('migration') || (!parsed.flag('info') && hasWalk(trace.calls))) {
    const steps = await replayWalk(input);
    const text = steps.map((each) => `line ${each.line}  ${each.device}  ${each.ok ? '' : 'FAILED: '}${each.text}\n`);
    process.stdout.write(json ? `${JSON.stringify(steps)}\n` : text.join(''));
    return steps.every((each) => each.ok) ? 0 : 1;
  }
  for (const offer of await replayInfo(input)) {
    process.stdout.write(json ? `${JSON.stringify(offer, bigintsAsText)}\n` : offerText(offer));
  }
  return 0;
}
