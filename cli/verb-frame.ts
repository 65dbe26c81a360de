// What `ferry run` and `ferry receive` do alike before either begins: help, options, log, device types. Called by both.
import type { DeviceRegistry } from '../devices/registry.ts';
import type { Log } from '../vmm/api.ts';
import { createLog, parseLevel } from './log.ts';
import { deviceHelp, openDoor, openRegistry } from './machine-options.ts';
import { type OptionTable, type Parsed, parseOptions, wantsHelp } from './options.ts';

export interface VerbStart {
  readonly parsed: Parsed;
  readonly log: Log;
  readonly registry: DeviceRegistry;
}

/** null: help was asked for and has been printed. */
export async function startVerb(
  verb: { readonly name: string; readonly options: OptionTable; readonly help: string },
  args: readonly string[],
): Promise<VerbStart | null> {
  if (wantsHelp(args)) {
    process.stdout.write(verb.help);
    return null;
  }
  const parsed = parseOptions(verb.name, verb.options, args);
  const log = createLog(parseLevel(parsed.value('log-level')));
  const trace = parsed.value('vfio-trace');
  const door = await openDoor(trace, ['ferry', verb.name, ...args]);
  const registry = await openRegistry(parsed.list('plugin'), parsed.list('object'), { door, traced: trace !== null });
  const help = deviceHelp(parsed.list('device'), registry);
  if (help !== null) process.stdout.write(help);
  return help === null ? { parsed, log, registry } : null;
}
