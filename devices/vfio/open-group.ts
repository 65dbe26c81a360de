// Opening a device through /dev/vfio/GROUP: the container that all vfio-pci devices of one machine share, its groups, the device fd.
// Called by pci-type.ts on the JS thread; every failure is one VmmError line that names the remedy. Nothing is ever rebound here.
// Documentation/driver-api/vfio.rst ("VFIO Usage Example"); linux/vfio.h
import { closeSync } from 'node:fs';
import { join } from 'node:path';
import {
  VFIO_API_VERSION,
  VFIO_CHECK_EXTENSION,
  VFIO_GET_API_VERSION,
  VFIO_GROUP_FLAGS_VIABLE,
  VFIO_GROUP_GET_DEVICE_FD,
  VFIO_GROUP_GET_STATUS,
  VFIO_GROUP_SET_CONTAINER,
  VFIO_GROUP_UNSET_CONTAINER,
  VFIO_SET_IOMMU,
  VFIO_TYPE1v2_IOMMU,
  vfio_group_status,
} from '../../native/abi/vfio.ts';
import { SysError, VmmError } from '../../native/errno.ts';
import type { DeviceHost, RamRange } from '../contract.ts';
import { deviceOnFd } from './device-fd.ts';
import { checkIovaRanges, checkPinning } from './host-limits.ts';
import { availableBytes, type Bdf, type HostPciDevice, lockableBytes } from './host-pci.ts';
import type { HostPaths, KernelDoor } from './kernel-door.ts';
import { type AbiWish, ANY_ABI } from './migration/probe-abi.ts';
import { type BoundDevice, checkOpenable, codeOf, LOAD_VFIO, notViable, openFile } from './open-checks.ts';
import type { DmaSpace, VfioTransport } from './transport.ts';
import { readType1Info, Type1Dma } from './type1-dma.ts';

/** What the machine gives: its RAM, and KVM's ear for group fds. */
export type ContainerHost = Pick<DeviceHost, 'ram' | 'memory' | 'kvmVfio'>;

export interface ContainerParts {
  readonly door: KernelDoor;
  readonly paths: HostPaths;
  readonly host: ContainerHost;
  /** Its devices are mediated ones: their DMA is done by software, page by page, and nothing is pinned beforehand. */
  readonly emulated: boolean;
}

interface Group {
  readonly number: number;
  readonly fd: number;
  users: number;
}

/** Everything that the passed-through devices of one machine share. Opened with the first of them, closed with the last. */
export class VfioContainer {
  readonly #door: KernelDoor;
  readonly #paths: HostPaths;
  readonly #host: ContainerHost;
  readonly #emulated: boolean;
  readonly #groups = new Map<number, Group>();
  readonly #open = new Set<Bdf>();
  #fd: number | null = null;
  #dma: DmaSpace | null = null;
  #mapped: RamRange[] = [];
  #turn: Promise<void> = Promise.resolve();

  constructor({ door, paths, host, emulated }: ContainerParts) {
    this.#door = door;
    this.#paths = paths;
    this.#host = host;
    this.#emulated = emulated;
  }

  /** Valid while a device is open. */
  get dma(): DmaSpace {
    if (this.#dma === null) throw new VmmError('vfio', 'the VFIO container is not open', { exitCode: 1 });
    return this.#dma;
  }

  /** One after the other: the second device of a machine finds RAM mapped by the first. */
  open(bdf: Bdf, wish: AbiWish = ANY_ABI): Promise<VfioTransport> {
    const opened = this.#turn.then(() => this.#openNext(bdf, wish));
    this.#turn = opened.then(
      () => undefined,
      () => undefined,
    );
    return opened;
  }

  async #openNext(bdf: Bdf, wish: AbiWish): Promise<VfioTransport> {
    // The kernel would hand out a second fd of the same device, and two models would then fight over its interrupts.
    if (this.#open.has(bdf)) throw new VmmError('vfio-twice', `${bdf} is given twice; leave one of the two --device`);
    const device = checkOpenable(this.#paths, bdf);
    const group = this.#openGroup(device);
    try {
      await this.#mapRam();
      return await this.#openDevice(bdf, group, wish);
    } catch (error) {
      await this.#leave(group);
      throw error;
    }
  }

  async #openDevice(bdf: Bdf, group: Group, wish: AbiWish): Promise<VfioTransport> {
    let fd: number;
    try {
      fd = this.#door.ioctl('VFIO_GROUP_GET_DEVICE_FD', group.fd, VFIO_GROUP_GET_DEVICE_FD, cString(bdf));
    } catch (cause) {
      throw new VmmError(
        'vfio-open',
        `${bdf} cannot be opened through /dev/vfio/${group.number} (${codeOf(cause)}): see dmesg`,
        {
          cause,
        },
      );
    }
    try {
      const { device: transport } = await deviceOnFd({
        kind: 'group',
        name: bdf,
        door: this.#door,
        fd,
        closing: null,
        wish,
        tracks: this.dma.dirty !== null,
        closed: () => {
          this.#open.delete(bdf);
          return this.#leave(group);
        },
      });
      this.#open.add(bdf);
      return transport;
    } catch (error) {
      this.#door.closeFd(fd);
      throw error;
    }
  }

  /** A group is opened once; its other functions share the fd (a second open gives EBUSY). */
  #openGroup(device: BoundDevice): Group {
    const known = this.#groups.get(device.group);
    if (known !== undefined) {
      known.users += 1;
      return known;
    }
    const path = join(this.#paths.dev, 'vfio', String(device.group));
    const fd = openFile(path, device.bdf, LOAD_VFIO);
    let attached = false;
    try {
      this.#checkViable(fd, device);
      const container = this.#openContainer();
      this.#door.ioctl('VFIO_GROUP_SET_CONTAINER', fd, VFIO_GROUP_SET_CONTAINER, int32(container));
      attached = true;
      if (this.#groups.size === 0) this.#setIommu(container, device);
      this.#host.kvmVfio.add(fd);
    } catch (error) {
      if (attached) this.#door.ioctl('VFIO_GROUP_UNSET_CONTAINER', fd, VFIO_GROUP_UNSET_CONTAINER, 0);
      closeSync(fd);
      if (this.#groups.size === 0) this.#closeContainer();
      throw error;
    }
    const group = { number: device.group, fd, users: 1 };
    this.#groups.set(device.group, group);
    return group;
  }

  #checkViable(fd: number, device: BoundDevice): void {
    const status = new Uint8Array(vfio_group_status.size);
    const view = new DataView(status.buffer);
    view.setUint32(vfio_group_status.argsz, status.length, true);
    this.#door.ioctl('VFIO_GROUP_GET_STATUS', fd, VFIO_GROUP_GET_STATUS, status);
    if ((view.getUint32(vfio_group_status.flags, true) & VFIO_GROUP_FLAGS_VIABLE) !== 0) return;
    throw notViable(this.#paths, device);
  }

  #openContainer(): number {
    if (this.#fd !== null) return this.#fd;
    const fd = openFile(join(this.#paths.dev, 'vfio/vfio'), 'VFIO', LOAD_VFIO);
    this.#fd = fd;
    const version = this.#door.ioctl('VFIO_GET_API_VERSION', fd, VFIO_GET_API_VERSION, 0);
    if (version !== VFIO_API_VERSION) {
      throw new VmmError(
        'vfio-version',
        `this kernel's VFIO has API version ${version}, ${VFIO_API_VERSION} is needed`,
      );
    }
    if (this.#door.ioctl('VFIO_CHECK_EXTENSION', fd, VFIO_CHECK_EXTENSION, VFIO_TYPE1v2_IOMMU) === 0) {
      throw new VmmError(
        'no-type1',
        'this kernel offers no VFIO type 1 IOMMU: load it with `modprobe vfio_iommu_type1`',
      );
    }
    return fd;
  }

  #setIommu(container: number, device: HostPciDevice): void {
    try {
      this.#door.ioctl('VFIO_SET_IOMMU', container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU);
    } catch (cause) {
      const why =
        cause instanceof SysError && cause.code === 'EPERM'
          ? 'the IOMMU cannot remap interrupts here: enable interrupt remapping in the firmware, or, accepting the risk, load vfio_iommu_type1 with allow_unsafe_interrupts=1'
          : `VFIO_SET_IOMMU failed (${codeOf(cause)}): see dmesg`;
      throw new VmmError('set-iommu', `${device.bdf}: ${why}`, { cause });
    }
    this.#dma = new Type1Dma(this.#door, container, readType1Info(this.#door, container), { coarse: !this.#emulated });
  }

  /** Once for all devices: a group that joins later gets the same mappings from the kernel. */
  async #mapRam(): Promise<void> {
    if (this.#mapped.length > 0) return;
    const { ram, memory } = this.#host;
    checkIovaRanges(memory.ranges, this.dma.iovaRanges);
    if (!this.#emulated) {
      checkPinning({
        ramBytes: memory.ranges.reduce((sum, range) => sum + range.size, 0),
        residentBytes: ram.resident(),
        lockableBytes: lockableBytes(this.#paths),
        availableBytes: availableBytes(this.#paths),
      });
    }
    for (const range of memory.ranges) {
      try {
        await this.dma.map(range);
      } catch (cause) {
        if (!(cause instanceof SysError)) throw cause;
        throw new VmmError(
          'dma-map',
          `guest RAM at 0x${range.gpa.toString(16)} (${range.size / 2 ** 20} MiB) cannot be mapped for DMA (${cause.code}): see dmesg`,
          { cause },
        );
      }
      this.#mapped.push(range);
    }
  }

  async #leave(group: Group): Promise<void> {
    group.users -= 1;
    if (group.users > 0) return;
    this.#groups.delete(group.number);
    if (this.#groups.size === 0) await this.#unmapRam();
    this.#host.kvmVfio.remove(group.fd);
    this.#door.ioctl('VFIO_GROUP_UNSET_CONTAINER', group.fd, VFIO_GROUP_UNSET_CONTAINER, 0);
    closeSync(group.fd);
    if (this.#groups.size === 0) this.#closeContainer();
  }

  /** Not left to UNSET_CONTAINER, which would unpin all RAM on the JS thread. */
  async #unmapRam(): Promise<void> {
    for (const range of this.#mapped.splice(0)) await this.dma.unmap(range);
  }

  #closeContainer(): void {
    this.#mapped = [];
    this.#dma = null;
    if (this.#fd !== null) closeSync(this.#fd);
    this.#fd = null;
  }
}

function int32(value: number): Uint8Array {
  const bytes = new Uint8Array(4);
  new DataView(bytes.buffer).setInt32(0, value, true);
  return bytes;
}

function cString(text: string): Uint8Array {
  return Buffer.from(`${text}\0`, 'latin1');
}
