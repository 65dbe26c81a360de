// A lab host's image with a kernel that the user brings along, and his modules. Called by lab/lab.ts for `ferry lab up --kernel`.
// Nothing of Debian's kernel is in it: what is not built in has to lie in the tree of `make modules_install`. Linux/x86 boot protocol.
import { existsSync } from 'node:fs';
import { copyFile, mkdir, readFile, writeFile } from 'node:fs/promises';
import { basename, join, resolve } from 'node:path';
import { VmmError } from '../../native/errno.ts';
import { cached, contentName } from '../cache.ts';
import { runProgram } from '../program.ts';
import { packInitrd } from './initrd.ts';
import {
  configBeside,
  embeddedConfig,
  type KernelConfig,
  missingOptions,
  NEEDED,
  type NeededOption,
  parseKernelConfig,
  USEFUL,
} from './kernel-config.ts';
import { extractVmlinux } from './vmlinux.ts';

export interface OwnKernel {
  /** bzImage or vmlinux. */
  readonly kernel: string;
  /** INSTALL_MOD_PATH of `make modules_install`, or its lib/modules/RELEASE; null: all is built in. */
  readonly modules: string | null;
  /** The .config; null: it is looked for. */
  readonly config: string | null;
}

/** One `--module FILE.ko[,PARAM=VALUE...]`. */
export interface ExtraModule {
  readonly file: string;
  readonly parameters: readonly string[];
}

export interface OwnImage {
  readonly dir: string;
  readonly release: string;
  /** What QEMU boots. */
  readonly kernel: string;
  readonly initrd: string;
}

export interface OwnImageParts {
  readonly own: OwnKernel;
  readonly extra: readonly ExtraModule[];
  readonly cache: string;
  readonly init: string;
  readonly busybox: string;
  readonly say: (line: string) => void;
}

export function parseExtraModule(text: string): ExtraModule {
  const [file, ...parameters] = text.split(',');
  if (!file?.endsWith('.ko')) throw new VmmError('EUSAGE', `--module ${text}: expected FILE.ko[,PARAM=VALUE...]`);
  const bad = parameters.find((each) => !/^[\w-]+(=.*)?$/.test(each));
  if (bad !== undefined) throw new VmmError('EUSAGE', `--module ${text}: "${bad}" is no PARAM=VALUE`);
  return { file: resolve(file), parameters };
}

/** Checks before anything is built, so that the one line comes at once. */
function requireFile(path: string, option: string): void {
  if (!existsSync(path)) throw new VmmError('EUSAGE', `${option} ${path}: no such file`);
}

const ELF = '7f454c46';
/** Linux/x86 boot protocol: kernel_version points (plus 0x200) to the text that begins with the release. */
const VERSION_AT = 0x20e;

/** "6.12.117-amd64" of a bzImage or an ELF kernel. */
export function kernelRelease(image: Buffer, path: string): string {
  if (image.toString('hex', 0, 4) === ELF) {
    const at = image.indexOf('Linux version ', 0, 'latin1');
    const found = at < 0 ? null : /^Linux version (\S+)/.exec(image.toString('latin1', at, at + 200));
    if (found?.[1] !== undefined) return found[1];
    throw new VmmError('EUSAGE', `--kernel ${path}: an ELF file, but no Linux kernel`);
  }
  if (image.length < 0x250 || image.toString('latin1', 0x202, 0x206) !== 'HdrS')
    throw new VmmError('EUSAGE', `--kernel ${path}: neither a bzImage nor an ELF kernel`);
  const at = image.readUInt16LE(VERSION_AT) + 0x200;
  const [release] = image.toString('latin1', at, at + 200).split(/[\s\0]/);
  return release ?? '';
}

/** Directory above lib/modules; null: no modules. */
function moduleRoot(own: OwnKernel, release: string): string | null {
  if (own.modules === null) return null;
  const dir = resolve(own.modules);
  if (existsSync(join(dir, 'lib/modules', release, 'modules.dep'))) return dir;
  if (basename(dir) === release && existsSync(join(dir, 'modules.dep'))) return resolve(dir, '../../..');
  throw new VmmError(
    'EUSAGE',
    `--modules ${own.modules}: no lib/modules/${release}/modules.dep in it; run \`make modules_install INSTALL_MOD_PATH=${own.modules}\` in that kernel's tree`,
  );
}

function listed(options: readonly NeededOption[]): string {
  return options.map(({ option, why }) => `CONFIG_${option} (${why})`).join(', ');
}

async function configOf(own: OwnKernel, release: string, vmlinux: Buffer | null): Promise<KernelConfig | null> {
  if (own.config !== null) {
    requireFile(own.config, '--kernel-config');
    return parseKernelConfig(await readFile(own.config, 'latin1'));
  }
  const text =
    (vmlinux === null ? null : embeddedConfig(vmlinux)) ?? (await configBeside(resolve(own.kernel), release));
  return text === null ? null : parseKernelConfig(text);
}

function judge(config: KernelConfig | null, own: OwnKernel, say: (line: string) => void): void {
  if (config === null) {
    say(
      `${own.kernel}: no configuration found (CONFIG_IKCONFIG is off, no .config beside it): whether it can be a lab host will show; --kernel-config FILE names it`,
    );
    return;
  }
  const missing = missingOptions(config, NEEDED);
  if (missing.length > 0)
    throw new VmmError('EKERNEL', `${own.kernel} cannot be a lab host: it lacks ${listed(missing)}`);
  const modular = NEEDED.filter(({ option }) => config.get(option) === 'm');
  if (own.modules === null && modular.length > 0)
    throw new VmmError(
      'EKERNEL',
      `${own.kernel} has ${modular.map(({ option }) => `CONFIG_${option}`).join(', ')} as modules: give their tree with --modules DIR`,
    );
  const useful = missingOptions(config, USEFUL);
  if (useful.length > 0) say(`${own.kernel} does without ${listed(useful)}`);
}

/** Loaded at boot where the kernel has them as modules. */
const WANTED = [
  ...['virtio_pci', 'virtio_net', '9pnet_virtio', '9p', 'overlay', 'kvm-amd', 'tun'],
  ...['iommufd', 'vfio', 'vfio_iommu_type1', 'vfio-pci', 'mdev'],
];

/** What `modprobe` would load for a name, in order; empty where it is built in or the kernel does not have it. */
async function loadOrder(root: string, release: string, name: string): Promise<string[]> {
  const args = ['-d', root, '-S', release, '--show-depends', name];
  const text = await runProgram('modprobe', args, { purpose: `resolving the module ${name}`, accept: [1] });
  return [...text.matchAll(/^insmod (\S+)/gm)].map((found) => found[1]!);
}

async function allModules(root: string | null, release: string, extra: readonly ExtraModule[]): Promise<string[]> {
  const names = [...WANTED];
  for (const { file } of extra) {
    const depends = await runProgram('modinfo', ['-F', 'depends', file], { purpose: `reading ${file}` });
    names.push(...depends.trim().split(',').filter(Boolean));
    const magic = await runProgram('modinfo', ['-F', 'vermagic', file], { purpose: `reading ${file}` });
    const [built] = magic.split(' ');
    if (built !== release)
      throw new VmmError('EKERNEL', `--module ${file} is built for ${built}, the kernel is ${release}`);
  }
  const paths: string[] = [];
  if (root === null) return paths;
  for (const name of names) {
    for (const path of await loadOrder(root, release, name)) if (!paths.includes(path)) paths.push(path);
  }
  return paths;
}

/** The image for this kernel and these modules; builds what is missing. */
export async function ownImage(parts: OwnImageParts): Promise<OwnImage> {
  const { own, extra, say } = parts;
  requireFile(own.kernel, '--kernel');
  for (const { file } of extra) requireFile(file, '--module');
  const image = await readFile(own.kernel);
  const release = kernelRelease(image, own.kernel);
  const root = moduleRoot(own, release);
  const files = [resolve(own.kernel), ...extra.map(({ file }) => file), parts.init];
  if (root !== null) files.push(join(root, 'lib/modules', release, 'modules.dep'));
  const salt = JSON.stringify(['own 1', root, extra, own.config]);
  const dir = await cached(parts.cache, `lab-own-${await contentName(files, salt)}`, async (into) => {
    const vmlinux = await bootable(own, image, into);
    judge(await configOf(own, release, vmlinux), own, say);
    const stock = await allModules(root, release, extra);
    say(`packing a lab host image with ${release}`);
    const modules = [...stock.map((file) => ({ file, parameters: [] })), ...extra];
    await packInitrd(
      { busybox: parts.busybox, init: parts.init, modules, tree: null },
      join(into, 'initrd'),
      join(into, 'initrd.cpio'),
    );
    await writeFile(join(into, 'image.json'), `${JSON.stringify({ release, kernel: own.kernel }, null, 2)}\n`);
  });
  return { dir, release, kernel: join(dir, 'kernel'), initrd: join(dir, 'initrd.cpio') };
}

/** Puts what QEMU boots into the image; gives the ELF kernel, where there is one, for its configuration. */
async function bootable(own: OwnKernel, image: Buffer, into: string): Promise<Buffer | null> {
  await mkdir(into, { recursive: true });
  await copyFile(own.kernel, join(into, 'kernel'));
  if (image.toString('hex', 0, 4) === ELF) return image;
  const vmlinux = join(into, 'vmlinux');
  try {
    await extractVmlinux(own.kernel, vmlinux);
    return await readFile(vmlinux);
  } catch (error) {
    // A compression that we have no program for: QEMU boots the bzImage all the same.
    if (error instanceof VmmError) return null;
    throw error;
  }
}
