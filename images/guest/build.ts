// The guest of the demo and of the lab tests: Debian's unmodified cloud kernel, and an initrd with our workload as init, busybox for
// people, and the modules that the workload needs. Called by cli/demo.ts, bench and test/lab. Cached by content: kernel package and
// version, workload sources, busybox.
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { copyFile, cp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { VmmError } from '../../native/errno.ts';
import { cached } from '../cache.ts';
import { type DebianPackage, downloadPackages, pinnedBy, resolveOrUpdate, unpackDeb } from '../debian-package.ts';
import { makeModules, relocateHeaders } from '../kmod/build.ts';
import { type ArchiveFile, newcArchive } from './cpio.ts';

const run = promisify(execFile);

export interface GuestImage {
  readonly vmlinuz: string;
  readonly initrd: string;
  /** As `uname -r` says in the guest. */
  readonly release: string;
}

/** 'cloud': Debian 12's 6.1 (LZ4). 'cloud-6.12': the 6.12 of bookworm-security (ZSTD). */
export type GuestVariant = 'cloud' | 'cloud-6.12';

const METAPACKAGE: Record<GuestVariant, string> = {
  cloud: 'linux-image-cloud-amd64',
  'cloud-6.12': 'linux-image-6.12-cloud-amd64',
};

/** In the order in which init loads them. pvpanic-mmio (and the core, which 6.1 has built in) tells the machine of a panic. */
const MODULES = ['uio', 'uio_pci_generic', 'pvpanic', 'pvpanic-mmio'];
const BRINGUP = 'bringup-guest';
const BUSYBOX = '/bin/busybox';
const COMPILE = ['-O2', '-static', '-pthread', '-Wall', '-Wextra', '-Werror'];

/** This folder in the checkout: from the sources (vitest) as from the bundle in dist/, which has no import.meta.url. */
function here(): string {
  let root = dirname(import.meta.url === undefined ? __filename : fileURLToPath(import.meta.url));
  while (!existsSync(join(root, 'package.json'))) {
    if (root === dirname(root)) {
      throw new VmmError(
        'guest-image',
        'the guest image is built from a checkout (no package.json found); run bin/ferry from one',
      );
    }
    root = dirname(root);
  }
  return join(root, 'images', 'guest');
}

export interface GuestExtras {
  /** The guest driver of vfio-bringup too; it is built against the guest kernel's headers (20 MB more to download). */
  readonly bringup?: boolean;
}

/** Builds it, or finds it in `cacheDir`. `say` hears what takes long. */
export async function buildGuest(
  cacheDir: string,
  variant: GuestVariant = 'cloud',
  say: (line: string) => void = () => {},
  extras: GuestExtras = {},
): Promise<GuestImage> {
  const metapackage = METAPACKAGE[variant];
  const kernel = await resolveOrUpdate(metapackage, () => pinnedBy(metapackage, 'linux-image-'), say);
  const release = kernel.name.replace(/^linux-image-/, '');
  const name = `guest-${variant}${extras.bringup ? '-bringup' : ''}-${await contentKey(kernel)}`;
  const home = await cached(cacheDir, name, async (dir) => {
    say(`building the guest: ${kernel.name} ${kernel.version} and the workload`);
    const work = join(dir, 'work');
    const debs = await downloadPackages(work, [kernel], say);
    await unpackDeb(debs.get(kernel.name) ?? '', work);
    await copyFile(join(work, 'boot', `vmlinuz-${release}`), join(dir, 'vmlinuz'));
    const init = await compileWorkload(work);
    const modules = await readModules(join(work, 'lib', 'modules', release));
    if (extras.bringup) modules.push(await bringupModule(work, kernel, say));
    await writeFile(join(dir, 'initrd'), await initrd(init, modules));
    await rm(work, { recursive: true });
  });
  return { vmlinuz: join(home, 'vmlinuz'), initrd: join(home, 'initrd'), release };
}

/** The initrd alone, for a test of the workload with a kernel of its own. */
export async function initrd(init: Uint8Array, modules: readonly ArchiveFile[]): Promise<Buffer> {
  const order = modules.map((m) => `${basename(m.path)}\n`).join('');
  return newcArchive([
    { path: 'init', mode: 0o755, content: init },
    { path: 'bin/busybox', mode: 0o755, content: await readBusybox() },
    ...modules,
    { path: 'modules/order', mode: 0o644, content: Buffer.from(order) },
  ]);
}

async function readBusybox(): Promise<Uint8Array> {
  try {
    return await readFile(BUSYBOX);
  } catch (cause) {
    throw new VmmError('guest-image', `${BUSYBOX} is missing; run: apt-get install busybox-static`, { cause });
  }
}

async function contentKey(kernel: DebianPackage): Promise<string> {
  const hash = createHash('sha256').update(JSON.stringify([kernel, MODULES, COMPILE]));
  const workload = join(here(), 'workload');
  for (const file of (await readdir(workload)).sort()) hash.update(file).update(await readFile(join(workload, file)));
  for (const file of ['build.ts', 'cpio.ts', `${BRINGUP}/Kbuild`, `${BRINGUP}/${BRINGUP}.c`])
    hash.update(await readFile(join(here(), file)));
  return hash
    .update(await readBusybox())
    .digest('hex')
    .slice(0, 16);
}

async function compileWorkload(work: string): Promise<Uint8Array> {
  const workload = join(here(), 'workload');
  const sources = (await readdir(workload)).filter((f) => f.endsWith('.c')).sort();
  const out = join(work, 'init');
  try {
    await run('gcc', [...COMPILE, '-s', '-o', out, ...sources.map((f) => join(workload, f))]);
  } catch (cause) {
    throw new VmmError('guest-image', 'gcc cannot build the guest workload; run: apt-get install gcc libc6-dev', {
      cause,
    });
  }
  return await readFile(out);
}

/** Debian's names of what modules for a kernel are built with: the series has one kbuild (6.1), or each kernel its own (6.12). */
function headerPackages({ name, version }: DebianPackage): DebianPackage[] {
  const base = name.replace(/^linux-image-/, '').replace(/-cloud-amd64$/, '');
  const series = /^6\.1\.0-/.test(base) ? '6.1' : base;
  return [name.replace('-image-', '-headers-'), `linux-headers-${base}-common`, `linux-kbuild-${series}`].map(
    (each) => ({
      name: each,
      version,
    }),
  );
}

async function bringupModule(work: string, kernel: DebianPackage, say: (line: string) => void): Promise<ArchiveFile> {
  const headers = { root: join(work, 'headers'), release: kernel.name.replace(/^linux-image-/, '') };
  const packages = headerPackages(kernel);
  const debs = await downloadPackages(join(work, 'header-debs'), packages, say);
  for (const { name } of packages) await unpackDeb(debs.get(name) ?? '', headers.root);
  await relocateHeaders(headers);
  const dir = join(work, BRINGUP);
  await cp(join(here(), BRINGUP), dir, { recursive: true });
  await makeModules(headers, dir, []);
  const built = join(dir, `${BRINGUP}.ko`);
  await run('strip', ['-g', built]);
  return { path: `modules/${BRINGUP}.ko`, mode: 0o644, content: await readFile(built) };
}

/** Modules by name, unpacked; those that this kernel has built in are left out. */
async function readModules(tree: string): Promise<ArchiveFile[]> {
  const files = (await readdir(tree, { recursive: true })).filter((f) => /\.ko(\.xz)?$/.test(f));
  const found: ArchiveFile[] = [];
  for (const name of MODULES) {
    const file = files.find((f) => basename(f).replace(/\.ko(\.xz)?$/, '') === name);
    if (file === undefined) continue;
    const content = file.endsWith('.xz') ? await unxz(join(tree, file)) : await readFile(join(tree, file));
    found.push({ path: `modules/${name}.ko`, mode: 0o644, content });
  }
  return found;
}

async function unxz(path: string): Promise<Uint8Array> {
  const { stdout } = await run('xz', ['-dc', path], { encoding: 'buffer', maxBuffer: 2 ** 26 });
  return stdout;
}
