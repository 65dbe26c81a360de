// The command line's entry: finds the verb, loads only that, and turns errors into one line and an exit code. Started by bin/ferry.
import { SysError, VmmError } from '../native/errno.ts';
import type { Verb } from './options.ts';

const VERBS: Readonly<Record<string, { readonly summary: string; load(): Promise<Pick<Verb, 'run'>> }>> = {
  run: { summary: 'boot a guest', load: async () => (await import('./run.ts')).runVerb },
  receive: {
    summary: 'wait for a guest from another host',
    load: async () => (await import('./receive.ts')).receiveVerb,
  },
  migrate: {
    summary: 'move a running guest to another host',
    load: async () => (await import('./migrate.ts')).migrateVerb,
  },
  status: { summary: 'say how a running guest is', load: async () => (await import('./status.ts')).statusVerb },
  vfio: {
    summary: 'list host devices, bind one for a guest, put it back',
    load: async () => (await import('./vfio.ts')).vfioVerb,
  },
  lab: {
    summary: 'hosts with real KVM, IOMMU and VFIO, without hardware',
    load: async () => ({ run: (await import('./lab.ts')).labCommand }),
  },
  demo: {
    summary: 'two lab hosts, one guest, a device, moved live',
    load: async () => (await import('./demo.ts')).demoVerb,
  },
};

function help(): string {
  const rows = Object.entries(VERBS).map(([name, { summary }]) => `  ${name.padEnd(9)} ${summary}`);
  return `usage: ferry VERB ...

A virtual machine monitor for Linux/KVM whose guests live-migrate with their passed-through PCI devices.

${rows.join('\n')}

  ferry VERB --help   says everything about a verb
  ferry --version     says the version

Try it without any hardware: ferry demo (or npm start in the source tree).
`;
}

const VERSION = '0.1.0';

async function main(args: readonly string[]): Promise<number> {
  const [name, ...rest] = args;
  if (name === undefined) {
    process.stderr.write(help());
    return 2;
  }
  if (name === '--help' || name === '-h' || name === 'help') {
    process.stdout.write(help());
    return 0;
  }
  if (name === '--version') {
    process.stdout.write(`ferry ${VERSION}\n`);
    return 0;
  }
  const verb = Object.hasOwn(VERBS, name) ? VERBS[name] : undefined;
  if (verb === undefined) {
    throw new VmmError(
      'usage',
      `ferry ${name}: there is no such verb; one of ${Object.keys(VERBS).join(', ')} is wanted`,
    );
  }
  return (await verb.load()).run(rest);
}

/** One line for people; FERRY_DEBUG=1 adds the stack and the causes. */
function explain(error: unknown): void {
  const shown = error instanceof Error ? error : new Error(String(error));
  const cause =
    shown.cause instanceof SysError && !shown.message.includes(shown.cause.code) ? ` (${shown.cause.message})` : '';
  process.stderr.write(`ferry: ${shown.message}${cause}\n`);
  if (process.env['FERRY_DEBUG'] === '1') process.stderr.write(`${shown.stack}\ncause: ${String(shown.cause)}\n`);
}

main(process.argv.slice(2)).then(
  (code) => process.exit(code),
  (error: unknown) => {
    explain(error);
    process.exit(error instanceof VmmError ? error.exitCode : 1);
  },
);
