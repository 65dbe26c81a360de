// A device opened for `ferry vfio check`: its group in a container of its own, one buffer of RAM mapped for DMA, and device fds as often as a
// rule likes to open and close them. Called by the child of a check. JS thread; MAP and UNMAP go through Type1Dma.
// Documentation/driver-api/vfio.rst; linux/vfio.h
import { existsSync, readlinkSync, realpathSync } from 'node:fs';
import { basename, join } from 'node:path';
import type { GuestRam, HostMapping } from '../../../native/addon.ts';
import { VmmError } from '../../../native/errno.ts';
import type { RamRange } from '../../contract.ts';
import { type GroupMember, openBareGroup } from '../bare-group.ts';
import { isMediated, parseBdf } from '../host-pci.ts';
import type { HostPaths } from '../kernel-door.ts';
import { checkOpenable } from '../open-checks.ts';
import { readType1Info, Type1Dma } from '../type1-dma.ts';
import type { CheckDoor } from './check-door.ts';

/** Low enough for a device that reaches 28 bits (edu's default), and with more pages below it than one answer about dirty pfns covers. */
const IOVA = 0x1000000;
const RAM_BYTES = 4 * 2 ** 20;
/** Where a peer's BAR is for the device: beyond the buffer, and within 28 bits. */
const PEER_IOVA = 0x4000000;

/** A part of another device's BAR in a device's DMA space. */
export interface PeerBar {
  readonly iova: number;
  unmap(): Promise<void>;
}

export interface DevicePlace {
  readonly name: string;
  readonly door: CheckDoor;
  readonly ram: GuestRam;
  /** Where `ram` begins for the device. */
  readonly iova: number;
  /** The container has dirty tracking, which came with v1 of the migration region. */
  readonly tracks: boolean;
  openDevice(): number;
  map(): Promise<void>;
  unmap(): Promise<void>;
  /** One at a time. Rejects with SysError where this container takes no such memory. */
  mapPeer(bar: HostMapping): Promise<PeerBar>;
  close(): Promise<void>;
}

/** A PCI address, or the directory of any device under /sys (mediated: /sys/bus/mdev/devices/UUID). Touches nothing. */
export function findDevice(paths: HostPaths, text: string): GroupMember {
  if (!text.includes('/')) {
    const { bdf, group } = checkOpenable(paths, parseBdf(text));
    return { name: bdf, group };
  }
  if (!existsSync(text))
    throw new VmmError('no-device', `there is no ${text}: give a PCI address or a device's directory`);
  const path = realpathSync(text);
  const link = join(path, 'iommu_group');
  if (!existsSync(link)) {
    throw new VmmError('not-vfio', `${text} has no iommu_group, so no VFIO driver serves it: bind it to one first`);
  }
  return { name: basename(path), group: Number(basename(readlinkSync(link))) };
}

export async function openPlace(door: CheckDoor, paths: HostPaths, device: GroupMember): Promise<DevicePlace> {
  const group = openBareGroup(door, paths, device);
  try {
    const { container } = group;
    const dma = new Type1Dma(door, container, readType1Info(door, container), { coarse: !isMediated(device.name) });
    const ram = door.createRam(RAM_BYTES, { hugePages: false, populate: true });
    const range: RamRange = { gpa: IOVA, size: RAM_BYTES, slice: { ram, offset: 0, size: RAM_BYTES } };
    await dma.map(range);
    return {
      name: device.name,
      door,
      ram,
      iova: IOVA,
      tracks: dma.dirty !== null,
      openDevice: group.openDevice,
      map: () => dma.map(range),
      unmap: () => dma.unmap(range),
      mapPeer: async (bar) => {
        await dma.peers.map(PEER_IOVA, bar);
        return { iova: PEER_IOVA, unmap: () => dma.peers.unmap({ gpa: PEER_IOVA, size: bar.size }) };
      },
      close: async () => {
        await dma.unmap(range);
        group.leave();
        ram.close();
      },
    };
  } catch (error) {
    group.leave();
    throw error;
  }
}
