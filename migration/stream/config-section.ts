// ferry/config, the first section: what the destination must build, and what must fit before any RAM moves. Made by source.ts from its
// machine, checked field by field by destination.ts (a peer's bytes are nobody's word). main-job.md, "The first section".
import { StreamError } from '../../native/errno.ts';
import type { BootConfig, CpuContract, CpuidEntry, Machine } from '../../vmm/api.ts';
import { PAGE_SIZE } from './format.ts';

export interface StreamDevice {
  readonly id: string;
  readonly type: string;
  /** Version of its state section; null: it has none. */
  readonly version: number | null;
  /** It has a bulk section. */
  readonly live: boolean;
}
/** A device that the user gave, in the order of the machine: the destination gives the same ones, with its own host's properties. */
export interface StreamDeviceConfig {
  readonly type: string;
  readonly id: string;
  readonly slot: number | null;
}
export interface StreamConfig {
  readonly name: string;
  readonly memory: number;
  readonly cpus: number;
  readonly noReboot: boolean;
  readonly debugExit: boolean;
  /** What a reset at the destination starts again; the files must be there then. */
  readonly boot: BootConfig | null;
  readonly ram: readonly { readonly gpa: number; readonly size: number; readonly offset: number }[];
  readonly cpu: CpuContract;
  readonly devices: readonly StreamDevice[];
  readonly deviceConfigs: readonly StreamDeviceConfig[];
  /** Negative control of the tests: the destination throws the devices' bulk state away. */
  readonly dropDeviceState: boolean;
}

export function describeMachine(machine: Machine, dropDeviceState: boolean): StreamConfig {
  const { name, memory, cpus, noReboot, debugExit, boot, devices } = machine.config;
  return {
    name,
    memory,
    cpus,
    noReboot,
    debugExit,
    boot,
    ram: describeRam(machine),
    cpu: machine.cpuContract,
    devices: describeDevices(machine),
    deviceConfigs: devices.map(({ type, id, slot }) => ({ type, id, slot })),
    dropDeviceState,
  };
}

export function describeRam(machine: Machine): StreamConfig['ram'] {
  return machine.ramRanges.map(({ gpa, size, slice }) => ({ gpa, size, offset: slice.offset }));
}

export function describeDevices(machine: Machine): readonly StreamDevice[] {
  return machine.devices.map(({ id, type, state, live }) => ({
    id,
    type,
    version: state === null ? null : state.version,
    live: live !== null,
  }));
}

/** Throws StreamError naming the field that is none. */
export function parseConfig(value: unknown): StreamConfig {
  const config = record('config', value);
  return {
    name: text('name', config['name']),
    memory: size('memory', config['memory']),
    cpus: integer('cpus', config['cpus'], 1, 4096),
    noReboot: flag('noReboot', config['noReboot']),
    debugExit: flag('debugExit', config['debugExit']),
    boot: parseBoot(config['boot']),
    ram: list('ram', config['ram'], 64).map((item) => {
      const range = record('ram', item);
      return {
        gpa: size('ram.gpa', range['gpa']),
        size: size('ram.size', range['size']),
        offset: size('ram.offset', range['offset']),
      };
    }),
    cpu: parseCpu(config['cpu']),
    devices: list('devices', config['devices'], 1024).map((item) => {
      const device = record('device', item);
      const version = device['version'];
      return {
        id: text('device.id', device['id']),
        type: text('device.type', device['type']),
        version: version === null ? null : integer('device.version', version, 0, 0xffffffff),
        live: flag('device.live', device['live']),
      };
    }),
    deviceConfigs: list('deviceConfigs', config['deviceConfigs'], 1024).map((item) => {
      const device = record('deviceConfig', item);
      const slot = device['slot'];
      return {
        id: text('deviceConfig.id', device['id']),
        type: text('deviceConfig.type', device['type']),
        slot: slot === null ? null : integer('deviceConfig.slot', slot, 0, 31),
      };
    }),
    dropDeviceState: flag('dropDeviceState', config['dropDeviceState']),
  };
}

function parseBoot(value: unknown): BootConfig | null {
  if (value === null) return null;
  const boot = record('boot', value);
  const initrd = boot['initrd'];
  return {
    kernel: path('boot.kernel', boot['kernel']),
    initrd: initrd === null ? null : path('boot.initrd', initrd),
    append: path('boot.append', boot['append']),
  };
}

function parseCpu(value: unknown): CpuContract {
  const cpu = record('cpu', value);
  const xcr0 = cpu['xcr0'];
  return {
    cpuid: list('cpu.cpuid', cpu['cpuid'], 4096).map(parseCpuid),
    xcr0:
      typeof xcr0 === 'number' ? BigInt(integer('cpu.xcr0', xcr0, 0, Number.MAX_SAFE_INTEGER)) : bits('cpu.xcr0', xcr0),
    xsaveSize: integer('cpu.xsaveSize', cpu['xsaveSize'], 0, 1 << 20),
    msrs: list('cpu.msrs', cpu['msrs'], 4096).map((msr) => integer('cpu.msrs', msr, 0, 0xffffffff)),
    tscKhz: integer('cpu.tscKhz', cpu['tscKhz'], 0, 0xffffffff),
  };
}

function parseCpuid(value: unknown): CpuidEntry {
  const entry = record('cpu.cpuid', value);
  const u32 = (name: string): number => integer(`cpu.cpuid.${name}`, entry[name], 0, 0xffffffff);
  return {
    function: u32('function'),
    index: u32('index'),
    flags: u32('flags'),
    eax: u32('eax'),
    ebx: u32('ebx'),
    ecx: u32('ecx'),
    edx: u32('edx'),
  };
}

function wrong(name: string): never {
  throw new StreamError(`ferry/config: ${name} is missing or not what it should be`);
}
function record(name: string, value: unknown): Readonly<Record<string, unknown>> {
  if (typeof value !== 'object' || value === null || Array.isArray(value) || value instanceof Uint8Array) wrong(name);
  return value as Record<string, unknown>;
}
function list(name: string, value: unknown, most: number): readonly unknown[] {
  if (!Array.isArray(value) || value.length > most) wrong(name);
  return value;
}
function text(name: string, value: unknown): string {
  if (typeof value !== 'string' || value.length > 120) wrong(name);
  return value;
}
function path(name: string, value: unknown): string {
  if (typeof value !== 'string' || value.length > 4096 || value.includes('\0')) wrong(name);
  return value;
}
function flag(name: string, value: unknown): boolean {
  if (typeof value !== 'boolean') wrong(name);
  return value;
}
function integer(name: string, value: unknown, least: number, most: number): number {
  if (typeof value !== 'number' || !Number.isInteger(value) || value < least || value > most) wrong(name);
  return value;
}
function size(name: string, value: unknown): number {
  const bytes = integer(name, value, 0, Number.MAX_SAFE_INTEGER);
  if (bytes % PAGE_SIZE !== 0) wrong(name);
  return bytes;
}
function bits(name: string, value: unknown): bigint {
  if (typeof value !== 'bigint' || value < 0n || value >= 1n << 64n) wrong(name);
  return value;
}
