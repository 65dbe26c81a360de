// The command lines that bench/boot.ts compares, and one boot by one of them, timed. Runs in a lab host.
import { spawn } from 'node:child_process';
import { copyFileSync, mkdirSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';

export interface Vmm {
  readonly name: string;
  /** What the case's name gets. */
  readonly suffix: string;
  readonly command: readonly string[];
  readonly env: Readonly<Record<string, string>>;
}

const APPEND = 'console=ttyS0 quiet panic=-1 mode=poweroff';
const MEMORY_MIB = '256';
/** The workload's first line (images/guest/workload/main.c). */
const FIRST_LINE = 'init mono=';
/** A boot takes about 2 s with the machine to itself. */
const LIMIT_MS = 120_000;

export function copyIn(path: string, dir: string): string {
  const copy = join(dir, basename(path));
  copyFileSync(path, copy);
  return copy;
}

/** What an installed Ferry consists of. The repository itself is mounted in the lab host without a cache, which no installation is. */
export function copyFerry(root: string, dir: string): string {
  for (const file of ['bin/ferry', 'dist/ferry.cjs', 'dist/ferry.bytecode', 'build/Release/kvm_node.node']) {
    mkdirSync(dirname(join(dir, file)), { recursive: true });
    copyFileSync(join(root, file), join(dir, file));
  }
  return join(dir, 'bin/ferry');
}

export interface Files {
  readonly kernel: string;
  readonly initrd: string;
  /** XDG_CACHE_HOME of Ferry's. */
  readonly cache: string;
}

/** Ferry first. */
export function vmms(ferry: string, { kernel, initrd, cache }: Files): Vmm[] {
  const qemu = (machine: string): string[] => [
    ...['qemu-system-x86_64', '-M', machine, '-accel', 'kvm', '-cpu', 'host', '-m', MEMORY_MIB, '-nodefaults'],
    ...['-no-user-config', '-display', 'none', '-serial', 'stdio', '-no-reboot'],
    ...['-kernel', kernel, '-initrd', initrd, '-append', APPEND],
  ];
  const own = ['--kernel', kernel, '--initrd', initrd, '--append', APPEND, '--memory', `${MEMORY_MIB}M`];
  return [
    { name: 'ferry', suffix: '', command: [ferry, 'run', ...own], env: { XDG_CACHE_HOME: cache } },
    { name: 'qemu-system-x86_64 -M pc', suffix: '', command: qemu('pc'), env: {} },
    {
      name: 'qemu-system-x86_64 -M microvm (minimal)',
      suffix: '-microvm',
      command: qemu('microvm,x-option-roms=off,rtc=on,acpi=off'),
      env: {},
    },
  ];
}

/** Milliseconds from exec to the init's first line. */
export function bootOnce(vmm: Vmm): Promise<number> {
  return new Promise((resolve, reject) => {
    const [program, ...args] = vmm.command as [string, ...string[]];
    let text = '';
    let ms = Number.NaN;
    const began = performance.now();
    const child = spawn(program, args, { env: { ...process.env, ...vmm.env }, stdio: ['pipe', 'pipe', 'pipe'] });
    const limit = setTimeout(() => child.kill('SIGKILL'), LIMIT_MS);
    const take = (bytes: Buffer): void => {
      text += bytes.toString('latin1');
      if (!Number.isNaN(ms) || !text.includes(FIRST_LINE)) return;
      ms = performance.now() - began;
      child.kill('SIGKILL');
    };
    child.stdout.on('data', take);
    child.stderr.on('data', (bytes: Buffer) => {
      text += bytes.toString('latin1');
    });
    child.on('error', reject);
    child.on('close', (code) => {
      clearTimeout(limit);
      if (Number.isNaN(ms))
        reject(new Error(`bench boot: ${vmm.name} ended with ${code} before init: ${text.slice(-2000)}`));
      else resolve(ms);
    });
  });
}
