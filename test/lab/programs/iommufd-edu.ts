// Runs inside a lab host: QEMU's edu through /dev/iommu and its character device, without a guest. Prints one JSON line of what it saw; the
// test judges it. argv: PCI address.
import { closeSync, constants, openSync } from 'node:fs';
import { cdevOf } from '../../../devices/vfio/cdev-path.ts';
import { allocHwpt, bindDevice, hwTracking, Ioas } from '../../../devices/vfio/iommufd-dma.ts';
import { HOST_PATHS } from '../../../devices/vfio/kernel-door.ts';
import { Iommufd } from '../../../devices/vfio/open-cdev.ts';
import { kvmNode } from '../../../native/addon.ts';
import type { SysError } from '../../../native/errno.ts';
import { BUFFER, DMA_BYTES, EDU, Edu } from './edu.ts';

const MIB = 2 ** 20;
const addon = kvmNode();
const bdf = process.argv[2] ?? '';
const seen: Record<string, unknown> = {};

/** What the kernel says, asked without our own policy over it. */
async function askKernel(): Promise<void> {
  const fd = openSync(cdevOf(HOST_PATHS, bdf) ?? '', constants.O_RDWR);
  const on = { door: addon, fd: openSync('/dev/iommu', constants.O_RDWR) };
  const device = await bindDevice(addon, fd, on.fd);
  const ioas = Ioas.alloc(on);
  seen['hwTracking'] = hwTracking(on, device);
  const alloc = (tracking: boolean) =>
    allocHwpt(on, { device, ioas: ioas.id, tracking, bytes: 0 }).then(
      () => 'works',
      (error: SysError) => error.code,
    );
  seen['hwpt'] = await alloc(false);
  seen['hwptDirty'] = await alloc(true);
  closeSync(fd);
  closeSync(on.fd);
}

const ram = addon.createRam(16 * MIB, { hugePages: false, populate: false });
const ranges = [{ gpa: 0, size: ram.size, slice: { ram, offset: 0, size: ram.size } }];
const said: string[] = [];
const log = {
  debug: () => {},
  info: (_fields: object, message: string) => said.push(message),
  warn: (_fields: object, message: string) => said.push(message),
};
const kvmVfio = { add: () => {}, remove: () => {} };
const memory = { ranges, read: () => false, write: () => false };

/** The same device twice by one given iommufd: nothing of the first time may be left in it, or its RAM could not be mapped again. */
async function useDevice(given: number): Promise<void> {
  const host = { ram, memory, kvmVfio, log };
  const iommufd = new Iommufd({ door: addon, paths: HOST_PATHS, host, given });
  const { transport, dma } = await iommufd.open({ bdf, fd: null });
  const edu = new Edu(transport);
  transport.writeRegion(7, 4, Uint8Array.of(6, 0));
  const pattern = Uint8Array.from({ length: DMA_BYTES }, (_, i) => (i * 7 + 3) & 0xff);
  ram.copyIn(0x5000, pattern);
  ram.copyIn(0x9000, new Uint8Array(DMA_BYTES));
  await edu.dma(0x5000n, BUFFER, false);
  await edu.dma(BUFFER, 0x9000n, true);
  const back = new Uint8Array(DMA_BYTES);
  ram.copyOut(0x9000, back);
  seen['kind'] = transport.kind;
  seen['id'] = edu.read(EDU.id);
  seen['dmaEqual'] = Buffer.compare(back, pattern) === 0;
  seen['iovaRanges'] = dma.iovaRanges;
  seen['pageSizes'] = Number(dma.pageSizes);
  seen['tracker'] = dma.dirty?.kind ?? null;
  await transport.close();
}

await askKernel();
const given = openSync('/dev/iommu', constants.O_RDWR);
await useDevice(given);
await useDevice(given);
seen['said'] = said;
// A number of an object that is gone: every id of the first life was given back.
seen['left'] = [1, 2, 3, 4, 5, 6, 7, 8].filter((id) => {
  const arg = new Uint32Array([8, id]);
  try {
    addon.ioctl('IOMMU_DESTROY', given, 0x3b80, new Uint8Array(arg.buffer));
    return true;
  } catch (error) {
    return (error as SysError).code !== 'ENOENT';
  }
});
closeSync(given);
console.log(JSON.stringify(seen));
