// Opening a device through its character device and iommufd: every failure is one clear line with its remedy and leaves nothing behind; RAM
// is mapped once; what closes goes in the order that the kernel needs. Against a host tree and a kernel in this process.
import { closeSync, fstatSync, openSync, readdirSync, readlinkSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { Iommufd } from '../../../devices/vfio/open-cdev.ts';
import { VmmError } from '../../../native/errno.ts';
import { HostTree } from '../../fakes/host-tree.ts';
import { EBUSY, ENOMEM, EPERM, FakeIommufdKernel } from '../../fakes/iommufd-kernel.ts';
import { FakeHost, sizedRam } from '../../fakes/vfio-host.ts';
import { EINVAL, migratable } from '../../fakes/vfio-kernel.ts';

const BDF = '0000:65:00.0';
const SECOND = '0000:66:00.0';
const MIB = 2 ** 20;
/** memory(4): /dev/null is a character device that anybody may open. */
const NULL_DEVICE = '1:3';
const ZERO_DEVICE = '1:5';

let tree: HostTree;
let kernel: FakeIommufdKernel;
let host: FakeHost;
let iommufd: Iommufd;
let openBefore: string[];

/** Device files that this process has open: of the host's tree, and /dev/null, which stands for given fds. */
function openFiles(): string[] {
  const links = readdirSync('/proc/self/fd').map((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`);
    } catch {
      return '';
    }
  });
  return links.filter((link) => link.startsWith(tree.root) || link === '/dev/null').sort();
}

function machine(given: number | null = null): Iommufd {
  return new Iommufd({ door: kernel, paths: tree.paths, host, given });
}

beforeEach(() => {
  tree = new HostTree();
  kernel = new FakeIommufdKernel();
  const ram = sizedRam(64 * MIB);
  host = new FakeHost(ram, [
    { gpa: 0, size: 48 * MIB, slice: { ram, offset: 0, size: 48 * MIB } },
    { gpa: 2 ** 32, size: 16 * MIB, slice: { ram, offset: 48 * MIB, size: 16 * MIB } },
  ]);
  // One list for what KVM and what VFIO is told: their order matters.
  const { add, remove } = host.kvmVfio;
  Object.assign(host.kvmVfio, {
    add: (fd: number) => {
      kernel.names.push('KVM add');
      add(fd);
    },
    remove: (fd: number) => {
      kernel.names.push('KVM remove');
      // KVM finds the file by its fd, so it must be open still.
      fstatSync(fd);
      remove(fd);
    },
  });
  iommufd = machine();
  openBefore = openFiles();
});
afterEach(() => tree.close());

const bound = (bdf = BDF, name = 'vfio0') => {
  tree.device(bdf, bdf === BDF ? 4 : 5, 'vfio-pci');
  tree.cdev(bdf, name);
};
const open = (bdf = BDF) => iommufd.open({ bdf, fd: null });
const message = (wish: Parameters<Iommufd['open']>[0] = { bdf: BDF, fd: null }, by = iommufd) =>
  by.open(wish).then(
    () => 'opened',
    (error: Error) => {
      expect(error).toBeInstanceOf(VmmError);
      expect(error.message).not.toContain('\n');
      return error.message;
    },
  );
const nothingLeft = () => {
  expect(openFiles()).toEqual(openBefore);
  expect(host.groupFds).toEqual([]);
  expect(kernel.objects.size).toBe(0);
};
const named = (pattern: RegExp) => kernel.names.filter((name) => pattern.test(name));

describe('a device that cannot be opened by its character device', () => {
  it('is not there, is bound to another driver, or has no such device: the remedy is named, nothing is touched', async () => {
    expect(await message()).toMatch(/no PCI device 0000:65:00.0 on this host/);
    tree.device('0000:01:00.0', null, 'vfio-pci');
    expect(await message({ bdf: '0000:01:00.0', fd: null })).toMatch(/intel_iommu=on/);
    tree.device('0000:02:00.0', 5, 'nvme');
    expect(await message({ bdf: '0000:02:00.0', fd: null })).toMatch(/`ferry vfio bind 0000:02:00.0`/);
    tree.device(BDF, 4, 'vfio-pci');
    expect(await message()).toMatch(/no character device.*CONFIG_VFIO_DEVICE_CDEV.*leave iommufd= away/);
    expect(kernel.names).toEqual([]);
    nothingLeft();
  });

  it('finds no /dev/iommu', async () => {
    bound();
    rmSync(join(tree.paths.dev, 'iommu'));
    expect(await message()).toMatch(/\/dev\/iommu is missing: load it with `modprobe iommufd`/);
    nothingLeft();
  });

  it.each([
    ['EBUSY', EBUSY, /group is in use by another process or driver \(`fuser -v .*vfio0`/],
    ['EINVAL', EINVAL, /in use by another process \(`fuser -v .*vfio0`/],
    ['EPERM', EPERM, /interrupt remapping.*allow_unsafe_interrupts=1/],
    ['any other', 5, /VFIO_DEVICE_BIND_IOMMUFD failed \(EIO\): see dmesg/],
  ])('is refused by BIND with %s', async (_name, errno, words) => {
    bound();
    kernel.answers.set('VFIO_DEVICE_BIND_IOMMUFD', errno);
    expect(await message()).toMatch(words);
    nothingLeft();
  });

  it('shares its group with devices in use: they are named, with the commands', async () => {
    bound();
    tree.device('0000:65:00.1', 4, 'snd_hda_intel');
    kernel.answers.set('VFIO_DEVICE_BIND_IOMMUFD', EBUSY);
    expect(await message()).toMatch(/0000:65:00.1 \(snd_hda_intel\).*`ferry vfio bind 0000:65:00.1`/);
    nothingLeft();
  });

  it.each([
    ['IOMMU_IOAS_ALLOC', 12],
    ['IOMMU_HWPT_ALLOC', 12],
    ['VFIO_DEVICE_ATTACH_IOMMUFD_PT', EINVAL],
    ['VFIO_DEVICE_ATTACH_IOMMUFD_PT', 16],
    ['IOMMU_IOAS_IOVA_RANGES', 2],
    ['IOMMU_IOAS_MAP', EINVAL],
    ['VFIO_DEVICE_GET_INFO', 19],
  ])('is given back when %s fails with errno %i, and can be opened afterwards', async (name, errno) => {
    bound();
    kernel.answers.set(name, errno);
    expect(await message()).toMatch(new RegExp(`(${name} failed|cannot be mapped).*see dmesg`));
    nothingLeft();
    kernel.answers.clear();
    expect(await message()).toBe('opened');
  });

  it('is given back when the second range of RAM cannot be mapped: the first is unmapped', async () => {
    bound();
    let calls = 0;
    const real = kernel.ioctlAsync.bind(kernel);
    kernel.ioctlAsync = async (name, ...rest) => {
      if (name === 'IOMMU_IOAS_MAP' && ++calls === 2) kernel.answers.set(name, ENOMEM);
      return real(name, ...rest);
    };
    expect(await message()).toMatch(
      /guest RAM at 0x100000000 \(16 MiB\) cannot be mapped for DMA \(ENOMEM\): see dmesg/,
    );
    expect(named(/IOAS_UNMAP/)).toHaveLength(1);
    nothingLeft();
  });

  it('needs RAM that the IOMMU cannot reach, or reserves', async () => {
    bound();
    kernel.ranges = [{ start: 0n, last: 0xfedfffffn }];
    expect(await message()).toMatch(/guest RAM reaches 0x101000000.*only up to 0xfee00000/);
    kernel.ranges = [
      { start: 0n, last: 0xffffffn },
      { start: 0x1800000n, last: 0x7fffffffffn },
    ];
    expect(await message()).toMatch(/collides with 0x1000000-0x17fffff/);
    expect(named(/IOAS_MAP/)).toEqual([]);
    nothingLeft();
  });

  it('has too little memory to pin; iommufd counts what the whole user has pinned', async () => {
    bound();
    tree.capabilities(0n);
    tree.lockLimit(8 * MIB);
    expect(await message()).toMatch(/64 MiB of locked memory, but the limit is 8 MiB.*ulimit -l 65536/);
    tree.lockLimit(100 * MIB);
    kernel.answers.set('IOMMU_IOAS_MAP', ENOMEM);
    expect(await message()).toMatch(/this user, all its guests together, is limited to 100 MiB: raise `ulimit -l`/);
    nothingLeft();
  });

  it('is given twice: the second is refused, and the first goes on', async () => {
    bound();
    const { transport } = await open();
    expect(await message()).toBe('0000:65:00.0 is given twice; leave one of the two --device');
    expect(host.groupFds).toHaveLength(1);
    await transport.close();
    nothingLeft();
    expect(await message()).toBe('opened');
  });
});

describe('an iommufd', () => {
  it('is told of KVM before BIND, and given back in the order that the kernel needs', async () => {
    bound();
    const { transport } = await open();
    const [fd] = host.groupFds;
    expect(named(/KVM|BIND|IOAS_|HWPT|ATTACH/)).toEqual([
      'KVM add',
      'VFIO_DEVICE_BIND_IOMMUFD',
      'IOMMU_IOAS_ALLOC',
      'IOMMU_HWPT_ALLOC',
      'VFIO_DEVICE_ATTACH_IOMMUFD_PT',
      'IOMMU_IOAS_IOVA_RANGES',
      'IOMMU_IOAS_MAP',
      'IOMMU_IOAS_MAP',
    ]);
    kernel.names.length = 0;
    await transport.close();
    await transport.close();
    // The device is disabled by its close, so its DMA has ended when RAM is unmapped.
    expect(kernel.names).toEqual([
      'KVM remove',
      `close ${fd}`,
      'IOMMU_IOAS_UNMAP',
      'IOMMU_IOAS_UNMAP',
      'IOMMU_DESTROY',
      'IOMMU_DESTROY',
      'close iommufd',
    ]);
    nothingLeft();
  });

  it('is opened once for several devices, whose RAM is mapped once and whose page table is one', async () => {
    bound();
    bound(SECOND, 'vfio1');
    const opened = await Promise.all([open(), open(SECOND)]);
    expect(named(/IOAS_ALLOC/)).toHaveLength(1);
    expect(named(/HWPT_ALLOC/)).toHaveLength(1);
    expect(named(/IOAS_MAP/)).toHaveLength(2);
    expect(openFiles().filter((path) => path.endsWith('/dev/iommu'))).toHaveLength(1);
    await opened[0]?.transport.close();
    expect(named(/IOAS_UNMAP|DESTROY/)).toEqual([]);
    await opened[1]?.transport.close();
    nothingLeft();
  });

  it('has a page table for each kind of IOMMU', async () => {
    bound();
    bound(SECOND, 'vfio1');
    const first = await open();
    kernel.unit = 1;
    const second = await open(SECOND);
    expect(kernel.of('hwpt').map(({ unit }) => unit)).toEqual([0, 1]);
    await Promise.all([first.transport.close(), second.transport.close()]);
    nothingLeft();
  });

  it('maps RAM at its guest-physical address, readable and writable, by a patch', async () => {
    bound();
    const { dma, transport } = await open();
    const [ioas] = [...kernel.objects].find(([, { kind }]) => kind === 'ioas') ?? [];
    const maps = kernel.calls.filter(({ name }) => name === 'IOMMU_IOAS_MAP');
    const words = maps.map(({ arg }) => {
      const view = new DataView((arg as Uint8Array).buffer);
      const low = [0, 4, 8, 12].map((at) => view.getUint32(at, true));
      return [...low, view.getBigUint64(24, true), view.getBigUint64(32, true)];
    });
    expect(words).toEqual([
      [40, 7, ioas, 0, BigInt(48 * MIB), 0n],
      [40, 7, ioas, 0, BigInt(16 * MIB), 2n ** 32n],
    ]);
    expect(maps.map(({ patches }) => patches)).toEqual([
      [{ at: 16, ram: host.ram, offset: 0, length: 48 * MIB }],
      [{ at: 16, ram: host.ram, offset: 48 * MIB, length: 16 * MIB }],
    ]);
    expect(dma.iovaRanges).toEqual([{ start: 0, length: 2 ** 39 }]);
    expect(transport).toMatchObject({ kind: 'cdev', name: BDF });
  });

  it('asks again with more room when there are many ranges', async () => {
    bound();
    kernel.ranges = Array.from({ length: 300 }, (_, i) => ({
      start: BigInt(i) * 2n ** 33n,
      last: BigInt(i) * 2n ** 33n + 2n ** 32n + 2n ** 31n,
    }));
    const { dma } = await open();
    expect(named(/IOVA_RANGES/)).toHaveLength(3);
    expect(dma.iovaRanges).toHaveLength(300);
    expect(dma.iovaRanges[299]).toEqual({ start: 299 * 2 ** 33, length: 2 ** 32 + 2 ** 31 + 1 });
  });

  it('knows the abilities of the device fd', async () => {
    bound();
    kernel.migration = migratable();
    kernel.dmaLogging = 'works';
    const { transport } = await open();
    expect(transport.migration).toMatchObject({ preCopy: true, p2p: true, state: 'running' });
    expect(transport.dmaLog).not.toBeNull();
  });
});

describe('fds that a privileged parent opened', () => {
  const given = () => openSync('/dev/null', 'r+');
  const wellKnown = (bdf = BDF) => tree.charDevice(NULL_DEVICE, `devices/pci0000:60/${bdf}/vfio-dev/vfio0`);

  it('of the device: no file is opened for it, its address is found out, and it is closed at the end', async () => {
    bound();
    wellKnown();
    rmSync(join(tree.paths.dev, 'vfio/devices'), { recursive: true });
    const fd = given();
    const { transport } = await iommufd.open({ bdf: null, fd });
    expect(transport.name).toBe(BDF);
    expect(host.groupFds).toEqual([fd]);
    await transport.close();
    nothingLeft();
  });

  it('of the device where sysfs is not there: it is named by the number', async () => {
    bound();
    const fd = given();
    const { transport } = await iommufd.open({ bdf: null, fd });
    expect(transport.name).toBe(`fd ${fd}`);
    await transport.close();
    nothingLeft();
  });

  it('of /dev/iommu: it stays open, with nothing left in it', async () => {
    bound();
    const fd = openSync(join(tree.paths.dev, 'iommu'), 'r+');
    rmSync(join(tree.paths.dev, 'iommu'));
    // A file that was removed has another name in /proc.
    kernel.isIommufd = (each) => each === fd;
    const { transport } = await machine(fd).open({ bdf: BDF, fd: null });
    await transport.close();
    expect(kernel.objects.size).toBe(0);
    expect(kernel.closed).not.toContain(fd);
    closeSync(fd);
    nothingLeft();
  });

  it('that are something else are refused in one line', async () => {
    bound();
    tree.charDevice(ZERO_DEVICE, 'devices/virtual/mem/zero');
    wellKnown();
    const zero = openSync('/dev/zero', 'r+');
    expect(await message({ bdf: null, fd: zero })).toMatch(
      /is zero, no VFIO device: pass an open \/dev\/vfio\/devices/,
    );
    closeSync(zero);
    expect(await message({ bdf: null, fd: zero })).toMatch(/is not open in this process \(EBADF\)/);
    const file = openSync(join(tree.paths.proc, 'meminfo'), 'r');
    expect(await message({ bdf: null, fd: file })).toMatch(/is no device/);
    closeSync(file);
    const other = given();
    expect(await message({ bdf: SECOND, fd: other })).toMatch(/is 0000:65:00.0, not 0000:66:00.0/);
    closeSync(other);
    const wrong = given();
    expect(await message(undefined, machine(wrong))).toMatch(/fd=\d+ of --object is no open \/dev\/iommu/);
    closeSync(wrong);
    nothingLeft();
  });

  it('need a limit of locked memory as large as guest RAM: said in one line', async () => {
    bound();
    wellKnown();
    tree.capabilities(0n);
    tree.lockLimit(8 * MIB);
    expect(await message({ bdf: null, fd: given() })).toMatch(/64 MiB of locked memory.*`ulimit -l 65536`/);
    nothingLeft();
  });
});
