// Builds kernel modules out of tree against Debian's headers: VFIO, iommufd and the mtty sample from linux-source (with what Debian leaves
// off), and our own edu-vfio-pci. Called by images/lab. The kernel's sources and the modules stay in the cache; only our Kbuild files are in the repo.
// Documentation/kbuild/modules.rst.
import { copyFile, mkdir, readFile, writeFile } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { VmmError } from '../../native/errno.ts';
import { runProgram } from '../program.ts';

export interface KernelHeaders {
  /** Where the linux-headers and linux-kbuild packages were unpacked. */
  readonly root: string;
  readonly release: string;
}

/** What every user of the rebuilt VFIO has to be compiled with: it changes the layout of struct vfio_device. */
export const VFIO_CFLAGS = '-DCONFIG_IOMMUFD_MODULE=1 -DCONFIG_IOMMUFD_DRIVER=1 -DCONFIG_VFIO_DEVICE_CDEV=1';

/** The rebuilt modules, relative to the tree that buildVfioModules returns, each with its name in the kernel's tree. */
export const VFIO_MODULES = [
  'iommu/iommufd/iommufd.ko',
  'vfio/vfio.ko',
  'vfio/vfio_iommu_type1.ko',
  'vfio/pci/vfio-pci-core.ko',
  'vfio/pci/vfio-pci.ko',
  'vfio/mdev/mdev.ko',
  'mtty/mtty.ko',
] as const;

const SOURCE_PARTS = [
  ['drivers.Kbuild', ''],
  ['iommufd.Kbuild', 'iommu/iommufd'],
  ['vfio.Kbuild', 'vfio'],
  ['pci.Kbuild', 'vfio/pci'],
  ['mdev.Kbuild', 'vfio/mdev'],
  ['mtty.Kbuild', 'mtty'],
] as const;

/** Debian's headers name each other by absolute path; makes that path right for where they were unpacked. */
export async function relocateHeaders(headers: KernelHeaders): Promise<void> {
  const path = join(headers.root, 'usr/src', `linux-headers-${headers.release}`, 'Makefile');
  const text = await readFile(path, 'utf8');
  // $(lastword) rather than a path: the tree is renamed into the cache when it is complete.
  const here = '$(dir $(abspath $(lastword $(MAKEFILE_LIST))))';
  await writeFile(path, text.replace(/include \/usr\/src\//g, `include ${here}../`));
}

/** make M=dir modules. `symbols`: Module.symvers of modules that these stand on. */
export async function makeModules(headers: KernelHeaders, dir: string, symbols: readonly string[]): Promise<void> {
  const args = [
    '-s',
    '-C',
    join(headers.root, 'usr/src', `linux-headers-${headers.release}`),
    `-j${availableParallelism()}`,
    `M=${dir}`,
    // 6.12 wants pahole for the BTF of modules otherwise, since the headers ship a vmlinux.
    'CONFIG_DEBUG_INFO_BTF_MODULES=',
    `KBUILD_EXTRA_SYMBOLS=${symbols.join(' ')}`,
    'modules',
  ];
  const output = await runProgram('make', args, { purpose: `building the kernel modules in ${dir}` });
  await writeFile(join(dir, 'make.log'), output);
}

/** lib/interval_tree.c's span iterator, without what vmlinux already exports. */
async function cutSpanIterator(from: string, to: string): Promise<void> {
  const text = await readFile(from, 'utf8');
  const start = text.indexOf('#ifdef CONFIG_INTERVAL_TREE_SPAN_ITER');
  if (start < 0) throw new VmmError('EIMAGE', `${from} has no CONFIG_INTERVAL_TREE_SPAN_ITER; not a Linux 6.12`);
  const head = '#include <linux/interval_tree.h>\n#include <linux/export.h>\n';
  await writeFile(to, `${head}${text.slice(start)}`);
}

/**
 * Builds VFIO, iommufd and mtty in `dir`, which has linux-source's drivers/, lib/interval_tree.c and samples/vfio-mdev/mtty.c. Returns the tree that
 * VFIO_MODULES is relative to; its Module.symvers is what makeModules wants for their users.
 */
export async function buildVfioModules(headers: KernelHeaders, dir: string, recipes: string): Promise<string> {
  const drivers = join(dir, 'drivers');
  await mkdir(join(drivers, 'mtty'));
  await copyFile(join(dir, 'samples/vfio-mdev/mtty.c'), join(drivers, 'mtty/mtty.c'));
  for (const [recipe, where] of SOURCE_PARTS) {
    await copyFile(join(recipes, recipe), join(drivers, where, 'Kbuild'));
  }
  await cutSpanIterator(join(dir, 'lib/interval_tree.c'), join(drivers, 'iommu/iommufd/span-iter.c'));
  await makeModules(headers, drivers, []);
  return drivers;
}

/** Builds one of our own modules (the folder `source`) in `dir` on top of the rebuilt VFIO. Returns the .ko path. */
export async function buildOwnModule(
  headers: KernelHeaders,
  { name, source, files, dir, vfioTree }: OwnModule,
): Promise<string> {
  await mkdir(dir, { recursive: true });
  for (const file of files) await copyFile(join(source, file), join(dir, file));
  await makeModules(headers, dir, [join(vfioTree, 'Module.symvers')]);
  return join(dir, `${name}.ko`);
}

export interface OwnModule {
  readonly name: string;
  readonly source: string;
  readonly files: readonly string[];
  readonly dir: string;
  readonly vfioTree: string;
}
