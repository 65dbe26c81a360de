// `ferry vfio list|info|bind|unbind`: this host's PCI devices as a guest could have them (check: vfio-check.ts; trace and replay:
// vfio-trace.ts). bind and unbind are the only places where Ferry changes a driver binding; what was before is recorded and restored.
import { bindDevice, DEFAULT_VFIO_DRIVER, unbindDevice, writeSysfs } from '../devices/vfio/bind.ts';
import type { HostPciDevice } from '../devices/vfio/host-pci.ts';
import { HOST_PATHS } from '../devices/vfio/kernel-door.ts';
import { type DeviceOffer, type ListedDevice, listDevices, probeDevice } from '../devices/vfio/probe.ts';
import { VmmError } from '../native/errno.ts';
import { openDoor } from './machine-options.ts';
import { type OptionTable, optionHelp, type Parsed, parseOptions, type Verb, wantsHelp } from './options.ts';
import { bytes } from './report.ts';

const OPTIONS: OptionTable = {
  driver: {
    kind: 'value',
    value: 'NAME',
    help: `bind: the VFIO driver to give it to (default ${DEFAULT_VFIO_DRIVER})`,
  },
  json: { kind: 'flag', value: '', help: 'list, info: print JSON on stdout' },
  'vfio-trace': { kind: 'value', value: 'FILE', help: 'info: write every VFIO call into FILE' },
};

const HELP = `usage: ferry vfio list [--json]
       ferry vfio info ADDRESS [--json]
       ferry vfio bind ADDRESS [--driver NAME]
       ferry vfio unbind ADDRESS
       ferry vfio trace [-o FILE] [--data] -- COMMAND...
       ferry vfio trace --show FILE
       ferry vfio replay FILE [--json]
       ferry vfio check ADDRESS (see ferry vfio check --help)

  list     PCI devices of this host: driver, IOMMU group, and what else is in the group
  info     opens the device (bound to a VFIO driver, and free) and says what it offers for migration
  bind     gives the device to a VFIO driver, so that a guest can have it; the driver it had is recorded under /run/ferry
  check    holds the device's migration driver to what linux/vfio.h says
  unbind   clears driver_override and gives the device back to the driver that it had
  trace    shows or records every VFIO and iommufd call of a program: ferry vfio trace --help
  replay   plays a recorded trace back to Ferry's own code, with no device: ferry vfio replay --help

  ADDRESS  a PCI address: 0000:65:00.0 or 65:00.0; info: also a mediated device, /sys/bus/mdev/devices/UUID

${optionHelp(OPTIONS)}

Binding needs root. 'ferry run' itself never changes a binding.
`;

const hex = (value: number, digits: number) => value.toString(16).padStart(digits, '0');

function describe(device: HostPciDevice): string {
  const driver = device.driver ?? 'no driver';
  const group = device.group === null ? 'no IOMMU group' : `group ${device.group}`;
  return `${device.bdf}  ${hex(device.vendor, 4)}:${hex(device.device, 4)}  ${driver.padEnd(18)} ${group}`;
}

function listText(devices: readonly ListedDevice[]): string {
  return devices
    .map((device) => {
      const others = device.groupOthers.length === 0 ? '' : `  (with ${device.groupOthers.join(', ')})`;
      const taken = device.takenFrom === null ? '' : `  (had ${device.takenFrom})`;
      return `${describe(device)}${others}${taken}\n`;
    })
    .join('');
}

function iommufdText({ cdev, iommufd, dirtyTracking, note }: DeviceOffer['iommufd']): string {
  const there = `${cdev ?? 'no character device'}, ${iommufd ? '/dev/iommu' : 'no /dev/iommu'}`;
  const tracking =
    dirtyTracking === null ? `unknown${note === null ? '' : ` (${note})`}` : dirtyTracking ? 'yes' : 'no';
  return `${there}; dirty pages by the IOMMU: ${tracking}`;
}

export function offerText(offer: DeviceOffer): string {
  const lines = [describe(offer.device)];
  for (const region of offer.info.regions.filter(({ size }) => size > 0)) {
    const areas = region.areas.length === 0 ? 'trapped' : `${region.areas.length} mappable area(s)`;
    lines.push(`  region ${region.index}: ${bytes(region.size)}, ${areas}`);
  }
  for (const irq of offer.info.irqs.filter(({ count }) => count > 0))
    lines.push(`  irq index ${irq.index}: ${irq.count} vector(s)`);
  const sizes = [12, 21, 30].filter((bit) => (offer.iommu.pageSizes >> BigInt(bit)) & 1n).map((bit) => bytes(2 ** bit));
  lines.push(
    `  IOMMU page sizes: ${sizes.join(', ')}; dirty pages by the container: ${offer.iommu.dirtyPages ? 'yes' : 'no'}`,
  );
  lines.push(`  iommufd: ${iommufdText(offer.iommufd)}`);
  for (const range of offer.iommu.iovaRanges) {
    lines.push(`  IOVA 0x${hex(range.start, 1)}-0x${hex(range.start + range.length - 1, 1)}`);
  }
  if (offer.migration !== null) {
    const size =
      offer.migration.stopCopySize === null ? 'unknown size' : `about ${bytes(offer.migration.stopCopySize)}`;
    lines.push(`  migration: ${offer.migration.abi}, ${offer.migration.flags.join(' ')}, ${size} when stopped`);
  }
  for (const fact of offer.migrationFacts) lines.push(`    ${fact}`);
  lines.push(`  log of its own DMA: ${offer.dmaLog ? 'yes' : 'no'}`);
  lines.push(
    offer.blocker === null ? '  a guest with it can be moved' : `  a guest with it cannot be moved: ${offer.blocker}`,
  );
  return `${lines.join('\n')}\n`;
}

async function act(parsed: Parsed): Promise<void> {
  const [action, address, ...rest] = parsed.words;
  const host = { paths: HOST_PATHS, write: writeSysfs };
  const json = parsed.flag('json');
  if (action === 'list' && address === undefined) {
    const devices = listDevices(HOST_PATHS);
    process.stdout.write(json ? `${JSON.stringify(devices)}\n` : listText(devices));
    return;
  }
  if (address === undefined || rest.length > 0 || !['info', 'bind', 'unbind'].includes(action ?? '')) {
    throw new VmmError(
      'usage',
      'ferry vfio: list, info ADDRESS, bind ADDRESS, unbind ADDRESS, trace or replay FILE is wanted; see ferry vfio --help',
    );
  }
  if (action === 'info') {
    const offer = await probeDevice(
      await openDoor(parsed.value('vfio-trace'), ['ferry', 'vfio', 'info', address]),
      HOST_PATHS,
      address,
    );
    process.stdout.write(json ? `${JSON.stringify(offer, bigintsAsText)}\n` : offerText(offer));
  } else if (action === 'bind') {
    process.stderr.write(`${describe(bindDevice(host, address, parsed.value('driver') ?? DEFAULT_VFIO_DRIVER))}\n`);
  } else process.stderr.write(`${describe(unbindDevice(host, address))}\n`);
}

export function bigintsAsText(_key: string, value: unknown): unknown {
  return typeof value === 'bigint' ? `0x${value.toString(16)}` : value;
}

export const vfioVerb: Verb = {
  summary: 'list host devices, bind one for a guest, put it back',
  help: () => HELP,
  async run(args) {
    // Before the options: what follows belongs to the traced command.
    if (args[0] === 'trace') return (await import('./vfio-trace.ts')).traceCommand(args.slice(1));
    if (args[0] === 'replay') return (await import('./vfio-trace.ts')).replayCommand(args.slice(1));
    // Options of its own, and much code that the others do not need.
    if (args[0] === 'check') return (await import('./vfio-check.ts')).checkDevice(args.slice(1));
    if (args[0] === 'check-child') return (await import('./vfio-check.ts')).checkChild(args.slice(1));
    if (wantsHelp(args)) {
      process.stdout.write(HELP);
      return 0;
    }
    await act(parseOptions('vfio', OPTIONS, args));
    return 0;
  },
};
