// The device type 'vfio-pci' with QEMU's property names: opens the device, puts the guest-visible function together.
// Registered by the machine's registry; create() is called once per -device. One container per machine is shared by all of them.
// QEMU: `-device vfio-pci,help`; ours are x-device-log, x-switchover-time, x-stop-copy-size, x-migration-abi, split and require-validated.
import { VmmError } from '../../native/errno.ts';
import type { DeviceHost, DeviceType, DirtySource, Migratable, PropertySpec, PropertyValue } from '../contract.ts';
import { type Bdf, parseBdf, parseSysfsDevice } from './host-pci.ts';
import type { HostPaths, KernelDoor } from './kernel-door.ts';
import { AllOfRam, ContainerDirty } from './migration/container-dirty.ts';
import { Immovable, VfioLive } from './migration/device-state.ts';
import { DmaLog } from './migration/dma-log.ts';
import { ABI_CHOICES, type AbiWish } from './migration/probe-abi.ts';
import { RegionDirty } from './migration/region-dirty.ts';
import { DeviceOpener, type IommufdObject } from './open-device.ts';
import { VfioPciFunction } from './pci-function.ts';
import { PeerBars } from './peer-bars.ts';
import { forceReset } from './reset.ts';
import type { ContainerDirtyPort, DmaSpace, OpenedDevice, PeerDmaPort, VfioTransport } from './transport.ts';

const PAGE = 4096;
/** Measured: edu needs 0.2-0.3 s (its DMA engine takes 100 ms a transfer). Others say theirs by the property. */
const DEFAULT_FIXED_MS = 300;

const text = (help: string): PropertySpec => ({ kind: 'string', required: false, help });
const flag = (help: string): PropertySpec => ({ kind: 'boolean', required: false, help });

const PROPERTIES: Readonly<Record<string, PropertySpec>> = {
  host: text('PCI address on this host: 0000:65:00.0'),
  sysfsdev: text("the device's directory in sysfs, instead of host=; a mediated device (mdev) has no other name"),
  iommufd: text(
    'id of an --object iommufd, or on, off, auto (default: on where the kernel has no VFIO group for the device)',
  ),
  fd: {
    kind: 'number',
    required: false,
    help: 'an open /dev/vfio/devices/vfioN that was passed to this process, instead of host=',
  },
  'x-no-mmap': flag('trap every BAR access instead of mapping BARs into the guest (slow; for debugging)'),
  'enable-migration': text('on, off or auto (default): off forbids to move the guest'),
  'x-device-log': flag("off: do not use the device's own log of its DMA writes, but the IOMMU container's dirty pages"),
  'x-migration-abi': text(
    `the migration interface that the device speaks, where what is found is wrong: ${ABI_CHOICES.join(', ')}`,
  ),
  split: flag('on: commit chunks in pieces that are larger than this host’s device takes at once (older interfaces)'),
  'require-validated': flag(
    'on: do not take a device whose driver judges its state only after the hand-over (older migration interfaces)',
  ),
  'x-switchover-time': {
    kind: 'number',
    required: false,
    help: `milliseconds that the device needs at switch-over beyond its bytes (default ${DEFAULT_FIXED_MS})`,
  },
  'x-stop-copy-size': {
    kind: 'size',
    required: false,
    help: 'bytes of device state to expect where the driver cannot say (kernels before 6.2)',
  },
};

/** What the passed-through devices of one machine have in common. */
interface Shared {
  readonly opener: DeviceOpener;
  /** By what reports the pages: all devices of the container, or of one IOMMU page table, share a source. null: nothing does. */
  readonly iommuDirty: Map<ContainerDirtyPort | null, DirtySource>;
  /** By what their DMA goes through: the devices that share it reach each other. */
  readonly peers: Map<PeerDmaPort, PeerBars>;
  devices: number;
}

export interface VfioPciTypeParts {
  readonly door: KernelDoor;
  readonly paths: HostPaths;
  /** false: all that is asked of a device must go through `door` (it writes a trace), and no access past it from a vCPU thread. */
  readonly vcpuAccess: boolean;
  /** Of --object. */
  readonly objects: readonly IommufdObject[];
  /** Opens another kind of transport: tests. null: /dev/vfio. */
  readonly open: ((bdf: Bdf, host: DeviceHost) => Promise<{ transport: VfioTransport; dma: DmaSpace | null }>) | null;
}

export function createVfioPciType({ door, paths, vcpuAccess, objects, open }: VfioPciTypeParts): DeviceType {
  const machines = new WeakMap<DeviceHost, Shared>();
  const sharedOf = (host: DeviceHost): Shared => {
    const known = machines.get(host);
    if (known !== undefined) return known;
    const opener = new DeviceOpener(door, paths, host, objects);
    const made: Shared = { opener, iommuDirty: new Map(), peers: new Map(), devices: 0 };
    machines.set(host, made);
    return made;
  };
  return {
    name: 'vfio-pci',
    help: 'a PCI device of this host, given to the guest by VFIO (bind it first: `ferry vfio bind ADDRESS`)',
    properties: PROPERTIES,
    async create(host, id, properties) {
      const shared = sharedOf(host);
      const { transport, dma } =
        open === null ? await openWith(shared.opener, properties) : await open(addressOf(properties), host);
      try {
        const peers = peersOf(host, shared, dma?.peers ?? null);
        const dirty = dirtyOf({ host, door, shared, transport, dma, properties, peers });
        const device = new VfioPciFunction({
          host,
          id,
          transport,
          dirty,
          mmap: properties['x-no-mmap'] !== true,
          vcpuAccess,
          peers,
          live: (made) => liveOf({ device: made, transport, shared, properties, peers }),
          closed: () => {
            shared.devices -= 1;
          },
        });
        shared.devices += 1;
        return device;
      } catch (error) {
        await transport.close();
        throw error;
      }
    },
  };
}

async function openWith(
  opener: DeviceOpener,
  properties: Readonly<Record<string, PropertyValue>>,
): Promise<OpenedDevice> {
  const { host, sysfsdev, fd, iommufd } = properties;
  const alone = typeof fd === 'number' && host === undefined && sysfsdev === undefined;
  const wish = {
    bdf: alone ? null : addressOf(properties),
    fd: typeof fd === 'number' ? judgeFd(fd) : null,
    iommufd: typeof iommufd === 'string' ? iommufd : null,
  };
  return opener.open(wish, wishOf(properties));
}

function judgeFd(fd: number): number {
  if (Number.isSafeInteger(fd) && fd > 2) return fd;
  throw new VmmError('device-property', `fd=${fd} of --device: 3 or more is wanted, 0 to 2 are the console's`);
}

function addressOf(properties: Readonly<Record<string, PropertyValue>>): Bdf {
  const { host, sysfsdev } = properties;
  if (typeof host === 'string' && sysfsdev === undefined) return parseBdf(host);
  if (typeof sysfsdev === 'string' && host === undefined) {
    return parseSysfsDevice(sysfsdev);
  }
  throw new VmmError(
    'device-property',
    'vfio-pci needs host=ADDRESS (or sysfsdev=PATH, or fd=N), for example host=0000:65:00.0',
  );
}

function wishOf(properties: Readonly<Record<string, PropertyValue>>): AbiWish {
  const asked = properties['x-migration-abi'] ?? 'auto';
  const abi = ABI_CHOICES.find((choice) => choice === asked);
  if (abi === undefined) {
    throw new VmmError('device-property', `x-migration-abi=${asked}: one of ${ABI_CHOICES.join(', ')} is wanted`);
  }
  return { abi, split: properties['split'] === true };
}

function peersOf(host: DeviceHost, shared: Shared, port: PeerDmaPort | null): PeerBars | null {
  if (port === null) return null;
  const known = shared.peers.get(port);
  if (known !== undefined) return known;
  const made = new PeerBars({ port, log: host.log });
  shared.peers.set(port, made);
  return made;
}

interface DirtyParts {
  readonly host: DeviceHost;
  readonly door: KernelDoor;
  readonly shared: Shared;
  readonly transport: VfioTransport;
  readonly dma: DmaSpace | null;
  readonly properties: Readonly<Record<string, PropertyValue>>;
  readonly peers: PeerBars | null;
}

/** The device's log or what its migration region tells, else the container's or the IOMMU's pages, else all of RAM. */
function dirtyOf({ host, door, shared, transport, dma, properties, peers }: DirtyParts): DirtySource {
  const ram = host.memory.ranges;
  const newBitmap = () => door.createBitmap(host.ram.size / PAGE);
  const port = dma?.dirty ?? null;
  let others = shared.iommuDirty.get(port);
  if (others === undefined) {
    others = port === null ? new AllOfRam(ram) : new ContainerDirty(port, ram, newBitmap);
    shared.iommuDirty.set(port, others);
  }
  if (properties['x-device-log'] === false) return others;
  if (transport.dmaLog !== null) {
    const log = new DmaLog({
      port: transport.dmaLog,
      ram,
      newBitmap,
      fallback: others,
      bars: () => peers?.ranges ?? [],
    });
    // It may fail: its reports do, too, then, and all of RAM is dirty.
    peers?.onChange(() => {
      log
        .reachChanged()
        .catch((err) => host.log.warn({ err }, `${transport.name}: its DMA log could not follow a BAR`));
    });
    return log;
  }
  const region = transport.migration?.dirtyPages ?? null;
  return region === null ? others : new RegionDirty(region, ram, newBitmap, others);
}

interface LiveParts {
  readonly device: VfioPciFunction;
  readonly transport: VfioTransport;
  readonly shared: Shared;
  readonly properties: Readonly<Record<string, PropertyValue>>;
  readonly peers: PeerBars | null;
}

function liveOf({ device, transport, shared, properties, peers }: LiveParts): Migratable {
  const port = transport.migration;
  if (port === null) {
    return new Immovable(
      `${transport.name} cannot be migrated: its driver offers no VFIO migration; bind the vendor's VFIO driver with \`ferry vfio bind ${transport.name} --driver NAME\``,
    );
  }
  const { 'x-switchover-time': fixed, 'x-stop-copy-size': size } = properties;
  const recoverable = {
    name: transport.name,
    port,
    log: device.resetHost.log,
    reset: () => forceReset(device.resetHost),
    rearm: () => device.rearm(),
  };
  return new VfioLive(recoverable, {
    fixedDowntimeMs: typeof fixed === 'number' ? fixed : DEFAULT_FIXED_MS,
    stopCopySize: typeof size === 'number' ? size : null,
    disabled: properties['enable-migration'] === 'off',
    requireValidated: properties['require-validated'] === true,
    deviceCount: () => shared.devices,
    peersMapped: async () => peers?.settled(),
  });
}
