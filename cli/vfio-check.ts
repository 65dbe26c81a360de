// `ferry vfio check DEV`: holds a VFIO migration driver, of whichever generation, to the text of its interface, without a guest. The rules run in a child process, which is
// this program once more with the internal verb `vfio check-child`; called by cli/vfio.ts.
import { writeSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { type BesideTexts, findBeside } from '../devices/vfio/check/beside.ts';
import { chooseRules, exitCodeOf, type Repeat, runCheck } from '../devices/vfio/check/check.ts';
import { openCheckDoor } from '../devices/vfio/check/check-door.ts';
import { type FromChild, RuleChildren } from '../devices/vfio/check/children.ts';
import { loadExerciser } from '../devices/vfio/check/exerciser.ts';
import { GENERATIONS } from '../devices/vfio/check/generation.ts';
import type { Generation } from '../devices/vfio/check/rule.ts';
import { serve } from '../devices/vfio/check/serve.ts';
import { HOST_PATHS } from '../devices/vfio/kernel-door.ts';
import { VmmError } from '../native/errno.ts';
import { signalWhenParentDies } from '../native/syscalls.ts';
import { resultRow, rulesText, summaryText, tapText } from './check-report.ts';
import { type OptionTable, optionHelp, type Parsed, parseOptions, wantsHelp } from './options.ts';

/** One call: drivers may talk to slow firmware, none for as long as this. */
const CALL_MS = 60_000;
const SIGKILL = 9;

const OPTIONS: OptionTable = {
  json: { kind: 'flag', value: '', help: 'print one JSON object' },
  tap: { kind: 'flag', value: '', help: 'print TAP 13' },
  destructive: { kind: 'flag', value: '', help: 'also rules that may make the IOMMU report faults' },
  only: { kind: 'list', value: 'RULE', help: 'this rule, or all of an area (states); may be given several times' },
  abi: { kind: 'value', value: 'ABI', help: 'v2, v1, v7 or regions: the rules of this generation (default: as found)' },
  second: { kind: 'value', value: 'DEV', help: 'another device: it is loaded into, and the target of DMA to a peer' },
  'other-size': { kind: 'value', value: 'DEV', help: 'a device of the same kind and another size: it must refuse' },
  exerciser: { kind: 'value', value: 'FILE', help: 'a JavaScript file that makes the device work (docs/check.md)' },
  strict: { kind: 'flag', value: '', help: 'fail when a rule was not exercised, too' },
  rules: { kind: 'flag', value: '', help: 'list the rules and the sentences that they hold' },
};

const HELP = `usage: ferry vfio check DEV [--json|--tap] [--destructive] [--only RULE] [--abi ABI]
                           [--second DEV] [--other-size DEV] [--exerciser FILE] [--strict]
       ferry vfio check --rules

Holds the migration driver of a device to what linux/vfio.h says, or the text of the older interface that it speaks. The device must be bound to its VFIO driver, and free.

  DEV   a PCI address, or the directory of any device under /sys (/sys/bus/mdev/devices/UUID)

${optionHelp(OPTIONS)}

Exit code: 0 without findings, 1 with some, 2 when it could not be checked.
`;

export async function checkDevice(args: readonly string[]): Promise<number> {
  if (wantsHelp(args)) {
    process.stdout.write(HELP);
    return 0;
  }
  const parsed = parseOptions('vfio check', OPTIONS, args);
  if (parsed.flag('rules')) {
    process.stdout.write(rulesText());
    return 0;
  }
  const deviceText = deviceOf(parsed);
  const rules = chooseRules(parsed.list('only'));
  const exerciserFile = parsed.value('exerciser');
  // Bad input is said before anything is started.
  if (exerciserFile !== null) await loadExerciser(exerciserFile);
  const repeat = {
    deviceText,
    exerciserFile,
    destructive: parsed.flag('destructive'),
    abi: abiOf(parsed),
    besideTexts: besideOf(parsed),
  };
  findBeside(HOST_PATHS, deviceText, repeat.besideTexts);
  const children = new RuleChildren({ ...childCommand(repeat), limitMs: CALL_MS, proc: HOST_PATHS.proc });
  const rows = !parsed.flag('json') && !parsed.flag('tap');
  try {
    const report = await runCheck(children, rules, repeat, (result) => {
      if (rows) process.stdout.write(resultRow(result));
    });
    if (parsed.flag('json')) process.stdout.write(`${JSON.stringify(report)}\n`);
    else process.stdout.write(parsed.flag('tap') ? tapText(report) : summaryText(report));
    return exitCodeOf(report, parsed.flag('strict'));
  } finally {
    await children.close();
  }
}

function deviceOf(parsed: Parsed): string {
  const [device, ...rest] = parsed.words;
  if (device === undefined || rest.length > 0) {
    throw new VmmError('usage', 'ferry vfio check: one device is wanted; see ferry vfio check --help');
  }
  if (parsed.flag('json') && parsed.flag('tap')) {
    throw new VmmError('usage', 'ferry vfio check: --json and --tap exclude each other; leave one');
  }
  return device;
}

function abiOf(parsed: Parsed): Generation | null {
  const text = parsed.value('abi');
  if (text === null) return null;
  const abi = GENERATIONS.find((each) => each === text);
  if (abi !== undefined) return abi;
  throw new VmmError('usage', `--abi ${text}: there is no such generation; it is one of ${GENERATIONS.join(', ')}`);
}

function besideOf(parsed: Parsed): BesideTexts {
  return { second: parsed.value('second'), 'other-size': parsed.value('other-size') };
}

/** This very program, however it was started: node's own options, the script, and the internal verb. */
function childCommand({ deviceText, exerciserFile, destructive, abi, besideTexts }: Repeat) {
  const options = [
    ...(exerciserFile === null ? [] : ['--exerciser', exerciserFile]),
    ...(destructive ? ['--destructive'] : []),
    ...(abi === null ? [] : ['--abi', abi]),
    ...Object.entries(besideTexts).flatMap(([name, text]) => (text === null ? [] : [`--${name}`, text])),
  ];
  const script = process.argv[1] ?? '';
  const args = [...process.execArgv, script, 'vfio', 'check-child', deviceText, ...options];
  return { file: process.execPath, args };
}

const RESULTS_FD = 3;

/** The internal verb: rule names on stdin, JSON lines on fd 3. */
export async function checkChild(args: readonly string[]): Promise<number> {
  signalWhenParentDies(SIGKILL);
  const parsed = parseOptions('vfio check-child', OPTIONS, args);
  const send = (message: FromChild) => {
    writeSync(RESULTS_FD, `${JSON.stringify(message)}\n`);
  };
  const options = {
    door: openCheckDoor(),
    paths: HOST_PATHS,
    deviceText: deviceOf(parsed),
    exerciserFile: parsed.value('exerciser'),
    destructive: parsed.flag('destructive'),
    abi: abiOf(parsed),
    besideTexts: besideOf(parsed),
  };
  try {
    await serve(options, createInterface({ input: process.stdin }), send);
    return 0;
  } catch (error) {
    const { code, exitCode } = error instanceof VmmError ? error : { code: 'check', exitCode: 1 };
    send({ kind: 'refused', code, message: (error as Error).message, exitCode });
    return exitCode;
  }
}
