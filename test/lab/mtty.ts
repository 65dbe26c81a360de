// mtty, the kernel's sample of a mediated serial card, in a lab host: a card with two ports. For test/lab/vfio-check and bringup.pair.
// Documentation/driver-api/vfio-mediated-device.rst
import type { LabHost } from '../../lab/host.ts';

const UUID = '00000000-0000-4000-8000-0000000000f0';
const TYPE = '/sys/devices/virtual/mtty/mtty/mdev_supported_types/mtty-2';

export const MTTY = `/sys/bus/mdev/devices/${UUID}`;

export async function makeMtty(host: LabHost): Promise<void> {
  await host.run(`modprobe mtty && echo ${UUID} > ${TYPE}/create`);
}

/** A card that nobody has had: its state outlives a close. */
export async function renewMtty(host: LabHost): Promise<void> {
  await host.run(`echo 1 > ${MTTY}/remove && echo ${UUID} > ${TYPE}/create`);
}

/** Fails when anything still holds the card. */
export async function removeMtty(host: LabHost): Promise<void> {
  await host.run(`echo 1 > ${MTTY}/remove && rmmod mtty`);
}
