// `ferry vfio trace` and `ferry vfio replay`: records or shows every VFIO and iommufd call of a program, and plays a recording back to Ferry's
// own code with no device. Called by vfio.ts. The tracer of other programs is native/src/tracer*.cc.
import { replayInfo } from '../devices/vfio/trace/replay-info.ts';
import { hasWalk, replayWalk } from '../devices/vfio/trace/replay-walk.ts';
import { showTrace } from '../devices/vfio/trace/show.ts';
import { readTrace } from '../devices/vfio/trace/trace-file.ts';
import { kvmNode } from '../native/addon.ts';
import { VmmError } from '../native/errno.ts';
import { type OptionTable, optionHelp, parseOptions, wantsHelp } from './options.ts';
import { bigintsAsText, offerText } from './vfio.ts';

const TRACE_OPTIONS: OptionTable = {
  show: { kind: 'value', value: 'FILE', help: 'print a recorded trace as a readable list, instead of recording one' },
};

const TRACE_HELP = `usage: ferry vfio trace --show FILE

${optionHelp(TRACE_OPTIONS)}
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
  if (show === null || parsed.words.length > 0 || end !== -1) {
    throw new VmmError('usage', 'ferry vfio trace: --show FILE is wanted; see ferry vfio trace --help');
  }
  process.stdout.write(showTrace(readTrace(show)));
  return 0;
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
