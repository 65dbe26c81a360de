// `ferry receive`: waits for one guest from another host, takes it over, and stays until it ends. Only host-side options: the rest comes with it.
import { VmmError } from '../native/errno.ts';
import { judgeAccel, judgeClock, judgeCpus, judgeMemory, judgeSerial } from '../vmm/config.ts';
import { parseDevices } from '../vmm/device-syntax.ts';
import { PreparedRam } from '../vmm/prepared-ram.ts';
import { openConsole } from './console.ts';
import { HostSession } from './host-session.ts';
import { SHARED_OPTIONS } from './machine-options.ts';
import { type OptionTable, optionHelp, type Verb } from './options.ts';
import { startVerb } from './verb-frame.ts';

const OPTIONS: OptionTable = {
  ...SHARED_OPTIONS,
  memory: { kind: 'value', value: 'SIZE', short: 'm', help: 'refuse a guest that has another size' },
  cpus: { kind: 'value', value: 'N', short: 'c', help: 'refuse a guest that has another number of vCPUs' },
  preallocate: {
    kind: 'flag',
    value: '',
    help: 'back all guest RAM: with --memory before the guest comes, else when it has\nsaid its size, which makes the move longer',
  },
};

const HELP = `usage: ferry receive URI [options]

Waits for a guest that 'ferry migrate' moves here, and runs it from the hand-over on.

  URI   tcp:ADDRESS:PORT (tcp:0.0.0.0:4444; port 0: a free one, printed on stderr), unix:PATH,
        or defer: wait for migrate-incoming on the control socket

${optionHelp(OPTIONS)}

RAM, vCPUs and the device list come with the guest; give the same --device options as at the source, with this host's addresses.
The console's bytes appear from the hand-over on. Exit code: that of the guest's end; 1 when it did not arrive; 2 bad input.
`;

export const receiveVerb: Verb = {
  summary: 'wait for a guest from another host',
  help: () => HELP,
  async run(args) {
    const start = await startVerb({ name: 'receive', options: OPTIONS, help: HELP }, args);
    if (start === null) return 0;
    const { parsed, log, registry } = start;
    const [uri, ...rest] = parsed.words;
    if (uri === undefined || rest.length > 0)
      throw new VmmError('usage', 'ferry receive: one URI is wanted; see ferry receive --help');
    const control = parsed.value('control');
    if (uri === 'defer' && control === null) {
      throw new VmmError(
        'usage',
        'ferry receive defer: without --control nobody could send migrate-incoming; give --control unix:PATH',
      );
    }
    let interrupt = () => {};
    const terminal = openConsole(judgeSerial(parsed.value('serial') ?? undefined), () => interrupt());
    const memory = parsed.value('memory');
    const cpus = parsed.value('cpus');
    const size = memory === null ? null : judgeMemory(memory);
    // With a known size it is done now, while nobody waits; else when the stream has told the size.
    const preparedRam = size !== null && parsed.flag('preallocate') ? await PreparedRam.of(size) : null;
    const host = await HostSession.open({
      name: null,
      preparedRam,
      control,
      receiveHost: {
        log,
        registry,
        consoleOut: (bytes) => terminal.out(bytes),
        consoleIn: (sink) => terminal.onInput(sink),
        devices: parseDevices(parsed.list('device'), registry),
        memory: size,
        cpus: cpus === null ? null : judgeCpus(cpus),
        preallocate: parsed.flag('preallocate'),
        dirtyLog: judgeAccel(parsed.value('accel') ?? undefined),
        clock: judgeClock(parsed.value('clock') ?? undefined),
      },
    });
    interrupt = () => host.interrupt();
    try {
      if (uri !== 'defer') {
        await host.session.receive(uri);
        process.stderr.write(`ferry: waiting for a guest at ${host.session.listenUri}\n`);
      }
      return await host.finish();
    } finally {
      terminal.close();
      await host.close();
      preparedRam?.close();
    }
  },
};
