// Fetches Debian packages by name and version and unpacks them; nothing is installed, no root is needed. Called by images/lab and images/guest.
// apt's lists may be missing (a fresh container) or older than the mirror (a 404): then they are updated, once.
import { mkdir, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { VmmError } from '../native/errno.ts';
import { runProgram } from './program.ts';

export interface DebianPackage {
  readonly name: string;
  readonly version: string;
}

/** The package that a metapackage pins: `Depends: linux-image-X (= V)`. null: apt does not know the metapackage. */
export async function pinnedBy(metapackage: string, prefix: string): Promise<DebianPackage | null> {
  const text = await runProgram('apt-cache', ['show', '--no-all-versions', metapackage], {
    purpose: `resolving ${metapackage}`,
    accept: [100],
  });
  const depends = /^Depends: (.*)$/m.exec(text)?.[1] ?? '';
  const match = depends
    .split(',')
    .map((each) => /^\s*(\S+) \(= (\S+)\)/.exec(each))
    .find((each) => each?.[1]?.startsWith(prefix));
  return match ? { name: match[1]!, version: match[2]! } : null;
}

export async function updateLists(why: string, say: (line: string) => void): Promise<void> {
  say(`apt-get update (${why})`);
  await runProgram('apt-get', ['update', '-q'], { purpose: 'updating the package lists' });
}

/** Asks apt's lists as they are; when they know nothing, updates them once and asks again. Throws VmmError naming `what`. */
export async function resolveOrUpdate<T>(
  what: string,
  resolve: () => Promise<T | null>,
  say: (line: string) => void,
): Promise<T> {
  const known = await resolve();
  if (known !== null) return known;
  await updateLists(`the package lists do not know ${what} yet`, say);
  const found = await resolve();
  if (found !== null) return found;
  throw new VmmError(
    'EIMAGE',
    `apt knows no ${what}; add bookworm and bookworm-security to apt's sources, then run: apt-get update`,
  );
}

async function download(dir: string, packages: readonly DebianPackage[]): Promise<void> {
  await runProgram('apt-get', ['download', '-q', ...packages.map(({ name, version }) => `${name}=${version}`)], {
    cwd: dir,
    purpose: `downloading ${packages.map(({ name }) => name).join(' ')}`,
  });
}

/** Downloads all into `dir` and returns the .deb path of each name. */
export async function downloadPackages(
  dir: string,
  packages: readonly DebianPackage[],
  say: (line: string) => void,
): Promise<Map<string, string>> {
  await mkdir(dir, { recursive: true });
  try {
    await download(dir, packages);
  } catch (first) {
    await updateLists((first as Error).message, say);
    await download(dir, packages);
  }
  const files = await readdir(dir);
  return new Map(
    packages.map(({ name }) => {
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
