// Fetches a Debian package by its metapackage: resolves the real name and version from apt's lists, downloads it with apt-get and unpacks
// it with dpkg-deb into a directory. Called by build.ts. Needs no root; installs nothing.
import { execFile } from 'node:child_process';
import { chmod, mkdtemp, readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { VmmError } from '../../native/errno.ts';

const run = promisify(execFile);

export interface ResolvedPackage {
  readonly name: string;
  readonly version: string;
}

async function apt(args: readonly string[]): Promise<string> {
  const environment = { ...process.env, LC_ALL: 'C' };
  const { stdout } = await run('apt-cache', [...args], { env: environment, maxBuffer: 2 ** 24 });
  return stdout;
}

/** linux-image-cloud-amd64 -> the kernel that it depends on. */
export async function resolvePackage(metapackage: string): Promise<ResolvedPackage> {
  const missing = new VmmError(
    'guest-kernel',
    `apt knows no package ${metapackage}; run: apt-get update (Debian 12 with bookworm and bookworm-security in its sources)`,
  );
  const depends = await apt(['depends', '--important', metapackage]).catch(() => '');
  const name = /^\s*Depends: (linux-image-\d\S+)$/m.exec(depends)?.[1];
  if (name === undefined) throw missing;
  const version = /^\s*Candidate: (\S+)$/m.exec(await apt(['policy', name]))?.[1];
  if (version === undefined || version === '(none)') throw missing;
  return { name, version };
}

/** Unpacks the package into `into`, which must exist. */
export async function unpackPackage(resolved: ResolvedPackage, into: string): Promise<void> {
  const work = await mkdtemp(join(into, '.deb-'));
  try {
    await chmod(work, 0o755); // apt's own user writes here
    const wanted = `${resolved.name}=${resolved.version}`;
    try {
      await run('apt-get', ['download', '-q', wanted], { cwd: work, maxBuffer: 2 ** 24 });
    } catch (cause) {
      throw new VmmError(
        'guest-kernel',
        `apt-get download ${wanted} failed; check the network, then run: apt-get update`,
        { cause },
      );
    }
    const deb = (await readdir(work)).find((file) => file.endsWith('.deb'));
    if (deb === undefined)
      throw new VmmError('guest-kernel', `apt-get download ${wanted} left no file; run: apt-get update`);
    await run('dpkg-deb', ['-x', join(work, deb), into]);
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}
