// `ferry demo` (npm start): plays the story of demo-run.ts for people: what happens, a progress bar per phase, a report, out/demo/report.json.
// Ctrl-C at any moment ends everything that was started. Exit code: 0 all is well, 1 it is not, 2 the machine is not fit.
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { VmmError } from '../native/errno.ts';
import { type OptionTable, optionHelp, parseOptions, type Verb, wantsHelp, wholeNumber } from './options.ts';
import { reportText } from './report.ts';

const OPTIONS: OptionTable = {
  'no-device-log': {
    kind: 'flag',
    value: '',
    help: "do without the device's own DMA log: the IOMMU container's dirty pages are used",
  },
  'downtime-limit': {
    kind: 'value',
    value: 'MS',
    help: 'the pause that the guest may be given (default 1500; 60000 without the log)',
  },
  before: { kind: 'value', value: 'SECONDS', help: 'how long the workload runs before the move (default 15)' },
  after: { kind: 'value', value: 'SECONDS', help: 'and after it (default 15)' },
  out: { kind: 'value', value: 'DIR', help: 'where report.json goes (default out/demo)' },
};

const HELP = `usage: ferry demo [options]

Starts two lab hosts with real KVM, IOMMU and VFIO (no hardware is needed), boots a guest under Ferry in the first with the PCI device edu
passed through, moves it live to the second while its workload runs, checks the workload's verdict and writes a report.

${optionHelp(OPTIONS)}
`;

/** One Ctrl-C comes as often as there are processes between the terminal and us that pass it on: npm, start.mjs. */
const SAME_SIGNAL_MS = 1000;

/** Rejects at the first signal; a later one is the user's way out if cleaning up hangs. */
function watchSignals(): { readonly aborted: Promise<never>; stop(): void } {
  let abort: (error: Error) => void = () => {};
  const aborted = new Promise<never>((_resolve, reject) => {
    abort = reject;
  });
  aborted.catch(() => {});
  const names: NodeJS.Signals[] = ['SIGINT', 'SIGTERM', 'SIGHUP'];
  let first: number | null = null;
  const handler = (name: NodeJS.Signals) => {
    first ??= performance.now();
    // The lab hosts end with this process, the next start removes their directory.
    if (performance.now() - first > SAME_SIGNAL_MS) process.exit(1);
    abort(new VmmError('demo', `stopped by ${name}; everything is cleaned up`, { exitCode: 1 }));
  };
  for (const name of names) process.on(name, handler);
  return {
    aborted,
    stop: () => {
      // The second of one Ctrl-C may come when all is cleaned up and before it is said.
      if (first !== null) return;
      for (const name of names) process.off(name, handler);
    },
  };
}

export const demoVerb: Verb = {
  summary: 'two lab hosts, one guest, a device, moved live',
  help: () => HELP,
  async run(args) {
    if (wantsHelp(args)) {
      process.stdout.write(HELP);
      return 0;
    }
    const parsed = parseOptions('demo', OPTIONS, args);
    const deviceLog = !parsed.flag('no-device-log');
    const limit =
      wholeNumber('demo', 'downtime-limit', parsed.value('downtime-limit'), 1) ?? (deviceLog ? 1500 : 60_000);
    const secondsBefore = wholeNumber('demo', 'before', parsed.value('before'), 1) ?? 15;
    const secondsAfter = wholeNumber('demo', 'after', parsed.value('after'), 1) ?? 15;
    const { runDemo } = await import('./demo-run.ts');
    const signals = watchSignals();
    const begun = performance.now();
    const say = (line: string) =>
      process.stderr.write(`[${((performance.now() - begun) / 1000).toFixed(1).padStart(6)} s] ${line}\n`);
    try {
      const result = await runDemo(
        {
          deviceLog,
          downtimeLimitMs: limit,
          secondsBefore,
          secondsAfter,
          say,
          progress: (text) => process.stderr.write(text),
        },
        signals.aborted,
      );
      const dir = parsed.value('out') ?? 'out/demo';
      mkdirSync(dir, { recursive: true });
      writeFileSync(join(dir, 'report.json'), `${JSON.stringify(result.report, null, 2)}\n`);
      process.stderr.write(`\n${reportText(result.outcome)}`);
      const { guest } = result.report;
      process.stderr.write(
        `  guest: ${guest.ticks} ticks (${guest.lostTicks} lost), ${guest.memoryChecks} page checks, ${guest.dmaChecks} DMA checks, ` +
          `${guest.irqs} interrupts; errors ${guest.memoryErrors + guest.dmaErrors + guest.irqErrors}; longest gap ${guest.maxGapMs.toFixed(0)} ms\n`,
      );
      for (const fault of result.faults) process.stderr.write(`ferry demo: ${fault}\n`);
      say(
        result.faults.length === 0
          ? `all is well; the numbers are in ${join(dir, 'report.json')}`
          : 'the demo found faults',
      );
      return result.faults.length === 0 ? 0 : 1;
    } finally {
      signals.stop();
    }
  },
};
