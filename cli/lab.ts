// `ferry lab`: starts, uses and ends lab hosts by hand. Called by cli/main.ts. `up` leaves a keeper process behind that owns the hosts;
// the keeper is this same verb with --foreground. The hosts end when it ends, however it ends.
import { spawn } from 'node:child_process';
import { closeSync, openSync, readFileSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { stillRuns } from '../images/cache.ts';
import { buildGuest } from '../images/guest/build.ts';
import { parseExtraModule } from '../images/lab/own-kernel.ts';
import { startCommand } from '../lab/client.ts';
import { collect } from '../lab/host.ts';
import { buildLabImage, type LabOptions, prepareLab, startLab } from '../lab/lab.ts';
import { type HostRecord, type LabRecord, labBase, liveLabs } from '../lab/lab-directory.ts';
import type { LabDeviceKind } from '../lab/qemu-command.ts';
import { Qmp } from '../lab/qmp.ts';
import { cacheRoot } from '../lab/root.ts';
import { VmmError } from '../native/errno.ts';

const HELP = `ferry lab - hosts with KVM, an IOMMU and PCI devices to pass through, emulated on this machine

  ferry lab up [NAME] [--hosts 1|2] [--devices edu,nvme,e1000e,bochs-display] [--memory MiB] [--foreground]
        boots one or two lab hosts (two are linked: host-a 10.9.0.11, host-b 10.9.0.12) and returns when they run commands.
        Builds the image first if it is not in the cache. With --foreground: until Ctrl-C.
  ferry lab up ... --kernel FILE [--modules DIR] [--kernel-config FILE] [--module FILE.ko[,PARAM=VALUE...]]...
        the same with your own kernel (bzImage or vmlinux), for bringing up a driver. --modules: where \`make modules_install
        INSTALL_MOD_PATH=DIR\` put its modules. --module: loaded last, in this order; it may be given several times. What the lab needs
        of the kernel's configuration and does not find is named.
  ferry lab exec [--lab NAME] [--host a|b] COMMAND [ARG...]
        runs a command in a lab host: one word is a line for bash, several are a program and its arguments. stdin, stdout, stderr
        and the exit code are the command's; when ferry is killed, the command is too. Inside, the repository is at its own path
        (read-only), /hw is a directory shared with this machine (ferry lab ls says which), everything else is forgotten at the end.
  ferry lab ls [--json]            running labs, their hosts and devices
  ferry lab console [--lab NAME] [--host a|b]      what a host wrote on its serial console
  ferry lab link up|down [--lab NAME]              cuts the link between the hosts silently, as a pulled cable does, or mends it
  ferry lab down [NAME | --all]    ends a lab
  ferry lab build [--refresh]      builds the image only; --refresh takes Debian's newest 6.12 kernel (after apt-get update); prints where it is
  ferry lab guest                  builds a guest to try things with: Debian's kernel, our workload as its init, the driver of vfio-bringup;
        prints the directory that has its vmlinuz and initrd

NAME is "lab" if not given, and may be left out where only one lab is up. A lab whose owner has died is gone too.
FERRY_CACHE: where the image is kept (default: out/cache in the repository). FERRY_LAB_DIR: where running labs are (default: /tmp/ferry-lab-UID).
`;

const say = (line: string) => process.stderr.write(`${line}\n`);

function only<T extends string>(value: string, allowed: readonly T[], option: string): T {
  const found = allowed.find((each) => each === value);
  if (found === undefined)
    throw new VmmError('EUSAGE', `${option} "${value}": expected ${allowed.join(', ')}; see ferry lab --help`);
  return found;
}

async function findLab(name: string | undefined): Promise<LabRecord> {
  const labs = await liveLabs();
  const found = name === undefined && labs.length === 1 ? labs[0] : labs.find((each) => each.name === (name ?? 'lab'));
  if (found === undefined) {
    const there = labs.map((each) => each.name).join(', ') || 'none';
    throw new VmmError('ELAB', `no lab "${name ?? 'lab'}" is up (running: ${there}); start one with: ferry lab up`);
  }
  if (!found.ready) throw new VmmError('ELAB', `the lab ${found.name} is still booting; wait and try again`);
  return found;
}

function findHost(lab: LabRecord, letter: string | undefined): HostRecord {
  const name = letter === undefined ? 'host-a' : letter.startsWith('host-') ? letter : `host-${letter}`;
  const found = lab.hosts.find((each) => each.name === name);
  if (found === undefined) {
    const there = lab.hosts.map((each) => each.name).join(', ');
    throw new VmmError('ELAB', `the lab ${lab.name} has no ${name}; it has ${there}`);
  }
  return found;
}

const UP_OPTIONS = {
  hosts: { type: 'string', default: '1' },
  devices: { type: 'string', default: 'edu,nvme,e1000e' },
  memory: { type: 'string', default: '2048' },
  foreground: { type: 'boolean', default: false },
  kernel: { type: 'string' },
  modules: { type: 'string' },
  'kernel-config': { type: 'string' },
  module: { type: 'string', multiple: true },
} as const;

const KINDS: readonly LabDeviceKind[] = ['edu', 'nvme', 'e1000e', 'bochs-display'];

async function up(args: string[]): Promise<number> {
  const { values, positionals } = parseArgs({ args, options: UP_OPTIONS, allowPositionals: true });
  const name = positionals[0] ?? 'lab';
  const hosts = only(values.hosts, ['1', '2'], '--hosts') === '2' ? 2 : 1;
  const devices = values.devices === '' ? [] : values.devices.split(',').map((each) => only(each, KINDS, '--devices'));
  const memoryMiB = Number(values.memory);
  if (!Number.isInteger(memoryMiB) || memoryMiB < 512 || memoryMiB > 65536)
    throw new VmmError('EUSAGE', `--memory ${values.memory}: expected MiB from 512 to 65536`);
  const own = ownKernelOf(values);
  if (!values.foreground) {
    // What takes long or may fail is done where the user sees it.
    await prepareLab({ own }, say);
    return detach(name, args);
  }
  const end = new Promise<void>((resolve) => {
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.once(signal, () => resolve());
  });
  const lab = await startLab({ name, hosts, devices, memoryMiB, say, own });
  say(`lab ${name} is up: ${lab.hosts.map((host) => host.name).join(', ')}`);
  await Promise.race([end, ...lab.hosts.map((host) => host.ended)]);
  const crashed = lab.hosts.find((host) => host.crashed);
  if (crashed !== undefined)
    say(`${crashed.name} crashed; the end of its console:\n${crashed.consoleLog().slice(-3000)}`);
  await lab.close();
  return crashed === undefined ? 0 : 1;
}

interface OwnValues {
  readonly kernel?: string | undefined;
  readonly modules?: string | undefined;
  readonly 'kernel-config'?: string | undefined;
  readonly module?: readonly string[] | undefined;
}

/** null: Debian's kernel. */
function ownKernelOf(values: OwnValues): NonNullable<LabOptions['own']> | null {
  const { kernel, modules = null, 'kernel-config': config = null, module = [] } = values;
  if (kernel !== undefined) return { kernel: { kernel, modules, config }, modules: module.map(parseExtraModule) };
  const alone =
    modules !== null ? '--modules' : config !== null ? '--kernel-config' : module.length > 0 ? '--module' : null;
  if (alone === null) return null;
  throw new VmmError('EUSAGE', `${alone} goes with --kernel FILE; see ferry lab --help`);
}

/** Leaves a keeper behind and waits until its lab is up. */
async function detach(name: string, args: readonly string[]): Promise<number> {
  const log = join(labBase(), `.${name.replace(/[^A-Za-z0-9._-]/g, '_')}.log`);
  const file = openSync(log, 'w', 0o600);
  const keeper = spawn(process.execPath, [process.argv[1] ?? '', 'lab', 'up', '--foreground', ...args], {
    detached: true,
    stdio: ['ignore', file, file],
  });
  closeSync(file);
  let ended: number | null = null;
  keeper.on('exit', (code) => (ended = code ?? 1));
  const giveUp = () => keeper.kill('SIGTERM');
  process.once('SIGINT', giveUp);
  process.once('SIGTERM', giveUp);
  for (;;) {
    const lab = (await liveLabs()).find((each) => each.name === name);
    if (lab?.ready && lab.owner.startsWith(`${keeper.pid} `)) break;
    if (ended !== null) {
      process.stderr.write(readFileSync(log, 'utf8'));
      rmSync(log, { force: true });
      return ended === 0 ? 1 : ended;
    }
    await sleep(50);
  }
  process.off('SIGINT', giveUp).off('SIGTERM', giveUp);
  keeper.unref();
  say(`lab ${name} is up; ferry lab exec --lab ${name} 'uname -a', and ferry lab down ${name} when done`);
  return 0;
}

/** Splits off our own options: everything from the first word on is the command's. */
function splitCommand(args: readonly string[]): { own: string[]; words: string[] } {
  let at = 0;
  while (at < args.length && args[at]!.startsWith('-')) {
    if (args[at] === '--') return { own: args.slice(0, at), words: args.slice(at + 1) };
    at += args[at] === '--lab' || args[at] === '--host' ? 2 : 1;
  }
  return { own: args.slice(0, at), words: args.slice(at) };
}

async function exec(args: string[]): Promise<number> {
  const { own, words } = splitCommand(args);
  const { values } = parseArgs({ args: own, options: { lab: { type: 'string' }, host: { type: 'string' } } });
  if (words.length === 0) throw new VmmError('EUSAGE', 'ferry lab exec: a command is missing; see ferry lab --help');
  const host = findHost(await findLab(values.lab), values.host);
  const address = { port: host.port, secret: readFileSync(host.secretFile, 'latin1').trim() };
  const child = startCommand(address, words.length === 1 ? words[0]! : words);
  const onSignal = (signal: NodeJS.Signals) => child.kill(signal);
  process.on('SIGINT', onSignal).on('SIGTERM', onSignal);
  const streams = {
    stdin: process.stdin,
    onStdout: (chunk: Buffer) => process.stdout.write(chunk),
    onStderr: (chunk: Buffer) => process.stderr.write(chunk),
  };
  try {
    const { code, signal } = await collect(child, streams, async (error) => error);
    if (signal !== null) say(`the command was ended by ${signal}`);
    return code ?? 128;
  } finally {
    process.off('SIGINT', onSignal).off('SIGTERM', onSignal);
    process.stdin.destroy();
  }
}

async function ls(args: string[]): Promise<number> {
  const { values } = parseArgs({ args, options: { json: { type: 'boolean', default: false } } });
  const labs = await liveLabs();
  if (values.json) {
    process.stdout.write(`${JSON.stringify(labs, null, 2)}\n`);
    return 0;
  }
  for (const lab of labs) {
    process.stdout.write(`${lab.name}: ${lab.ready ? 'up' : 'booting'}, owner ${lab.owner.split(' ')[0]}\n`);
    for (const host of lab.hosts) {
      const devices = host.devices.map((each) => `${each.kind} ${each.bdf}`).join(', ');
      const where = `QEMU ${host.qemuPid}, /hw is ${host.dir}/work`;
      process.stdout.write(`  ${host.name}: ${devices || 'no devices'}; ${where}\n`);
    }
  }
  return 0;
}

async function consoleLog(args: string[]): Promise<number> {
  const { values } = parseArgs({ args, options: { lab: { type: 'string' }, host: { type: 'string' } } });
  process.stdout.write(readFileSync(join(findHost(await findLab(values.lab), values.host).dir, 'serial.log')));
  return 0;
}

async function link(args: string[]): Promise<number> {
  const { values, positionals } = parseArgs({ args, options: { lab: { type: 'string' } }, allowPositionals: true });
  const isUp = only(positionals[0] ?? '', ['up', 'down'], 'ferry lab link') === 'up';
  const lab = await findLab(values.lab);
  if (lab.hosts.length < 2)
    throw new VmmError('ELAB', `the lab ${lab.name} has one host and no link; start it with: ferry lab up --hosts 2`);
  for (const host of lab.hosts) {
    const qmp = await Qmp.open(join(host.dir, 'qmp-2.sock'));
    await qmp.execute('set_link', { name: 'link-nic', up: isUp });
    qmp.close();
  }
  return 0;
}

async function down(args: string[]): Promise<number> {
  const options = { all: { type: 'boolean', default: false } } as const;
  const { values, positionals } = parseArgs({ args, options, allowPositionals: true });
  const labs = await liveLabs();
  const name = positionals[0] ?? (labs.length === 1 ? labs[0]!.name : 'lab');
  const chosen = values.all ? labs : labs.filter((each) => each.name === name);
  if (chosen.length === 0 && !values.all) {
    const there = labs.map((each) => each.name).join(', ') || 'none';
    throw new VmmError('ELAB', `no lab "${name}" is up (running: ${there})`);
  }
  for (const lab of chosen) {
    if (stillRuns(lab.owner)) process.kill(Number(lab.owner.split(' ')[0]), 'SIGTERM');
    while (stillRuns(lab.owner)) await sleep(20);
    rmSync(join(labBase(), `.${lab.name}.log`), { force: true });
  }
  await liveLabs();
  return 0;
}

async function build(args: string[]): Promise<number> {
  const { values } = parseArgs({ args, options: { refresh: { type: 'boolean', default: false } } });
  const image = await buildLabImage(say, values.refresh);
  process.stdout.write(`${image.dir}\n`);
  return 0;
}

async function guest(args: string[]): Promise<number> {
  parseArgs({ args, options: {} });
  const image = await buildGuest(cacheRoot(), 'cloud', say, { bringup: true });
  process.stdout.write(`${dirname(image.vmlinuz)}\n`);
  return 0;
}

const VERBS = new Map<string, (args: string[]) => Promise<number>>([
  ['up', up],
  ['exec', exec],
  ['ls', ls],
  ['console', consoleLog],
  ['link', link],
  ['down', down],
  ['build', build],
  ['guest', guest],
]);

/** Returns the exit code; throws VmmError for what the user has to mend. */
export async function labCommand(args: readonly string[]): Promise<number> {
  const [verb, ...rest] = args;
  const asks = (arg: string | undefined) => arg === '--help' || arg === '-h';
  if (verb === undefined || verb === 'help' || asks(verb) || asks(rest[0]) || (verb !== 'exec' && rest.some(asks))) {
    process.stdout.write(HELP);
    return verb === undefined ? 2 : 0;
  }
  const run = VERBS.get(verb);
  if (run === undefined) throw new VmmError('EUSAGE', `ferry lab ${verb}: no such verb; see ferry lab --help`);
  try {
    return await run(rest);
  } catch (error) {
    if ((error as { code?: string }).code?.startsWith('ERR_PARSE_ARGS'))
      throw new VmmError('EUSAGE', `ferry lab ${verb}: ${(error as Error).message}; see ferry lab --help`);
    throw error;
  }
}
