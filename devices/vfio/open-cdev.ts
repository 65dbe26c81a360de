// Opening a device through its character device and /dev/iommu: the iommufd that devices of one machine share, its one I/O address space
// with all guest RAM, its page tables. The counterpart of open-group.ts. Called by open-device.ts on the JS thread; every failure is one
// VmmError line that names the remedy, with everything put back.
// Documentation/driver-api/vfio.rst ("VFIO device cdev"), Documentation/userspace-api/iommufd.rst
import { join } from 'node:path';
import { SysError, VmmError } from '../../native/errno.ts';
import type { DeviceHost, RamRange } from '../contract.ts';
import { cdevOf, nameOfFd } from './cdev-path.ts';
import { deviceOnFd } from './device-fd.ts';
import { checkIovaRanges, checkPinning } from './host-limits.ts';
import { availableBytes, type Bdf, groupBlockers, lockableBytes } from './host-pci.ts';
import {
  allocHwpt,
  attachDevice,
  bindDevice,
  destroyObject,
  type HwTracking,
  hwTracking,
  Ioas,
  type IommufdDoor,
} from './iommufd-dma.ts';
import type { HostPaths, KernelDoor } from './kernel-door.ts';
import { HwptDirty } from './migration/iommufd-dirty.ts';
import { type AbiWish, ANY_ABI } from './migration/probe-abi.ts';
import { type BoundDevice, checkBound, notViable, openFile } from './open-checks.ts';
import type { ContainerDirtyPort, DmaSpace, OpenedDevice, VfioTransport } from './transport.ts';

/** What the machine gives: its RAM, and KVM's ear for device fds. */
export type IommufdHost = Pick<DeviceHost, 'ram' | 'memory' | 'kvmVfio' | 'log'>;

export interface IommufdParts {
  readonly door: KernelDoor;
  readonly paths: HostPaths;
  readonly host: IommufdHost;
  /** An open /dev/iommu from outside: used, emptied at the end, and left open. null: /dev/iommu is opened here. */
  readonly given: number | null;
}

/** One of them, or both: the address of a device, an open character device from outside (it is this process's from now on). */
export interface CdevWish {
  readonly bdf: Bdf | null;
  readonly fd: number | null;
}

interface Place {
  readonly name: string;
  /** null: given as an fd. */
  readonly path: string | null;
  readonly pci: BoundDevice | null;
}

/** A hwpt over the IOAS. */
interface PageTable {
  readonly id: number;
  readonly dirty: ContainerDirtyPort | null;
}

/** null for both: a device with an emulated IOMMU, attached to the IOAS itself. */
interface Attached {
  readonly table: PageTable | null;
  readonly tracking: HwTracking;
}

/** Not in Node's list. asm-generic/errno.h */
const EBADFD = 77;

/** What comes from outside: the device's fd, or null, and the wish for its migration interface. */
interface Given {
  readonly given: number | null;
  readonly abi: AbiWish;
}

type Undo = (() => void | Promise<void>)[];

/** Everything that the devices of one machine with one iommufd share. Opened with the first of them, emptied with the last. */
export class Iommufd {
  readonly #door: KernelDoor;
  readonly #paths: HostPaths;
  readonly #host: IommufdHost;
  readonly #given: number | null;
  readonly #open = new Set<string>();
  #on: IommufdDoor | null = null;
  #ioas: Ioas | null = null;
  #tables: PageTable[] = [];
  #mapped: RamRange[] = [];
  #users = 0;
  #turn: Promise<void> = Promise.resolve();

  constructor({ door, paths, host, given }: IommufdParts) {
    this.#door = door;
    this.#paths = paths;
    this.#host = host;
    this.#given = given;
  }

  /** One after the other: the second device of a machine finds RAM mapped by the first. */
  open(wish: CdevWish, abi: AbiWish = ANY_ABI): Promise<OpenedDevice> {
    return this.#inTurn(() => this.#openNext(wish, abi));
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const done = this.#turn.then(work);
    this.#turn = done.then(
      () => undefined,
      () => undefined,
    );
    return done;
  }

  async #openNext(wish: CdevWish, abi: AbiWish): Promise<OpenedDevice> {
    const place = this.#find(wish);
    // The kernel refuses the second bond with EINVAL, which would say less.
    if (this.#open.has(place.name)) {
      throw new VmmError('vfio-twice', `${place.name} is given twice; leave one of the two --device`);
    }
    const undo: Undo = [];
    try {
      return await this.#openSteps(place, { given: wish.fd, abi }, undo);
    } catch (error) {
      for (const step of undo.reverse()) await step();
      if (!(error instanceof SysError)) throw error;
      const { syscall, code } = error;
      throw new VmmError('vfio-open', `${place.name}: ${syscall} failed (${code}): see dmesg`, { cause: error });
    }
  }

  async #openSteps(place: Place, { given, abi }: Given, undo: Undo): Promise<OpenedDevice> {
    // Last to go: a page table cannot be given back while a device is attached to it.
    this.#users += 1;
    undo.push(() => this.#leave());
    const fd = given ?? openFile(place.path ?? '', place.name, BIND_FIRST);
    undo.push(() => this.#door.closeFd(fd));
    const on = this.#openIommufd(place);
    // Before BIND, which takes the VM's reference for the driver; taken back by the same fd, so before that is closed.
    this.#host.kvmVfio.add(fd);
    undo.push(() => this.#host.kvmVfio.remove(fd));
    const device = await this.#bind(fd, on, place);
    const ioas = this.#openIoas(on);
    const attached = await this.#attach(fd, device, { on, ioas, place });
    const { ranges, alignment } = ioas.reach();
    checkIovaRanges(this.#host.memory.ranges, ranges);
    await this.#mapRam(ioas);
    const { device: transport } = await deviceOnFd({
      kind: 'cdev',
      name: place.name,
      door: this.#door,
      fd,
      wish: abi,
      tracks: true,
      closing: () => this.#host.kvmVfio.remove(fd),
      closed: () =>
        this.#inTurn(() => {
          this.#open.delete(place.name);
          return this.#leave();
        }),
    });
    this.#open.add(place.name);
    this.#sayTracking(transport, attached);
    const dma: DmaSpace = {
      pageSizes: alignment,
      iovaRanges: ranges,
      map: (range) => ioas.map(range),
      unmap: (range) => ioas.unmap(range),
      dirty: attached.table?.dirty ?? null,
      peers: null,
    };
    return { transport, dma };
  }

  /** Checks, without touching the device, that it can be opened. */
  #find({ bdf, fd }: CdevWish): Place {
    const of = fd === null ? null : nameOfFd(this.#paths, fd);
    if (of !== null && bdf !== null && of !== bdf && !of.startsWith('fd ')) {
      throw new VmmError(
        'device-fd',
        `fd=${fd} of --device is ${of}, not ${bdf}: give the fd of the device that host= names`,
      );
    }
    if (bdf === null) return { name: of ?? '', path: null, pci: null };
    if (fd !== null) return { name: bdf, path: null, pci: null };
    const pci = checkBound(this.#paths, bdf);
    const path = cdevOf(this.#paths, bdf);
    if (path === null) {
      throw new VmmError(
        'no-cdev',
        `${bdf} has no character device under /dev/vfio/devices: this kernel's VFIO makes none (CONFIG_VFIO_DEVICE_CDEV, Linux 6.6); leave iommufd= away to use its IOMMU group`,
      );
    }
    return { name: bdf, path, pci };
  }

  #openIommufd(place: Place): IommufdDoor {
    if (this.#on !== null) return this.#on;
    const path = join(this.#paths.dev, 'iommu');
    const fd = this.#given ?? openFile(path, place.name, 'load it with `modprobe iommufd` (CONFIG_IOMMUFD)');
    this.#on = { door: this.#door, fd };
    return this.#on;
  }

  #openIoas(on: IommufdDoor): Ioas {
    if (this.#ioas !== null) return this.#ioas;
    this.#ioas = Ioas.alloc(on);
    return this.#ioas;
  }

  async #bind(fd: number, on: IommufdDoor, place: Place): Promise<number> {
    try {
      return await bindDevice(this.#door, fd, on.fd);
    } catch (cause) {
      throw this.#refusedBond(cause, place);
    }
  }

  #refusedBond(cause: unknown, { name, path, pci }: Place): unknown {
    if (!(cause instanceof SysError)) return cause;
    const refuse = (code: string, why: string) => new VmmError(code, `${name}: ${why}`, { cause });
    const used = path === null ? 'the same character device' : `\`fuser -v ${path}\` names it, or another of its group`;
    switch (cause.code) {
      case 'EBUSY':
        if (pci !== null && groupBlockers(this.#paths, pci.group).length > 0) return notViable(this.#paths, pci);
        return refuse('vfio-busy', `its IOMMU group is in use by another process or driver (${used})`);
      case 'EINVAL':
        return refuse('vfio-busy', `it is in use by another process (${used})`);
      case 'EPERM':
        return refuse(
          'set-iommu',
          'the IOMMU cannot remap interrupts here: enable interrupt remapping in the firmware, or, accepting the risk, load iommufd with allow_unsafe_interrupts=1',
        );
      case 'EBADF':
      case `errno ${EBADFD}`:
        return refuse('object-fd', `fd=${this.#given} of --object is no open /dev/iommu: the parent must pass one on`);
      case 'ENOTTY':
        return refuse('device-fd', 'this is no VFIO character device: pass an open /dev/vfio/devices/vfioN');
      default:
        return cause;
    }
  }

  /** To a page table that is there already, else to a new one; a device with an emulated IOMMU to the IOAS itself. */
  async #attach(fd: number, device: number, at: { on: IommufdDoor; ioas: Ioas; place: Place }): Promise<Attached> {
    const { on, ioas, place } = at;
    const tracking = hwTracking(on, device);
    const bytes = this.#ramBytes();
    try {
      if (tracking === 'emulated') {
        await attachDevice(this.#door, fd, ioas.id, bytes);
        return { table: null, tracking };
      }
      for (const table of this.#tables) {
        // One that tracks must not be given up for one that does not.
        if (tracking === 'yes' && table.dirty === null) continue;
        if (await this.#fits(fd, table)) return { table, tracking };
      }
      const table = await this.#newTable(on, { device, ioas: ioas.id, tracking: tracking !== 'no', bytes });
      await attachDevice(this.#door, fd, table.id, bytes);
      return { table, tracking };
    } catch (cause) {
      if (!(cause instanceof SysError) || !['EINVAL', 'EADDRINUSE'].includes(cause.code)) throw cause;
      throw new VmmError(
        'iommufd-attach',
        `${place.name}: ${cause.syscall} failed (${cause.code}): if guest RAM lies where its IOMMU reserves addresses (/sys/kernel/iommu_groups/*/reserved_regions), give the guest less with --memory; else see dmesg`,
        { cause },
      );
    }
  }

  /** EINVAL: the table is for another kind of IOMMU. linux/iommufd.h, IOMMU_HWPT_ALLOC */
  async #fits(fd: number, table: PageTable): Promise<boolean> {
    try {
      await attachDevice(this.#door, fd, table.id, this.#ramBytes());
      return true;
    } catch (error) {
      if (error instanceof SysError && error.code === 'EINVAL') return false;
      throw error;
    }
  }

  async #newTable(on: IommufdDoor, wish: Parameters<typeof allocHwpt>[1]): Promise<PageTable> {
    let id: number;
    let tracking = wish.tracking;
    try {
      id = await allocHwpt(on, wish);
    } catch (error) {
      if (!tracking || !(error instanceof SysError) || error.code !== 'EOPNOTSUPP') throw error;
      tracking = false;
      id = await allocHwpt(on, { ...wish, tracking });
    }
    const table = { id, dirty: tracking ? new HwptDirty(on, id, wish.bytes) : null };
    this.#tables.push(table);
    return table;
  }

  /** Once, when the device is opened, not at each migration. A device that logs by itself does not need the IOMMU's help. */
  #sayTracking(transport: VfioTransport, { table, tracking }: Attached): void {
    if (table !== null && table.dirty !== null) return;
    const why =
      tracking === 'emulated'
        ? 'its IOMMU is emulated by its driver, and iommufd tracks no dirty pages there'
        : "this host's IOMMU tracks no dirty pages (IOMMU_HWPT_ALLOC_DIRTY_TRACKING)";
    const message = `${transport.name}: ${why}: without a DMA log of its own all guest RAM counts as dirty at the end of a migration`;
    const matters = transport.migration !== null && transport.dmaLog === null;
    this.#host.log[matters ? 'warn' : 'info']({}, message);
  }

  /** Once for all devices: what joins later shares the IOAS. */
  async #mapRam(ioas: Ioas): Promise<void> {
    if (this.#mapped.length > 0) return;
    const { ram, memory } = this.#host;
    const lockable = lockableBytes(this.#paths);
    checkPinning({
      ramBytes: this.#ramBytes(),
      residentBytes: ram.resident(),
      lockableBytes: lockable,
      availableBytes: availableBytes(this.#paths),
    });
    for (const range of memory.ranges) {
      try {
        await ioas.map(range);
      } catch (cause) {
        if (!(cause instanceof SysError)) throw cause;
        throw mapError(range, cause, lockable);
      }
      this.#mapped.push(range);
    }
  }

  #ramBytes(): number {
    return this.#host.memory.ranges.reduce((sum, range) => sum + range.size, 0);
  }

  /** Everything in order, on native threads: closing the last fd would unpin all RAM on the JS thread, and a given iommufd stays open. */
  async #leave(): Promise<void> {
    this.#users -= 1;
    const on = this.#on;
    if (this.#users > 0 || on === null) return;
    for (const range of this.#mapped.splice(0)) await this.#ioas?.unmap(range);
    for (const table of this.#tables.splice(0)) await destroyObject(on, table.id, this.#ramBytes());
    if (this.#ioas !== null) await destroyObject(on, this.#ioas.id, this.#ramBytes());
    this.#ioas = null;
    this.#on = null;
    if (this.#given === null) this.#door.closeFd(on.fd);
  }
}

const BIND_FIRST = 'run `ferry vfio bind` for it again';

/** iommufd counts what a user has pinned in all, not a process: the limit may be enough for this guest and yet be reached. */
function mapError(range: RamRange, cause: SysError, lockable: number | null): VmmError {
  const ram = `guest RAM at 0x${range.gpa.toString(16)} (${range.size / 2 ** 20} MiB) cannot be mapped for DMA (${cause.code})`;
  const why =
    cause.code === 'ENOMEM' && lockable !== null
      ? `the locked memory of this user, all its guests together, is limited to ${Math.floor(lockable / 2 ** 20)} MiB: raise \`ulimit -l\`, or run as root`
      : 'see dmesg';
  return new VmmError('dma-map', `${ram}: ${why}`, { cause });
}
