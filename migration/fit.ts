// Whether this host can take the machine that a stream describes, judged before any RAM moves: options given to `ferry receive`, devices,
// CPU, RAM layout. Each refusal names what is missing here; the source shows it to its user. Called by destination.ts.
import { VmmError } from '../native/errno.ts';
import type { DeviceConfig, Machine, MachineConfig } from '../vmm/api.ts';
import type { ReceiveHost } from './api.ts';
import { describeDevices, describeRam, type StreamConfig, type StreamDeviceConfig } from './stream/config-section.ts';

/** The machine to build: the stream's shape, this host's properties. */
export function configFor(stream: StreamConfig, host: ReceiveHost): MachineConfig {
  if (host.memory !== null && host.memory !== stream.memory)
    refuse(`the source's machine has ${stream.memory} bytes of memory, --memory here says ${host.memory}`);
  if (host.cpus !== null && host.cpus !== stream.cpus)
    refuse(`the source's machine has ${stream.cpus} vCPUs, --cpus here says ${host.cpus}`);
  return {
    name: stream.name,
    memory: stream.memory,
    cpus: stream.cpus,
    boot: stream.boot,
    devices: matchDevices(stream.deviceConfigs, host.devices),
    serial: { kind: 'stdio' },
    clock: host.clock,
    noReboot: stream.noReboot,
    preallocate: host.preallocate,
    dirtyLog: host.dirtyLog,
    debugExit: stream.debugExit,
  };
}

/** In the stream's order and slots, so that the guest finds every device where it was. */
function matchDevices(wanted: readonly StreamDeviceConfig[], given: readonly DeviceConfig[]): DeviceConfig[] {
  const byId = new Map(given.map((device) => [device.id, device]));
  const matched = wanted.map(({ id, type, slot }) => {
    const device = byId.get(id);
    if (device === undefined)
      return refuse(`there is no device ${id} (${type}) here; give it to ferry receive by --device`);
    if (device.type !== type)
      return refuse(`device ${id} is of type ${type} at the source and of type ${device.type} here`);
    if (device.slot !== null && slot !== null && device.slot !== slot)
      return refuse(`device ${id} is in slot ${slot} at the source and has addr=${device.slot} here`);
    byId.delete(id);
    return { ...device, slot: slot ?? device.slot };
  });
  const extra = [...byId.values()].map(({ id, type }) => `${id} (${type})`);
  if (extra.length > 0) refuse(`the source's machine has no device ${extra.join(', ')}`);
  return matched;
}

export function checkCpu(lacking: readonly string[]): void {
  if (lacking.length > 0) refuse(`this host's CPU or KVM lacks ${lacking.join(', ')}`);
}

/** What was built against what the stream says: ids, types, state versions, bulk sections, RAM layout. */
export function checkBuilt(stream: StreamConfig, machine: Machine): void {
  const here = new Map(describeDevices(machine).map((device) => [device.id, device]));
  for (const device of stream.devices) {
    const built = here.get(device.id);
    if (built === undefined) refuse(`there is no device ${device.id} (${device.type}) here`);
    if (built.type !== device.type)
      refuse(`device ${device.id} is of type ${device.type} at the source and of type ${built.type} here`);
    if ((built.version === null) !== (device.version === null) || (device.version ?? 0) > (built.version ?? 0))
      refuse(
        `device ${device.id} has state version ${device.version} at the source, and ${built.version} is the newest known here`,
      );
    if (built.live !== device.live)
      refuse(`device ${device.id} moves with device data at one host and without at the other`);
    here.delete(device.id);
  }
  if (here.size > 0) refuse(`the source's machine has no device ${[...here.keys()].join(', ')}`);
  const ram = describeRam(machine);
  const same =
    ram.length === stream.ram.length &&
    ram.every((range, at) => {
      const other = stream.ram[at]!;
      return range.gpa === other.gpa && range.size === other.size && range.offset === other.offset;
    });
  if (!same) refuse('guest RAM lies at other addresses here; the two ferry versions do not fit');
}

function refuse(message: string): never {
  throw new VmmError('does-not-fit', message, { exitCode: 1 });
}
