// The only place where user input about a machine is judged: text in, MachineConfig out, or a VmmError (exit code 2) of one line that
// says what to do. Called by cli/run and cli/receive before anything is opened; touches the host only to read facts about it.
import { accessSync, constants, statSync } from 'node:fs';
import { totalmem } from 'node:os';
import { VmmError } from '../native/errno.ts';
import type { BootConfig, DeviceRegistryView, DirtyLogChoice, MachineConfig, SerialConfig } from './api.ts';
import { parseDevices } from './device-syntax.ts';
import { MAX_MEMORY } from './layout.ts';
import { parseSize, sizeText } from './size.ts';

export const MAX_CPUS = 16;
const DEFAULT_MEMORY = 256 * 2 ** 20;
const MIN_MEMORY = 2 ** 20;
const PAGE = 4096;

/** What the user wrote, untouched. */
export interface MachineInput {
  readonly name?: string;
  readonly memory?: string;
  readonly cpus?: string;
  readonly kernel?: string;
  readonly initrd?: string;
  readonly append?: string;
  readonly devices?: readonly string[];
  readonly serial?: string;
  readonly clock?: string;
  readonly noReboot?: boolean;
  readonly preallocate?: boolean;
  readonly accel?: string;
  readonly debugExit?: boolean;
}

export function judgeConfig(input: MachineInput, registry: DeviceRegistryView): MachineConfig {
  return {
    name: input.name ?? 'ferry',
    memory: judgeMemory(input.memory),
    cpus: judgeCpus(input.cpus),
    boot: judgeBoot(input),
    devices: parseDevices(input.devices ?? [], registry),
    serial: judgeSerial(input.serial),
    clock: judgeClock(input.clock),
    noReboot: input.noReboot ?? false,
    preallocate: input.preallocate ?? false,
    dirtyLog: judgeAccel(input.accel),
    debugExit: input.debugExit ?? false,
  };
}

/** `hostMemory`: what the host has at all; a parameter for tests. */
export function judgeMemory(text: string | undefined, hostMemory = totalmem()): number {
  if (text === undefined) return DEFAULT_MEMORY;
  const bytes = parseSize(text, 2 ** 20);
  if (bytes === null) throw bad('memory', `--memory ${text}: this is no size; write for example 512M or 2G`);
  if (bytes < MIN_MEMORY)
    throw bad('memory', `--memory ${text}: a guest needs at least 1M; write for example 512M or 2G`);
  if (bytes % PAGE !== 0) throw bad('memory', `--memory ${text}: not a whole number of 4 KiB pages; round it`);
  if (bytes > hostMemory) {
    throw bad('memory', `--memory ${text}: this host has ${sizeText(hostMemory)} of RAM in all; give the guest less`);
  }
  if (bytes > MAX_MEMORY)
    throw bad('memory', `--memory ${text}: more than ${sizeText(MAX_MEMORY)} is not supported; give less`);
  return bytes;
}

export function judgeCpus(text: string | undefined): number {
  if (text === undefined) return 1;
  const cpus = /^[0-9]+$/.test(text) ? Number(text) : Number.NaN;
  if (cpus >= 1 && cpus <= MAX_CPUS) return cpus;
  throw bad('cpus', `--cpus ${text}: give a number from 1 to ${MAX_CPUS}`);
}

function judgeBoot(input: MachineInput): BootConfig | null {
  if (input.kernel === undefined) {
    if (input.initrd !== undefined) throw bad('kernel', '--initrd is given without --kernel; give the kernel too');
    if (input.append !== undefined) throw bad('kernel', '--append is given without --kernel; give the kernel too');
    return null;
  }
  readable('--kernel', input.kernel);
  if (input.initrd !== undefined) readable('--initrd', input.initrd);
  return { kernel: input.kernel, initrd: input.initrd ?? null, append: input.append ?? '' };
}

function readable(option: string, path: string): void {
  let found = 'no such file';
  try {
    if (!statSync(path).isFile()) found = 'not a file';
    else {
      accessSync(path, constants.R_OK);
      return;
    }
  } catch (cause) {
    const code = (cause as NodeJS.ErrnoException).code;
    if (code === 'EACCES' || code === 'EPERM') found = 'not readable for this user';
    else if (code !== 'ENOENT' && code !== 'ENOTDIR') found = String(code);
    throw new VmmError('bad-boot-file', `${option} ${path}: ${found}; give the path of a readable file`, { cause });
  }
  throw bad('boot-file', `${option} ${path}: ${found}; give the path of a readable file`);
}

export function judgeSerial(text: string | undefined): SerialConfig {
  if (text === undefined || text === 'stdio') return { kind: 'stdio' };
  if (text === 'none') return { kind: 'none' };
  const match = /^(file|unix):(.+)$/s.exec(text);
  if (match === null) throw bad('serial', `--serial ${text}: give stdio, none, file:PATH or unix:PATH`);
  return { kind: match[1] as 'file' | 'unix', path: match[2]! };
}

export function judgeClock(text: string | undefined): 'stop' | 'catch-up' {
  if (text === undefined || text === 'stop') return 'stop';
  if (text === 'catch-up') return text;
  throw bad('clock', `--clock ${text}: give stop (the guest's clock stands still in a pause) or catch-up`);
}

/** QEMU: -accel kvm[,dirty-ring-size=N]; dirty-log= is ours. */
export function judgeAccel(text: string | undefined): DirtyLogChoice {
  const [kind, ...options] = (text ?? 'kvm').split(',');
  if (kind !== 'kvm') throw bad('accel', `--accel ${text}: only kvm is there; give kvm[,dirty-ring-size=N]`);
  let choice: DirtyLogChoice = { kind: 'bitmap' };
  for (const option of options) {
    const [name, value = ''] = option.split('=');
    if (name === 'dirty-log' && (value === 'bitmap' || value === 'manual')) choice = { kind: value };
    else if (name === 'dirty-ring-size') choice = judgeRing(text!, value);
    else
      throw bad(
        'accel',
        `--accel ${text}: "${option}" is unknown; there are dirty-ring-size=N and dirty-log=bitmap|manual`,
      );
  }
  return choice;
}

function judgeRing(text: string, value: string): DirtyLogChoice {
  const entries = /^[0-9]+$/.test(value) ? Number(value) : Number.NaN;
  // 0 is QEMU's way to say: no ring.
  if (entries === 0) return { kind: 'bitmap' };
  if (entries >= 1024 && entries <= 65536 && Number.isInteger(Math.log2(entries)))
    return { kind: 'ring', ringEntries: entries };
  throw bad('accel', `--accel ${text}: a dirty ring has a power of two of entries, 1024 to 65536 (or 0 for none)`);
}

function bad(what: string, message: string): VmmError {
  return new VmmError(`bad-${what}`, message);
}
