// The lab host's kernel, made once per Debian version: vmlinux, its module tree with VFIO and iommufd rebuilt, and the headers that our own
// modules build against. Called by images/lab/image.ts. Everything comes from Debian's packages at one version; about 30 s and 400 MB.
import { copyFile, mkdir, rm, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { unpackDeb } from '../debian-package.ts';
import { buildVfioModules, type KernelHeaders, relocateHeaders, VFIO_MODULES } from '../kmod/build.ts';
import { runProgram } from '../program.ts';
import { downloadKernelPackages, type KernelPackages } from './kernel-packages.ts';
import { extractVmlinux } from './vmlinux.ts';

export interface LabKernel {
  readonly release: string;
  readonly vmlinux: string;
  /** A root with lib/modules/RELEASE, the rebuilt modules in updates/, and modules.dep. */
  readonly moduleRoot: string;
  readonly headers: KernelHeaders;
  /** The built drivers/ tree: Module.symvers for our own modules. */
  readonly vfioTree: string;
}

const SOURCE_PARTS = ['drivers/vfio', 'drivers/iommu', 'lib/interval_tree.c', 'samples/vfio-mdev/mtty.c'];

/** Where things lie in a finished kernel directory. */
export function kernelIn(dir: string, release: string): LabKernel {
  return {
    release,
    vmlinux: join(dir, 'vmlinux'),
    moduleRoot: join(dir, 'root'),
    headers: { root: join(dir, 'headers'), release },
    vfioTree: join(dir, 'source/drivers'),
  };
}

/** Fills `dir`. */
export async function buildKernel(dir: string, { packages, recipes, say }: KernelBuild): Promise<void> {
  const kernel = kernelIn(dir, packages.release);
  const debs = await downloadKernelPackages(join(dir, 'debs'), packages, say);
  say(`unpacking ${packages.release}`);
  await unpackDeb(debs.get(packages.image)!, kernel.moduleRoot);
  for (const name of [packages.headers, packages.headersCommon, packages.kbuild])
    await unpackDeb(debs.get(name)!, kernel.headers.root);
  await unpackDeb(debs.get(packages.source)!, join(dir, 'tarball'));
  await extractVmlinux(join(kernel.moduleRoot, 'boot', `vmlinuz-${packages.release}`), kernel.vmlinux);
  await mkdir(join(dir, 'source'));
  const purpose = 'unpacking linux-source';
  await runProgram(
    'tar',
    [
      '-xJf',
      join(dir, 'tarball/usr/src', `${packages.source}.tar.xz`),
      '-C',
      join(dir, 'source'),
      '--strip-components=1',
      ...SOURCE_PARTS.map((part) => `${packages.source}/${part}`),
    ],
    { purpose },
  );
  await rm(join(dir, 'tarball'), { recursive: true });
  await rm(join(dir, 'debs'), { recursive: true });

  say('rebuilding vfio and iommufd with IOMMUFD, cdev and DMA_LOGGING_REPORT; building mtty');
  await relocateHeaders(kernel.headers);
  const tree = await buildVfioModules(kernel.headers, join(dir, 'source'), recipes);
  const updates = join(kernel.moduleRoot, 'lib/modules', packages.release, 'updates');
  await mkdir(updates, { recursive: true });
  for (const module of VFIO_MODULES) {
    const to = join(updates, basename(module));
    await copyFile(join(tree, module), to);
    await runProgram('strip', ['-g', to], { purpose: 'stripping modules' });
  }
  await rm(join(kernel.moduleRoot, 'boot'), { recursive: true });
  await runProgram('depmod', ['-b', kernel.moduleRoot, packages.release], { purpose: 'depmod', accept: [1] });
  await writeFile(join(dir, 'packages.json'), `${JSON.stringify(packages, null, 2)}\n`);
}

export interface KernelBuild {
  readonly packages: KernelPackages;
  readonly recipes: string;
  readonly say: (line: string) => void;
}

/** Paths of the modules and of what they stand on, in the order of loading, each once. */
export async function moduleLoadOrder(kernel: LabKernel, names: readonly string[]): Promise<string[]> {
  const paths: string[] = [];
  for (const name of names) {
    const text = await runProgram('modprobe', ['-d', kernel.moduleRoot, '-S', kernel.release, '--show-depends', name], {
      purpose: `resolving the module ${name}`,
    });
    for (const line of text.split('\n')) {
      const path = /^insmod (\S+)/.exec(line)?.[1];
      if (path !== undefined && !paths.includes(path)) paths.push(path);
    }
  }
  return paths;
}
