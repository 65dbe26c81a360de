// A host as a trace saw it, in a temporary directory: sysfs of the devices that were opened, and files in the place of /dev/vfio that can be
// opened. Used by replay-info.ts and tests; close() removes it.
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { devicePath } from '../host-pci.ts';
import type { HostPaths } from '../kernel-door.ts';
import type { Trace, TracedDevice } from './trace-file.ts';

export class ReplayHost {
  readonly paths: HostPaths;
  readonly #root: string;

  constructor(trace: Trace) {
    const root = mkdtempSync(join(tmpdir(), 'ferry-replay-'));
    this.#root = root;
    this.paths = { sys: join(root, 'sys'), dev: join(root, 'dev'), proc: '/proc', run: join(root, 'run') };
    for (const device of trace.devices) this.#device(device);
    const files = new Set(trace.calls.map(({ call }) => call.on));
    if (files.has('container')) this.#file(join(this.paths.dev, 'vfio/vfio'), '');
    if (files.has('iommufd') || trace.devices.some(({ iommufd }) => iommufd))
      this.#file(join(this.paths.dev, 'iommu'), '');
    for (const on of files) {
      const group = /^group ((?:noiommu-)?\d+)$/.exec(on)?.[1];
      if (group !== undefined) this.#file(join(this.paths.dev, 'vfio', group), '');
    }
  }

  #device(device: TracedDevice): void {
    const { sys, dev } = this.paths;
    const path = devicePath(this.paths, device.bdf);
    mkdirSync(path, { recursive: true });
    const hex = (value: number, digits: number) => `0x${value.toString(16).padStart(digits, '0')}\n`;
    this.#file(join(path, 'vendor'), hex(device.vendor, 4));
    this.#file(join(path, 'device'), hex(device.device, 4));
    this.#file(join(path, 'class'), hex(device.classCode, 6));
    this.#file(join(path, 'driver_override'), `${device.driverOverride ?? '(null)'}\n`);
    if (device.driver !== null) this.#link(join(sys, 'bus/pci/drivers', device.driver), join(path, 'driver'));
    if (device.isVfio) mkdirSync(join(path, 'vfio-dev', device.cdev ?? ''), { recursive: true });
    if (device.cdev !== null) {
      this.#link(path, join(sys, 'class/vfio-dev', device.cdev, 'device'));
      this.#file(join(dev, 'vfio/devices', device.cdev), '');
    }
    if (device.group === null) return;
    const group = join(sys, 'kernel/iommu_groups', String(device.group));
    this.#link(group, join(path, 'iommu_group'));
    this.#link(path, join(group, 'devices', device.bdf));
  }

  /** What client code says of this host's files, as it would say it of the host's own. */
  outside<T>(result: T): T {
    const own = `${this.#root}/`;
    if (typeof result === 'string') return result.replaceAll(own, '/') as T;
    if (Array.isArray(result)) return result.map((each: unknown) => this.outside(each)) as T;
    if (typeof result !== 'object' || result === null) return result;
    return Object.fromEntries(Object.entries(result).map(([name, value]) => [name, this.outside(value)])) as T;
  }

  #file(path: string, text: string): void {
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, text);
  }

  #link(target: string, path: string): void {
    mkdirSync(target, { recursive: true });
    mkdirSync(dirname(path), { recursive: true });
    symlinkSync(target, path);
  }

  close(): void {
    rmSync(this.#root, { recursive: true });
  }
}
