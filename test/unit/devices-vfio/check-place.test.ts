// Opening a device for `ferry vfio check`: by PCI address or by any device's directory under /sys, its buffer mapped, everything closed again; and
// what of the kernel's log counts as a complaint.
import { mkdirSync, readdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import { openKernelLog } from '../../../devices/vfio/check/kernel-log.ts';
import { findDevice, openPlace } from '../../../devices/vfio/check/place.ts';
import { checkDoor } from '../../fakes/check-door.ts';
import { HostTree } from '../../fakes/host-tree.ts';

const BDF = '0000:65:00.0';
const UUID = '83b8f4f2-509f-382f-3c1e-e6bfe0fa1001';
let tree = new HostTree();
afterEach(() => {
  tree.close();
  tree = new HostTree();
});

function mdev(): string {
  const path = join(tree.paths.sys, 'devices/virtual/parent', UUID);
  const group = join(tree.paths.sys, 'kernel/iommu_groups/31');
  mkdirSync(path, { recursive: true });
  mkdirSync(group, { recursive: true });
  mkdirSync(join(tree.paths.sys, 'bus/mdev/devices'), { recursive: true });
  symlinkSync(group, join(path, 'iommu_group'));
  const link = join(tree.paths.sys, 'bus/mdev/devices', UUID);
  symlinkSync(path, link);
  return link;
}

const fds = () => readdirSync('/proc/self/fd').length;

describe('a device to check', () => {
  it('is a PCI address with a VFIO driver, or the directory of a device with a group', () => {
    tree.device(BDF, 17, 'vfio-pci');
    expect(findDevice(tree.paths, '65:00.0')).toEqual({ name: BDF, group: 17 });
    expect(findDevice(tree.paths, mdev())).toEqual({ name: UUID, group: 31 });
    expect(() => findDevice(tree.paths, tree.paths.sys)).toThrow('has no iommu_group');
  });

  it('is opened with a buffer mapped for DMA, as often as a rule likes, and closed without a trace', async () => {
    tree.device(BDF, 17, 'vfio-pci');
    const kernel = checkDoor();
    const before = fds();
    const place = await openPlace(kernel, tree.paths, { name: BDF, group: 17 });
    const map = kernel.calls.find(({ name }) => name === 'VFIO_IOMMU_MAP_DMA')!;
    expect(new DataView((map.arg as Uint8Array).buffer).getBigUint64(16, true)).toBe(BigInt(place.iova));
    for (const fd of [place.openDevice(), place.openDevice()]) kernel.closeFd(fd);
    await place.close();
    expect(kernel.names.slice(-2)).toEqual(['VFIO_IOMMU_UNMAP_DMA', 'VFIO_GROUP_UNSET_CONTAINER']);
    expect(fds()).toBe(before);
  });

  it("maps another device's BAR where its DMA can reach it, apart from the buffer, and unmaps just that", async () => {
    tree.device(BDF, 17, 'vfio-pci');
    const kernel = checkDoor();
    const place = await openPlace(kernel, tree.paths, { name: BDF, group: 17 });
    const bar = { size: 4096, view: new ArrayBuffer(4096), unmap: () => {} };
    const peer = await place.mapPeer(bar);
    expect(peer.iova).toBeGreaterThanOrEqual(place.iova + place.ram.size);
    expect(peer.iova + bar.size).toBeLessThanOrEqual(2 ** 28);
    const map = kernel.calls.filter(({ name }) => name === 'VFIO_IOMMU_MAP_DMA').at(-1)!;
    const arg = new DataView((map.arg as Uint8Array).buffer);
    expect([arg.getBigUint64(16, true), arg.getBigUint64(24, true)]).toEqual([BigInt(peer.iova), 4096n]);
    expect(map.patches).toEqual([{ at: 8, mapping: bar, offset: 0, length: 4096 }]);
    await peer.unmap();
    const unmap = kernel.calls.filter(({ name }) => name === 'VFIO_IOMMU_UNMAP_DMA').at(-1)!;
    const gone = new DataView((unmap.arg as Uint8Array).buffer);
    expect([gone.getBigUint64(8, true), gone.getBigUint64(16, true)]).toEqual([BigInt(peer.iova), 4096n]);
    await place.close();
  });

  it('leaves nothing open when the container refuses it', async () => {
    tree.device(BDF, 17, 'vfio-pci');
    const kernel = checkDoor();
    kernel.answers.set('VFIO_GROUP_SET_CONTAINER', 22);
    const before = fds();
    await expect(openPlace(kernel, tree.paths, { name: BDF, group: 17 })).rejects.toThrow('its IOMMU group 17');
    expect(fds()).toBe(before);
  });
});

describe("the kernel's log", () => {
  it('complains with what came since it was last asked, and with a taint', () => {
    const kmsg = join(tree.paths.dev, 'kmsg');
    mkdirSync(join(tree.paths.proc, 'sys/kernel'), { recursive: true });
    writeFileSync(join(tree.paths.proc, 'sys/kernel/tainted'), '0\n');
    writeFileSync(kmsg, '6,1,1,-;WARNING: before\n');
    const log = openKernelLog(tree.paths)!;
    writeFileSync(kmsg, '4,2,2,-;DMAR: [DMA Write] fault addr 0x1000\n', { flag: 'a' });
    writeFileSync(join(tree.paths.proc, 'sys/kernel/tainted'), '512\n');
    expect(log.take()).toEqual(['DMAR: [DMA Write] fault addr 0x1000', 'kernel taint 0 -> 512']);
    writeFileSync(kmsg, '4,3,3,-;vfio: data with a wrong checksum\n', { flag: 'a' });
    expect(log.take()).toEqual([]);
    log.close();
  });

  it('is null where it cannot be read', () => {
    expect(openKernelLog(tree.paths)).toBeNull();
  });
});
