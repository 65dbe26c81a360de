// Unpacked kernels on disk, by the SHA-256 of the bzImage: <cache>/vmlinux-1-<hash> (1: the form that compact-elf.ts gives them). A second name made of the
// file's identity (size, inode, mtime, ctime) points at it, so that a warm start neither reads nor hashes the bzImage.
// Entries appear by rename(2), whole or not at all. A cache that cannot be written is only slower. Called by load.ts.
import { constants } from 'node:fs';
import { type FileHandle, lstat, mkdir, open, readlink, rename, rm, symlink, writeFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join } from 'node:path';

/** A file changed this shortly before it is looked at may change again within the same time stamp (as git's index has it: "racy"). */
const RACY_NS = 2_000_000_000n;

/** XDG_CACHE_HOME when set, the system's cache for root, else ~/.cache. */
export function defaultCacheDir(env: NodeJS.ProcessEnv, uid: number): string {
  const xdg = env['XDG_CACHE_HOME'];
  if (xdg?.startsWith('/')) return join(xdg, 'ferry');
  return uid === 0 ? '/var/cache/ferry' : join(homedir(), '.cache', 'ferry');
}

const name = (hash: string): string => `vmlinux-1-${hash}`;

async function identity(file: FileHandle): Promise<string | null> {
  const s = await file.stat({ bigint: true });
  const now = BigInt(Date.now()) * 1_000_000n;
  if (now - s.ctimeNs < RACY_NS) return null;
  return `${s.dev}-${s.ino}-${s.size}-${s.mtimeNs}-${s.ctimeNs}`;
}

/** SHA-256. Its module loads crypto, which takes longer than all that a warm start does here. */
async function hashOf(file: FileHandle): Promise<string> {
  return (await import('./content-hash.ts')).contentHash(file);
}

/** Opened for reading, or null when it is not there or is not ours: in a shared cache another user's file must not become a kernel. */
async function openOwn(path: string): Promise<FileHandle | null> {
  try {
    const file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW);
    const { uid, mode } = await file.stat();
    if (uid === process.getuid?.() && (mode & 0o022) === 0) return file;
    await file.close();
    return null;
  } catch {
    return null;
  }
}

/** The cached vmlinux of this bzImage, or null. */
export async function findVmlinux(cacheDir: string, bzImage: FileHandle): Promise<FileHandle | null> {
  const key = await identity(bzImage);
  if (key !== null) {
    const known = join(cacheDir, `by-file-${key}`);
    try {
      // The link of somebody else is not followed.
      if ((await lstat(known)).uid === process.getuid?.()) {
        const found = await openOwn(join(cacheDir, (await readlink(known)).replaceAll('/', '')));
        if (found !== null) return found;
      }
    } catch {
      // Not there yet.
    }
  }
  const hash = await hashOf(bzImage);
  const found = await openOwn(join(cacheDir, name(hash)));
  if (found !== null && key !== null) await link(cacheDir, key, hash);
  return found;
}

/** Puts it there and opens it. Null when the cache cannot be written. */
export async function storeVmlinux(cacheDir: string, bzImage: FileHandle, vmlinux: Buffer): Promise<FileHandle | null> {
  const temporary = join(cacheDir, `.new-${process.pid}-${process.hrtime.bigint()}`);
  try {
    await mkdir(cacheDir, { recursive: true, mode: 0o700 });
    const hash = await hashOf(bzImage);
    await writeFile(temporary, vmlinux, { mode: 0o600, flag: 'wx' });
    await rename(temporary, join(cacheDir, name(hash)));
    const key = await identity(bzImage);
    if (key !== null) await link(cacheDir, key, hash);
    return await openOwn(join(cacheDir, name(hash)));
  } catch {
    await discard(temporary);
    return null;
  }
}

/** A directory that may not even be searched has nothing of ours in it. */
async function discard(temporary: string): Promise<void> {
  await rm(temporary, { force: true }).catch(() => undefined);
}

async function link(cacheDir: string, key: string, hash: string): Promise<void> {
  const temporary = join(cacheDir, `.new-${process.pid}-${process.hrtime.bigint()}`);
  try {
    await symlink(name(hash), temporary);
    await rename(temporary, join(cacheDir, `by-file-${key}`));
  } catch {
    await discard(temporary);
  }
}
