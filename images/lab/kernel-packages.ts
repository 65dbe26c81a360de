// Which Debian packages make the lab's kernel, at one version, and how they get here. Called by images/lab/kernel.ts. Version 6.12 because
// the lab needs VFIO with PRE_COPY and MIG_DATA_SIZE; the exact one is resolved through Debian's metapackages, since old ones vanish from
// the mirror. Nothing is installed: `apt-get download` and `dpkg -x`.
import { VmmError } from '../../native/errno.ts';
import { downloadPackages, pinnedBy, resolveOrUpdate } from '../debian-package.ts';
import { runProgram } from '../program.ts';

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

async function versionsOf(name: string): Promise<string[]> {
  const text = await runProgram('apt-cache', ['madison', name], { purpose: 'resolving the lab kernel' });
  return text.split('\n').flatMap((line) => {
    const [found, version] = line.split('|').map((cell) => cell.trim());
    return found === name && version !== undefined ? [version] : [];
  });
}

async function resolveOnce(): Promise<KernelPackages | null> {
  const image = await pinnedBy(`linux-image-${SERIES}-amd64`, `linux-image-${SERIES}`);
  const headers = await pinnedBy(`linux-headers-${SERIES}-amd64`, `linux-headers-${SERIES}`);
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

/** Throws VmmError when apt does not know them, or the mirror is between two versions. */
export function resolveKernelPackages(say: (line: string) => void): Promise<KernelPackages> {
  return resolveOrUpdate(`linux-image-${SERIES}-amd64`, resolveOnce, say);
}

/** Downloads all into `dir` and returns the .deb path of each name. */
export async function downloadKernelPackages(
  dir: string,
  packages: KernelPackages,
  say: (line: string) => void,
): Promise<Map<string, string>> {
  const names = [packages.image, packages.headers, packages.headersCommon, packages.kbuild, packages.source];
  say(`downloading ${names.join(' ')} ${packages.version} (about 280 MB)`);
  return downloadPackages(
    dir,
    names.map((name) => ({ name, version: packages.version })),
    say,
  );
}
