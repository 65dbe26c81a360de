// `ferry status`: run state, migration and devices of a running guest, over its control socket.
import { QmpClient } from '../control/qmp-client.ts';
import { controlPath } from '../control/qmp-server.ts';
import type { MigrationProgress } from '../migration/api.ts';
import { VmmError } from '../native/errno.ts';
import { type OptionTable, optionHelp, parseOptions, type Verb, wantsHelp } from './options.ts';
import { progressLine } from './report.ts';

const OPTIONS: OptionTable = {
  json: { kind: 'flag', value: '', help: 'print what QMP answered, as one JSON object' },
};

const HELP = `usage: ferry status CONTROL [--json]

Says whether the guest runs, how its migration stands, and which devices keep it from moving.

  CONTROL   control socket of the running guest: unix:/run/g1.sock

${optionHelp(OPTIONS)}
`;

interface Answers {
  readonly status: { readonly status: string };
  readonly migrate: {
    readonly status?: string;
    readonly 'error-desc'?: string;
    readonly 'x-ferry'?: { readonly progress: MigrationProgress };
  };
  readonly devices: readonly { readonly id: string; readonly type: string; readonly blocker: string | null }[];
}

function text({ status, migrate, devices }: Answers): string {
  const lines = [`guest: ${status.status}`];
  if (migrate.status !== undefined) {
    lines.push(
      `migration: ${migrate.status}${migrate['error-desc'] === undefined ? '' : `: ${migrate['error-desc']}`}`,
    );
    const progress = migrate['x-ferry']?.progress;
    if (progress !== undefined && migrate.status === 'active') lines.push(progressLine(progress));
  }
  for (const device of devices) {
    lines.push(
      `device ${device.id} (${device.type})${device.blocker === null ? '' : `: cannot move: ${device.blocker}`}`,
    );
  }
  return `${lines.join('\n')}\n`;
}

export const statusVerb: Verb = {
  summary: 'say how a running guest is',
  help: () => HELP,
  async run(args) {
    if (wantsHelp(args)) {
      process.stdout.write(HELP);
      return 0;
    }
    const parsed = parseOptions('status', OPTIONS, args);
    const [control, ...rest] = parsed.words;
    if (control === undefined || rest.length > 0) {
      throw new VmmError('usage', 'ferry status: one control socket is wanted; see ferry status --help');
    }
    const client = await QmpClient.connect(controlPath(control));
    try {
      const answers: Answers = {
        status: (await client.execute('query-status')) as Answers['status'],
        migrate: (await client.execute('query-migrate')) as Answers['migrate'],
        devices: await devicesOf(client),
      };
      process.stdout.write(parsed.flag('json') ? `${JSON.stringify(answers)}\n` : text(answers));
      return 0;
    } finally {
      client.close();
    }
  },
};

/** A destination that still waits for its guest has no devices yet. */
async function devicesOf(client: QmpClient): Promise<Answers['devices']> {
  try {
    return (await client.execute('x-ferry-devices')) as Answers['devices'];
  } catch {
    return [];
  }
}
