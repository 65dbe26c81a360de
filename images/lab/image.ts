// The lab host's image: kernel, initrd and our own modules, built once and cached by the contents of what it is made of. Called by
// lab/lab.ts, `ferry lab build` and scripts/setup.mjs. A cached image is used without asking apt; `refresh` takes the newest kernel.
import { existsSync } from 'node:fs';
import { copyFile, mkdir, readdir, readFile, stat, writeFile } from 'node:fs/promises';
import { join, relative } from 'node:path';
import { VmmError } from '../../native/errno.ts';
import { cached, contentName } from '../cache.ts';
import { buildOwnModule } from '../kmod/build.ts';
import { runProgram } from '../program.ts';
import { type InitrdModule, packInitrd } from './initrd.ts';
import { buildKernel, kernelIn, type LabKernel, moduleLoadOrder } from './kernel.ts';
import { resolveKernelPackages } from './kernel-packages.ts';

export interface LabImage {
  readonly dir: string;
  readonly release: string;
  readonly vmlinux: string;
  readonly initrd: string;
  /** Our own modules, name.ko each. */
  readonly modules: string;
  /** The kernel's uAPI headers, for programs that Debian's own are too old for. */
  readonly uapi: string;
}

export interface ImageSources {
  /** The repository. */
  readonly root: string;
  /** The cache directory. */
  readonly cache: string;
  /** Paths of programs that go into the image. */
  readonly busybox: string;
  readonly say: (line: string) => void;
}

/** Our own drivers that are loaded at boot, each a folder of images/kmod with a Kbuild, and their parameters. */
const OWN_MODULES: Readonly<Record<string, readonly string[]>> = {
  // QEMU's edu is given this reach by lab/qemu-command.ts; the driver cannot find out.
  'edu-vfio-pci': ['dma_mask=0xffffffffffffffff'],
  'vfio-bringup': ['abi=d'],
};

/** Loaded at boot. kvm-intel would not load: the lab's CPU is AMD (QEMU emulates SVM only). */
const STOCK_MODULES = ['virtio_pci', 'virtio_net', '9pnet_virtio', '9p', 'overlay', 'kvm-amd', 'tun'];
const VFIO_MODULES = ['iommufd', 'vfio', 'vfio_iommu_type1', 'vfio-pci', 'mdev'];

async function moduleSources(root: string): Promise<Map<string, string[]>> {
  const found = new Map<string, string[]>();
  for (const name of Object.keys(OWN_MODULES)) {
    const dir = join(root, 'images/kmod', name);
    if (!existsSync(join(dir, 'Kbuild'))) continue;
    found.set(name, (await readdir(dir)).filter((each) => /\.[ch]$|^Kbuild$/.test(each)).sort());
  }
  return found;
}

const RECIPES = 'images/kmod/vfio';
const KERNEL_PREFIX = 'lab-kernel-';

async function recipeName(root: string): Promise<string> {
  const files = (await readdir(join(root, RECIPES))).sort().map((each) => join(root, RECIPES, each));
  return contentName([...files, join(root, 'images/kmod/build.ts')].filter(existsSync), 'kernel 1');
}

interface CachedKernel {
  readonly dir: string;
  readonly release: string;
}

/** The newest cached kernel built by these recipes. */
async function newestKernel(cache: string, recipe: string): Promise<CachedKernel | null> {
  const names = (await readdir(cache).catch(() => [] as string[])).filter(
    (each) => each.startsWith(KERNEL_PREFIX) && each.endsWith(`-${recipe}`),
  );
  let newest: (CachedKernel & { at: number }) | null = null;
  for (const name of names) {
    const dir = join(cache, name);
    const at = (await stat(dir)).mtimeMs;
    const { release } = JSON.parse(await readFile(join(dir, 'packages.json'), 'utf8')) as { release: string };
    if (newest === null || at > newest.at) newest = { dir, release, at };
  }
  return newest;
}

async function labKernel(sources: ImageSources, refresh: boolean): Promise<{ kernel: LabKernel; dir: string }> {
  const recipe = await recipeName(sources.root);
  let found = refresh ? null : await newestKernel(sources.cache, recipe);
  if (found === null) {
    const packages = await resolveKernelPackages(sources.say);
    const name = `${KERNEL_PREFIX}${packages.release}-${recipe}`;
    const dir = await cached(sources.cache, name, (into) =>
      buildKernel(into, { packages, recipes: join(sources.root, RECIPES), say: sources.say }),
    );
    found = { dir, release: packages.release };
  }
  return { kernel: kernelIn(found.dir, found.release), dir: found.dir };
}

async function buildImage(
  dir: string,
  { kernel, own, sources }: { kernel: LabKernel; own: Map<string, string[]>; sources: ImageSources },
): Promise<void> {
  const stock = await moduleLoadOrder(kernel, [...STOCK_MODULES, ...VFIO_MODULES]);
  const modules = stock.map((file): InitrdModule => ({ file, parameters: [] }));
  await mkdir(join(dir, 'modules'));
  for (const [name, files] of own) {
    sources.say(`building ${name}.ko`);
    const source = join(sources.root, 'images/kmod', name);
    const built = await buildOwnModule(kernel.headers, {
      name,
      source,
      files,
      dir: join(dir, name),
      vfioTree: kernel.vfioTree,
    });
    const to = join(dir, 'modules', `${name}.ko`);
    await copyFile(built, to);
    await runProgram('strip', ['-g', to], { purpose: 'stripping modules' });
    modules.push({ file: to, parameters: OWN_MODULES[name] ?? [] });
  }
  const init = join(sources.root, 'images/lab/init');
  const tree = relative(sources.cache, join(kernel.moduleRoot, 'lib/modules', kernel.release));
  await packInitrd({ busybox: sources.busybox, init, modules, tree }, join(dir, 'initrd'), join(dir, 'initrd.cpio'));
  const about = { release: kernel.release, own: [...own.keys()] };
  await writeFile(join(dir, 'image.json'), `${JSON.stringify(about, null, 2)}\n`);
}

/** The image for the sources as they are now; builds what is missing. */
export async function labImage(sources: ImageSources, options: { refresh: boolean }): Promise<LabImage> {
  const own = await moduleSources(sources.root);
  const { kernel, dir: kernelDir } = await labKernel(sources, options.refresh);
  const files = [...own].flatMap(([name, each]) => each.map((file) => join(sources.root, 'images/kmod', name, file)));
  for (const file of ['images/lab/init', 'images/lab/initrd.ts', 'images/lab/image.ts', 'images/kmod/build.ts']) {
    const path = join(sources.root, file);
    if (existsSync(path)) files.push(path);
  }
  const name = `lab-image-${await contentName(files, kernelDir.slice(kernelDir.lastIndexOf('/') + 1))}`;
  const dir = await cached(sources.cache, name, (into) => {
    sources.say('packing the lab host image');
    return buildImage(into, { kernel, own, sources });
  });
  const common = `linux-headers-${kernel.release.replace(/-amd64$/, '')}-common`;
  const image: LabImage = {
    dir,
    release: kernel.release,
    vmlinux: kernel.vmlinux,
    initrd: join(dir, 'initrd.cpio'),
    modules: join(dir, 'modules'),
    uapi: join(kernel.headers.root, 'usr/src', common, 'include/uapi'),
  };
  if (!existsSync(image.initrd) || !existsSync(image.vmlinux))
    throw new VmmError('EIMAGE', `${dir} is damaged; remove it and start again`);
  return image;
}
