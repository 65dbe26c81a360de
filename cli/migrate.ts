// `ferry migrate`: asks a running Ferry over its control socket to move its guest, shows the progress, and says how it ended.
// Ctrl-C cancels and waits; a second one detaches. Exit codes: 0 moved, 1 failed or cancelled, 2 bad input, 3 the answer was lost.

import { QmpClient } from '../control/qmp-client.ts';
import { controlPath } from '../control/qmp-server.ts';
import type { MigrationOutcome, MigrationProgress } from '../migration/api.ts';
import { VmmError } from '../native/errno.ts';
import {
  type OptionTable,
  optionHelp,
  type Parsed,
  parseOptions,
  type Verb,
  wantsHelp,
  wholeNumber,
} from './options.ts';
import { ProgressPrinter, reportText } from './report.ts';

const OPTIONS: OptionTable = {
  'downtime-limit': { kind: 'value', value: 'MS', help: 'the pause that the guest may be given (default 300)' },
  bandwidth: { kind: 'value', value: 'BYTES', help: 'bytes per second at most (default: no limit)' },
  timeout: { kind: 'value', value: 'SECONDS', help: 'give up, as a failure, when it has not converged by then' },
  'no-device-log': {
    kind: 'flag',
    value: '',
    help: "do not use the device's own DMA log: the IOMMU container's dirty pages are used",
  },
  detach: { kind: 'flag', value: '', help: 'start it and return; see ferry status' },
  json: { kind: 'flag', value: '', help: 'print the report as JSON on stdout' },
  'test-drop': {
    kind: 'value',
    value: 'WHAT',
    help: 'for tests only: lose deviceLog, kvmLastRound or deviceState on purpose',
  },
};

const HELP = `usage: ferry migrate CONTROL DESTINATION [options]

Moves the running guest, passed-through devices and all, to where 'ferry receive' waits.

  CONTROL      control socket of the running guest, as given to 'ferry run --control': unix:/run/g1.sock
  DESTINATION  tcp:HOST:PORT or unix:PATH, as given to 'ferry receive'

${optionHelp(OPTIONS)}

Ctrl-C cancels: the guest goes on here. A second Ctrl-C leaves the migration running and returns.
Exit code: 0 the guest runs at the destination; 1 failed or cancelled, the guest runs here; 2 bad input;
3 handed over, but the destination's answer was lost: the guest may run there, it stays paused here.
To go on here by hand, when you have made sure that it does not run there: send {"execute":"cont"} to CONTROL.
`;

interface QueryMigrate {
  readonly status: string;
  readonly 'error-desc'?: string;
  readonly 'x-ferry'?: { readonly progress: MigrationProgress; readonly outcome: MigrationOutcome | null };
}

// Each poll is some milliseconds of both processes on a small host, taken from the guest.
const POLL_MS = 250;
const DEFAULT_DOWNTIME_MS = 300;
const ENDS = new Set(['completed', 'failed', 'cancelled']);

async function configure(client: QmpClient, parsed: Parsed): Promise<void> {
  const limit = wholeNumber('migrate', 'downtime-limit', parsed.value('downtime-limit'), 1);
  const bandwidth = wholeNumber('migrate', 'bandwidth', parsed.value('bandwidth'), 1);
  const timeout = wholeNumber('migrate', 'timeout', parsed.value('timeout'), 1);
  const drop = parsed.value('test-drop');
  await client.execute('migrate-set-parameters', {
    // All of them each time: what an earlier attempt was given must not linger.
    'downtime-limit': limit ?? DEFAULT_DOWNTIME_MS,
    'max-bandwidth': bandwidth ?? 0,
    'x-timeout': (timeout ?? 0) * 1000,
    'x-device-log': !parsed.flag('no-device-log'),
    'x-test-drop': drop ?? 'none',
  });
}

/** First Ctrl-C: cancel. Second: resolve 'detached'. */
function watchInterrupt(client: QmpClient): { readonly detached: Promise<'detached'>; stop(): void } {
  let count = 0;
  let detach: (value: 'detached') => void = () => {};
  const detached = new Promise<'detached'>((resolve) => {
    detach = resolve;
  });
  const onSignal = () => {
    count++;
    if (count > 1) detach('detached');
    else {
      process.stderr.write('\ncancelling; Ctrl-C again to detach\n');
      client.execute('migrate_cancel').catch((error: Error) => process.stderr.write(`${error.message}\n`));
    }
  };
  process.on('SIGINT', onSignal);
  return { detached, stop: () => process.off('SIGINT', onSignal) };
}

async function follow(client: QmpClient): Promise<QueryMigrate> {
  const printer = new ProgressPrinter(process.stderr);
  for (;;) {
    const state = (await client.execute('query-migrate')) as QueryMigrate;
    const progress = state['x-ferry']?.progress;
    if (progress !== undefined) printer.show(progress, performance.now());
    if (ENDS.has(state.status)) {
      printer.end();
      return state;
    }
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}

function conclude(state: QueryMigrate, json: boolean): number {
  const outcome = state['x-ferry']?.outcome ?? null;
  if (json)
    process.stdout.write(
      `${JSON.stringify(outcome ?? { status: state.status, error: state['error-desc'] ?? null })}\n`,
    );
  else if (outcome !== null) process.stderr.write(reportText(outcome));
  if (outcome?.unanswered === true) {
    process.stderr.write(
      'ferry migrate: handed over, but the destination did not answer: the guest may run there and stays paused here;\n' +
        'when you are sure that it does not run there, send {"execute":"cont"} to the control socket\n',
    );
    return 3;
  }
  if (state.status !== 'completed') {
    process.stderr.write(
      `ferry migrate: ${state.status}: ${state['error-desc'] ?? 'no reason was given'}; the guest runs here\n`,
    );
    return 1;
  }
  return 0;
}

export const migrateVerb: Verb = {
  summary: 'move a running guest to another host',
  help: () => HELP,
  async run(args) {
    if (wantsHelp(args)) {
      process.stdout.write(HELP);
      return 0;
    }
    const parsed = parseOptions('migrate', OPTIONS, args);
    const [control, destination, ...rest] = parsed.words;
    if (control === undefined || destination === undefined || rest.length > 0) {
      throw new VmmError(
        'usage',
        'ferry migrate: a control socket and a destination are wanted; see ferry migrate --help',
      );
    }
    const client = await QmpClient.connect(controlPath(control));
    try {
      await configure(client, parsed);
      const interrupt = watchInterrupt(client);
      await client.execute('migrate', { uri: destination });
      if (parsed.flag('detach')) return 0;
      const state = await Promise.race([follow(client), interrupt.detached]);
      interrupt.stop();
      if (state === 'detached') {
        process.stderr.write('detached: the migration goes on; see ferry status\n');
        return 0;
      }
      return conclude(state, parsed.flag('json'));
    } finally {
      client.close();
    }
  },
};
