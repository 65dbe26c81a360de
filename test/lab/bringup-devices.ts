// vfio-bringup's devices in a lab host, and the checks of its folder (images/kmod/vfio-bringup/test) run on them. For test/lab/kmod-bringup*.
import { execFileSync } from 'node:child_process';
import { cpSync, mkdirSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import type { LabHost } from '../../lab/host.ts';
import type { Lab } from '../../lab/lab.ts';
import { repoRoot } from '../../lab/root.ts';

const TIMEOUT_MS = 120_000; // measured: at most 6 s
const PARENT = '/sys/class/vfio_bringup/vfio_bringup';
const COMPLAINT = /BUG|WARNING|Oops|Call Trace|DMAR:.*fault|recursive locking/;

export const uuidOf = (n: number) => `00000000-0000-4000-8000-00000000000${n}`;

/** Compiles the checks on the outer host into the lab host's /hw, against the lab kernel's vfio.h (Debian's own is too old). */
export function compileBringupChecks(lab: Lab): void {
  const source = join(repoRoot(), 'images/kmod/vfio-bringup/test');
  const share = lab.host(0).share;
  mkdirSync(join(share, 'include/linux'), { recursive: true });
  cpSync(join(lab.image.uapi, 'linux/vfio.h'), join(share, 'include/linux/vfio.h'));
  const files = readdirSync(source).filter((each) => each.endsWith('.c'));
  const flags = ['-O2', '-Wall', '-Wextra', '-Werror', '-D__user=', `-I${join(share, 'include')}`];
  execFileSync('gcc-12', [...flags, '-o', join(share, 'check'), ...files.map((each) => join(source, each))]);
}

export class BringupDevices {
  readonly #host: LabHost;
  readonly #module: string;
  #groups: readonly string[] = [];
  #logged = 0;

  /** The module is loaded since the lab host's boot. */
  constructor(lab: Lab, host = lab.host(0)) {
    this.#host = host;
    this.#module = join(lab.image.modules, 'vfio-bringup.ko');
  }

  /** Loads the module anew and makes `count` devices. */
  async load(count: number, ...parameters: string[]): Promise<void> {
    await this.unload();
    await this.#host.insmod(this.#module, ...parameters);
    const made: string[] = [];
    for (let n = 0; n < count; n++) {
      await this.#host.run(`echo ${uuidOf(n)} > ${PARENT}/mdev_supported_types/vfio_bringup-pci/create`);
      made.push((await this.#host.run(`basename $(readlink /sys/bus/mdev/devices/${uuidOf(n)}/iommu_group)`)).trim());
    }
    this.#groups = made;
  }

  /** Also the devices of an earlier suite. Fails when anything still holds a device or the module. */
  async unload(): Promise<void> {
    this.#groups = [];
    const each = `${PARENT}/mdev_supported_types/vfio_bringup-pci/devices/*`;
    await this.#host.run(
      `[ ! -d /sys/module/vfio_bringup ] || { for d in ${each}; do [ ! -e $d ] || echo 1 > $d/remove || exit 1; done; rmmod vfio_bringup; }`,
    );
  }

  async parameter(name: string, value: string | number): Promise<void> {
    await this.#host.run(`echo ${value} > /sys/module/vfio_bringup/parameters/${name}`);
  }

  async set(parameters: Readonly<Record<string, string>>): Promise<void> {
    const all = Object.entries(parameters);
    const words = all.map(([name, value]) => `echo ${value} > /sys/module/vfio_bringup/parameters/${name}`);
    if (all.length > 0) await this.#host.run(words.join(' && '));
  }

  /** Nothing is made to fail any more. */
  async mend(): Promise<void> {
    const none = ['fail_arc', 'fail_read', 'fail_write', 'gone_read', 'gone_write'].map((name) => [name, 'none']);
    const off = ['fail_reset', 'gone'].map((name) => [name, '0']);
    await this.set(Object.fromEntries([...none, ...off]));
  }

  /** The check's last line; empty when it had to be killed after `limitS`. */
  async check(rule: string, devices: readonly number[], limitS = 100): Promise<string> {
    const where = devices.flatMap((n) => [this.#groups[n] ?? '', uuidOf(n)]);
    const argv = ['timeout', '-s', 'KILL', `${limitS}`, '/hw/check', rule, ...where];
    const { stdout, stderr } = await this.#host.exec(argv, { timeoutMs: TIMEOUT_MS });
    return `${stdout}${stderr}`.trim().split('\n').at(-1) ?? '';
  }

  /** What the kernel has complained about since the last call. */
  async complaints(): Promise<string[]> {
    const log = await this.#host.run('dmesg');
    const fresh = log.slice(this.#logged);
    this.#logged = log.length;
    return fresh.split('\n').filter((line) => COMPLAINT.test(line));
  }
}
