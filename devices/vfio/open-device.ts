// Which way a device of --device is opened, and the openers that the devices of one machine share: the container of /dev/vfio/GROUP and
// an iommufd for each --object (and one without a name). Called by pci-type.ts on the JS thread. docs/iommufd.md says why the choice is so.
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { VmmError } from '../../native/errno.ts';
import type { DeviceHost } from '../contract.ts';
import { cdevOf } from './cdev-path.ts';
import { type Bdf, isMediated, readHostPci } from './host-pci.ts';
import type { HostPaths, KernelDoor } from './kernel-door.ts';
import { type AbiWish, ANY_ABI } from './migration/probe-abi.ts';
import { Iommufd } from './open-cdev.ts';
import { VfioContainer } from './open-group.ts';
import type { OpenedDevice } from './transport.ts';

/** `--object iommufd,id=ID[,fd=N]`. */
export interface IommufdObject {
  readonly id: string;
  /** An open /dev/iommu that this process inherited; null: it is opened when a device needs it. */
  readonly fd: number | null;
}

/** Values of iommufd= that are no ids of objects. */
export const IOMMUFD_WORDS: readonly string[] = ['on', 'off', 'auto'];

export interface OpenWish {
  readonly bdf: Bdf | null;
  /** An open character device that this process inherited. */
  readonly fd: number | null;
  /** iommufd= as given: the id of an object, or one of IOMMUFD_WORDS. */
  readonly iommufd: string | null;
}

/** 'group', or the id of the object (null: an iommufd of the machine's own). */
export type Way = { readonly by: 'group' } | { readonly by: 'cdev'; readonly object: string | null };

export function chooseWay(paths: HostPaths, wish: OpenWish): Way {
  const { bdf, fd, iommufd } = wish;
  if (iommufd === 'off') {
    if (fd === null) return { by: 'group' };
    throw new VmmError(
      'device-property',
      `fd=${fd} is a character device, which needs an iommufd: leave iommufd=off away`,
    );
  }
  if (iommufd !== null && !IOMMUFD_WORDS.includes(iommufd)) return { by: 'cdev', object: iommufd };
  const wanted = iommufd === 'on' || fd !== null || bdf === null;
  return wanted || onlyCdev(paths, bdf) ? { by: 'cdev', object: null } : { by: 'group' };
}

/** What both ways can do, the group does: it is there on every kernel, and the same command line then does the same everywhere. */
function onlyCdev(paths: HostPaths, bdf: Bdf): boolean {
  const { group } = readHostPci(paths, bdf);
  const groupThere =
    group !== null && existsSync(join(paths.dev, 'vfio/vfio')) && existsSync(join(paths.dev, 'vfio', String(group)));
  return !groupThere && cdevOf(paths, bdf) !== null && existsSync(join(paths.dev, 'iommu'));
}

/** The openers of one machine. */
export class DeviceOpener {
  readonly #door: KernelDoor;
  readonly #paths: HostPaths;
  readonly #host: DeviceHost;
  readonly #objects: readonly IommufdObject[];
  readonly #container: VfioContainer;
  /** Type1 knows which pages an emulated IOMMU's devices write, but only while no device behind a real one shares their container. */
  readonly #emulated: VfioContainer;
  readonly #iommufds = new Map<string | null, Iommufd>();

  constructor(door: KernelDoor, paths: HostPaths, host: DeviceHost, objects: readonly IommufdObject[]) {
    this.#door = door;
    this.#paths = paths;
    this.#host = host;
    this.#objects = objects;
    this.#container = new VfioContainer({ door, paths, host, emulated: false });
    this.#emulated = new VfioContainer({ door, paths, host, emulated: true });
  }

  async open(wish: OpenWish, abi: AbiWish = ANY_ABI): Promise<OpenedDevice> {
    const way = chooseWay(this.#paths, wish);
    if (way.by === 'cdev') return this.#iommufd(way.object).open(wish, abi);
    // Only fd= goes without an address, and never by the group.
    const bdf = wish.bdf ?? '';
    const container = isMediated(bdf) ? this.#emulated : this.#container;
    const transport = await container.open(bdf, abi);
    return { transport, dma: container.dma };
  }

  #iommufd(id: string | null): Iommufd {
    const known = this.#iommufds.get(id);
    if (known !== undefined) return known;
    const object = id === null ? null : this.#objects.find((each) => each.id === id);
    if (object === undefined) {
      throw new VmmError(
        'no-object',
        `iommufd=${id}: there is no such object: add \`--object iommufd,id=${id}\`, or write iommufd=on`,
      );
    }
    const parts = { door: this.#door, paths: this.#paths, host: this.#host, given: object?.fd ?? null };
    const made = new Iommufd(parts);
    this.#iommufds.set(id, made);
    return made;
  }
}
