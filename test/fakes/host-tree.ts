// A sysfs, devfs and procfs tree in a temporary directory, with PCI devices in IOMMU groups, for tests of devices/vfio and cli/vfio.
// write() does what the kernel does on driver_override, unbind, bind and drivers_probe.
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import type { HostPaths } from '../../devices/vfio/kernel-door.ts';

export class HostTree {
  readonly root = mkdtempSync(join(tmpdir(), 'ferry-host-'));
  readonly paths: HostPaths = {
    sys: join(this.root, 'sys'),
    dev: join(this.root, 'dev'),
    proc: join(this.root, 'proc'),
    run: join(this.root, 'run'),
  };
  /** Everything that was written, in order. */
  readonly writes: string[] = [];
  /** Drivers that refuse every device. */
  readonly refusing = new Set<string>();
  /** Called before each write: a test's way to fail in the middle. */
  onWrite: (path: string, text: string) => void = () => {};

  constructor() {
    mkdirSync(join(this.paths.sys, 'bus/pci/devices'), { recursive: true });
    mkdirSync(join(this.paths.dev, 'vfio'), { recursive: true });
    mkdirSync(join(this.paths.proc, 'self'), { recursive: true });
    writeFileSync(join(this.paths.dev, 'vfio/vfio'), '');
    this.driver('vfio-pci');
    this.capabilities(0xffffffffn);
    this.memory(1 << 20);
  }

  driver(name: string): void {
    mkdirSync(join(this.paths.sys, 'bus/pci/drivers', name), { recursive: true });
  }

  device(bdf: string, group: number | null, driver: string | null): void {
    const path = this.#device(bdf);
    mkdirSync(path);
    writeFileSync(join(path, 'vendor'), '0x1234\n');
    writeFileSync(join(path, 'device'), '0x11e8\n');
    writeFileSync(join(path, 'class'), '0x00ff00\n');
    writeFileSync(join(path, 'driver_override'), '(null)\n');
    if (driver !== null) {
      this.driver(driver);
      this.#bind(bdf, driver);
    }
    if (group === null) return;
    const groupPath = join(this.paths.sys, 'kernel/iommu_groups', String(group));
    mkdirSync(join(groupPath, 'devices'), { recursive: true });
    symlinkSync(groupPath, join(path, 'iommu_group'));
    symlinkSync(path, join(groupPath, 'devices', bdf));
    if (driver !== null) writeFileSync(join(this.paths.dev, 'vfio', String(group)), '');
  }

  /** A mediated device, in a group of its own. */
  mediated(uuid: string, group: number): void {
    const path = this.#device(uuid);
    mkdirSync(join(path, 'vfio-dev/vfio9'), { recursive: true });
    mkdirSync(join(this.paths.sys, 'bus/mdev/drivers/some_mdev'), { recursive: true });
    symlinkSync(join(this.paths.sys, 'bus/mdev/drivers/some_mdev'), join(path, 'driver'));
    const groupPath = join(this.paths.sys, 'kernel/iommu_groups', String(group));
    mkdirSync(join(groupPath, 'devices'), { recursive: true });
    symlinkSync(groupPath, join(path, 'iommu_group'));
    symlinkSync(path, join(groupPath, 'devices', uuid));
    writeFileSync(join(this.paths.dev, 'vfio', String(group)), '');
  }

  /** The character device of one that VFIO has, and /dev/iommu. */
  cdev(bdf: string, name: string): void {
    mkdirSync(join(this.#device(bdf), 'vfio-dev', name), { recursive: true });
    mkdirSync(join(this.paths.dev, 'vfio/devices'), { recursive: true });
    writeFileSync(join(this.paths.dev, 'vfio/devices', name), '');
    writeFileSync(join(this.paths.dev, 'iommu'), '');
  }

  /** Which directory of sysfs stands for a character device, by "major:minor". */
  charDevice(number: string, directory: string): void {
    mkdirSync(join(this.paths.sys, 'dev/char'), { recursive: true });
    const path = join(this.paths.sys, directory);
    mkdirSync(path, { recursive: true });
    symlinkSync(path, join(this.paths.sys, 'dev/char', number));
  }

  driverOf(bdf: string): string | null {
    const link = join(this.#device(bdf), 'driver');
    return existsSync(link) ? basename(readlinkSync(link)) : null;
  }

  overrideOf(bdf: string): string {
    return readFileSync(join(this.#device(bdf), 'driver_override'), 'utf8').trim();
  }

  capabilities(mask: bigint): void {
    writeFileSync(
      join(this.paths.proc, 'self/status'),
      `Name:\tnode\nCapEff:\t${mask.toString(16).padStart(16, '0')}\n`,
    );
  }

  lockLimit(bytes: number): void {
    writeFileSync(
      join(this.paths.proc, 'self/limits'),
      `Limit                     Soft Limit           Hard Limit           Units\nMax locked memory         ${bytes}              ${bytes}              bytes\n`,
    );
  }

  memory(availableKib: number): void {
    writeFileSync(join(this.paths.proc, 'meminfo'), `MemTotal: 999 kB\nMemAvailable:    ${availableKib} kB\n`);
  }

  process(pid: number, startTime: string): void {
    mkdirSync(join(this.paths.proc, String(pid)), { recursive: true });
    const fields = ['S', ...new Array<string>(18).fill('0'), startTime, '0'];
    writeFileSync(join(this.paths.proc, String(pid), 'stat'), `${pid} (a (strange) name) ${fields.join(' ')}\n`);
  }

  write = (path: string, text: string): void => {
    this.onWrite(path, text);
    this.writes.push(`${path.slice(this.paths.sys.length + 1)} <- ${text.trim()}`);
    const bdf = text.trim();
    const name = basename(path);
    if (name === 'driver_override') writeFileSync(path, text.trim() === '' ? '(null)\n' : text);
    else if (name === 'unbind') rmSync(join(this.#device(bdf), 'driver'));
    else if (name === 'bind') this.#bind(bdf, basename(join(path, '..')));
    else if (name === 'drivers_probe') this.#probe(bdf);
    else throw Object.assign(new Error(`no such file ${path}`), { code: 'ENOENT' });
  };

  close(): void {
    rmSync(this.root, { recursive: true });
  }

  /** Which driver takes a device without an override: nvme, where it is loaded. */
  #probe(bdf: string): void {
    if (this.driverOf(bdf) !== null) return;
    const override = this.overrideOf(bdf);
    const driver = override === '(null)' ? 'nvme' : override;
    if (existsSync(join(this.paths.sys, 'bus/pci/drivers', driver)) && !this.refusing.has(driver))
      this.#bind(bdf, driver);
  }

  #bind(bdf: string, driver: string): void {
    symlinkSync(join(this.paths.sys, 'bus/pci/drivers', driver), join(this.#device(bdf), 'driver'));
  }

  #device(bdf: string): string {
    return join(this.paths.sys, bdf.length === 36 ? 'bus/mdev/devices' : 'bus/pci/devices', bdf);
  }
}
