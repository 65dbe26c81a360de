// `ferry run`: boots a guest and stays until it ends, is moved away, or is told to stop. The exit code is the guest's end.
import { VmmError } from '../native/errno.ts';
import { judgeConfig, type MachineInput } from '../vmm/config.ts';
import { buildMachine } from '../vmm/machine.ts';
import { openConsole } from './console.ts';
import { HostSession } from './host-session.ts';
import { SHARED_OPTIONS } from './machine-options.ts';
import { type OptionTable, optionHelp, type Parsed, type Verb } from './options.ts';
import { startVerb } from './verb-frame.ts';

const OPTIONS: OptionTable = {
  kernel: {
    kind: 'value',
    value: 'PATH',
    help: 'bzImage, vmlinux with a PVH note, or a multiboot ELF (kvm-unit-tests)',
  },
  initrd: { kind: 'value', value: 'PATH', help: 'initial RAM disk, or the multiboot module' },
  append: { kind: 'value', value: 'TEXT', help: 'kernel command line' },
  memory: { kind: 'value', value: 'SIZE', short: 'm', help: 'guest RAM: 512M, 2G (default 256M)' },
  cpus: { kind: 'value', value: 'N', short: 'c', help: 'vCPUs, 1-16 (default 1)' },
  name: { kind: 'value', value: 'TEXT', help: "the guest's name, for query-name" },
  ...SHARED_OPTIONS,
  'no-reboot': { kind: 'flag', value: '', help: 'a reboot of the guest ends it' },
  'debug-exit': {
    kind: 'flag',
    value: '',
    help: 'isa-debug-exit at port 0xf4: exit code VALUE<<1|1 (always for multiboot)',
  },
};

const HELP = `usage: ferry run --kernel PATH [options]

Boots a guest. Guest bytes alone go to stdout, everything else to stderr.

${optionHelp(OPTIONS)}

A passed-through device must be bound to a VFIO driver first: ferry vfio bind 0000:65:00.0
Exit code: 0 powered off, or moved to another host; 1 panicked, or a KVM error; 2 bad input or unfit host.

Example:
  ferry run --kernel vmlinuz --initrd initrd --append "console=ttyS0" --memory 2G --cpus 4 \\
    --device vfio-pci,host=0000:65:00.0 --control unix:/run/g1.sock
`;

function inputOf(parsed: Parsed): MachineInput {
  const input: Record<string, unknown> = {
    devices: parsed.list('device'),
    noReboot: parsed.flag('no-reboot'),
    preallocate: parsed.flag('preallocate'),
    debugExit: parsed.flag('debug-exit'),
  };
  for (const name of ['name', 'memory', 'cpus', 'kernel', 'initrd', 'append', 'serial', 'clock', 'accel']) {
    const value = parsed.value(name);
    if (value !== null) input[name] = value;
  }
  return input as MachineInput;
}

export const runVerb: Verb = {
  summary: 'boot a guest',
  help: () => HELP,
  async run(args) {
    const start = await startVerb({ name: 'run', options: OPTIONS, help: HELP }, args);
    if (start === null) return 0;
    const { parsed, log, registry } = start;
    if (parsed.words.length > 0) {
      throw new VmmError('usage', `ferry run: '${parsed.words[0]}' is not expected here; see ferry run --help`);
    }
    const config = judgeConfig(inputOf(parsed), registry);
    if (config.boot === null) throw new VmmError('usage', 'ferry run: --kernel is missing; see ferry run --help');
    const host = await HostSession.open({
      preparedRam: null,
      name: parsed.value('name'),
      control: parsed.value('control'),
      receiveHost: null,
    });
    const terminal = openConsole(config.serial, () => host.interrupt());
    try {
      const machine = await buildMachine(config, {
        log,
        registry,
        consoleOut: (bytes) => terminal.out(bytes),
        consoleIn: (sink) => terminal.onInput(sink),
      });
      host.session.adopt(machine);
      host.supervise(machine);
      await machine.start();
      return await host.finish();
    } finally {
      terminal.close();
      await host.close();
    }
  },
};
