// Which Debian packages make the lab's kernel, at one version, and how they get here. Called by images/lab/kernel.ts. Version 6.12 because
// the lab needs VFIO with PRE_COPY and MIG_DATA_SIZE; the exact one is resolved through Debian's metapackages, since old ones vanish from
// the mirror. Nothing is installed: `apt-get download` and `dpkg -x`.
import { mkdir, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { VmmError } from '../../native/errno.ts';
import { runProgram } from './program.ts';

export interface KernelPackages {
  /** What uname -r says: 6.12.117+deb12-amd64. */
  readonly release: string;
  /** Debian's version, the same for all of them. */
  readonly version: string;
  readonly image: string;
  readonly headers: string;
  readonly headersCommon: string;
  readonly kbuild: string;
  readonly source: string;
}

const SERIES = '6.12';

/** The package that a metapackage pins: `Depends: linux-image-X (= V)`. null: the metapackage is unknown to apt. */
async function pinned(metapackage: string, prefix: string): Promise<{ name: string; version: string } | null> {
  const text = await runProgram('apt-cache', ['show', '--no-all-versions', metapackage], {
    purpose: 'resolving the lab kernel',
    accept: [100],
  });
  const depends = /^Depends: (.*)$/m.exec(text)?.[1] ?? '';
  const match = depends
    .split(',')
    .map((each) => /^\s*(\S+) \(= (\S+)\)/.exec(each))
    .find((each) => each?.[1]?.startsWith(prefix));
  return match ? { name: match[1]!, version: match[2]! } : null;
}

async function versionsOf(name: string): Promise<string[]> {
  const text = await runProgram('apt-cache', ['madison', name], { purpose: 'resolving the lab kernel' });
  return text.split('\n').flatMap((line) => {
    const [found, version] = line.split('|').map((cell) => cell.trim());
    return found === name && version !== undefined ? [version] : [];
  });
}

async function resolveOnce(): Promise<KernelPackages | null> {
  const image = await pinned(`linux-image-${SERIES}-amd64`, `linux-image-${SERIES}`);
  const headers = await pinned(`linux-headers-${SERIES}-amd64`, `linux-headers-${SERIES}`);
  if (image === null || headers === null) return null;
  const release = image.name.replace('linux-image-', '');
  const base = release.replace(/-amd64$/, '');
  const packages: KernelPackages = {
    release,
    version: image.version,
    image: image.name,
    headers: headers.name,
    headersCommon: `linux-headers-${base}-common`,
    kbuild: `linux-kbuild-${base}`,
    source: `linux-source-${SERIES}`,
  };
  const skewed: string[] = [];
  if (headers.version !== image.version) skewed.push(`${headers.name} ${headers.version}`);
  for (const name of [packages.image, packages.headersCommon, packages.kbuild, packages.source]) {
    if (!(await versionsOf(name)).includes(image.version)) skewed.push(`${name} without that version`);
  }
  if (skewed.length > 0) {
    throw new VmmError(
      'EIMAGE',
      `the Debian mirror is between two kernel versions: ${image.name} is ${image.version}, but there is ${skewed.join(', ')}; run apt-get update and try again later`,
    );
  }
  return packages;
}

/** Asks apt's lists as they are; if they do not know the metapackage (a fresh container has none), updates them once. */
export async function resolveKernelPackages(say: (line: string) => void): Promise<KernelPackages> {
  const known = await resolveOnce();
  if (known !== null) return known;
  say('apt-get update (the package lists do not know linux-image-6.12-amd64 yet)');
  await runProgram('apt-get', ['update', '-q'], { purpose: 'updating the package lists' });
  const found = await resolveOnce();
  if (found !== null) return found;
  throw new VmmError(
    'EIMAGE',
    'apt knows no linux-image-6.12-amd64; add bookworm-security to the sources (deb http://deb.debian.org/debian-security bookworm-security main), then apt-get update',
  );
}

async function download(dir: string, names: readonly string[], version: string): Promise<void> {
  await runProgram('apt-get', ['download', '-q', ...names.map((name) => `${name}=${version}`)], {
    cwd: dir,
    purpose: 'downloading the lab kernel',
  });
}

/** Downloads all into `dir` and returns the .deb path of each name. A stale list (404) is updated once. */
export async function downloadKernelPackages(
  dir: string,
  packages: KernelPackages,
  say: (line: string) => void,
): Promise<Map<string, string>> {
  const names = [packages.image, packages.headers, packages.headersCommon, packages.kbuild, packages.source];
  await mkdir(dir, { recursive: true });
  say(`downloading ${names.join(' ')} ${packages.version} (about 280 MB)`);
  try {
    await download(dir, names, packages.version);
  } catch (first) {
    say(`again after apt-get update: ${(first as Error).message}`);
    await runProgram('apt-get', ['update', '-q'], { purpose: 'updating the package lists' });
    await download(dir, names, packages.version);
  }
  const files = await readdir(dir);
  return new Map(
    names.map((name) => {
      const file = files.find((each) => each.startsWith(`${name}_`) && each.endsWith('.deb'));
      if (file === undefined) throw new VmmError('EIMAGE', `apt-get download left no ${name} in ${dir}`);
      return [name, join(dir, file)];
    }),
  );
}

/** dpkg -x. */
export async function unpackDeb(deb: string, into: string): Promise<void> {
  await mkdir(into, { recursive: true });
  await runProgram('dpkg', ['-x', deb, into], { purpose: `unpacking ${deb}` });
}
