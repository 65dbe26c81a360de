// Options that `ferry run` and `ferry receive` share, and the help for devices. Called by both verbs.
import { createRegistry, type DeviceRegistry } from '../devices/registry.ts';
import { HOST_PATHS, type KernelDoor } from '../devices/vfio/kernel-door.ts';
import { createVfioPciType } from '../devices/vfio/pci-type.ts';
import { kvmNode } from '../native/addon.ts';
import { parseObjects } from '../vmm/object-syntax.ts';
import type { OptionTable } from './options.ts';

export const SHARED_OPTIONS: OptionTable = {
  device: {
    kind: 'list',
    value: 'SPEC',
    help: "a device in QEMU's -device syntax (or JSON), may be repeated:\nvfio-pci,host=0000:65:00.0[,id=...][,addr=...]; 'help' lists all,\n'vfio-pci,help' the properties of one",
  },
  object: {
    kind: 'list',
    value: 'SPEC',
    help: "in QEMU's -object syntax, may be repeated: iommufd,id=ID[,fd=N], for\ndevices with iommufd=ID; N: an open /dev/iommu that was inherited",
  },
  plugin: { kind: 'list', value: 'FILE', help: 'a JavaScript file that adds a device type (docs/plugins.md)' },
  serial: {
    kind: 'value',
    value: 'WHERE',
    help: 'the console: stdio (default; on a terminal Ctrl-A x ends), file:PATH,\nunix:PATH or none',
  },
  control: { kind: 'value', value: 'unix:PATH', help: 'QMP socket: for ferry migrate, ferry status and your tools' },
  clock: {
    kind: 'value',
    value: 'POLICY',
    help: "stop (default): the guest's clock stands still in a pause; catch-up: it jumps",
  },
  accel: {
    kind: 'value',
    value: 'SPEC',
    help: "kvm[,dirty-ring-size=N][,dirty-log=bitmap|manual]: how written pages are found\nduring a migration: KVM's bitmap (default), the bitmap cleared in pieces,\nor a ring of N pages a vCPU (1024 to 65536)",
  },
  preallocate: { kind: 'flag', value: '', help: 'back all guest RAM before the start' },
  'vfio-trace': {
    kind: 'value',
    value: 'FILE',
    help: 'write every VFIO and iommufd call into FILE (see ferry vfio trace --help)',
  },
  'log-level': {
    kind: 'value',
    value: 'LEVEL',
    help: 'trace, debug, info, warn (default), error or silent; on stderr',
  },
};

/** The kernel as the devices see it; with `trace`, every call is written into that file. Loaded only then: most starts need none of it. */
export async function openDoor(trace: string | null, program: readonly string[]): Promise<KernelDoor> {
  if (trace === null) return kvmNode();
  const { OWN_TRACE_NOTES, TracingDoor } = await import('../devices/vfio/trace/tracing-door.ts');
  const { TraceWriter } = await import('../devices/vfio/trace/trace-writer.ts');
  const sink = new TraceWriter(trace, { program, data: false, notes: OWN_TRACE_NOTES });
  return new TracingDoor(kvmNode(), { sink, paths: HOST_PATHS, data: false });
}

/** `traced`: the door writes down what goes through it, so all must. */
export async function openRegistry(
  plugins: readonly string[],
  objects: readonly string[],
  { door, traced }: { readonly door: KernelDoor; readonly traced: boolean },
): Promise<DeviceRegistry> {
  const parts = { door, paths: HOST_PATHS, vcpuAccess: !traced, objects: parseObjects(objects), open: null };
  const registry = createRegistry([createVfioPciType(parts)]);
  for (const file of plugins) await registry.loadPlugin(file);
  return registry;
}

/** Text for `--device help` or `--device NAME,help`; null when no help was asked for. */
export function deviceHelp(devices: readonly string[], registry: DeviceRegistry): string | null {
  for (const text of devices) {
    if (text === 'help' || text === '?') return registry.help();
    const match = /^([^,]+),(help|\?)$/.exec(text);
    const found = match === null ? null : registry.helpFor(match[1] ?? '');
    if (found !== null) return found;
  }
  return null;
}
