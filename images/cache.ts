// The cache of what is built once: a directory per content name, complete or not there. Called by images/lab and whoever else builds an
// image. Several processes may ask for the same one: the first builds, the others wait; a builder that died is taken over.
import { createHash } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { mkdir, open, readdir, readFile, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

/** Process start time in clock ticks since boot (proc(5), stat field 22): a pid alone may have been given to another process. null: gone. */
export function processStart(pid: number): string | null {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    // A zombie holds nothing any more.
    return fields[0] === 'Z' ? null : (fields[19] ?? null);
  } catch {
    return null;
  }
}

/** "pid starttime", comparable with stillRuns(). */
export function processTag(pid: number = process.pid): string {
  return `${pid} ${processStart(pid) ?? '?'}`;
}

export function stillRuns(tag: string): boolean {
  const [pid, start] = tag.trim().split(' ');
  return processStart(Number(pid)) === start;
}

/** SHA-256 over file names and contents, and over `salt`, shortened to 12 hex digits. */
export async function contentName(files: readonly string[], salt: string): Promise<string> {
  const hash = createHash('sha256').update(salt);
  for (const file of files) hash.update(`\0${file.split('/').slice(-2).join('/')}\0`).update(await readFile(file));
  return hash.digest('hex').slice(0, 12);
}

async function lock(path: string): Promise<() => Promise<void>> {
  for (;;) {
    try {
      const file = await open(path, 'wx', 0o600);
      await file.writeFile(processTag());
      await file.close();
      return () => rm(path, { force: true });
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    }
    const holder = await readFile(path, 'latin1').catch(() => '');
    // An empty file belongs to somebody between open and write.
    if (holder !== '' && !stillRuns(holder)) await rm(path, { force: true });
    else await sleep(200);
  }
}

/** The directory `name` in the cache, made by `build` in a temporary one if it is not there yet. */
export async function cached(root: string, name: string, build: (dir: string) => Promise<void>): Promise<string> {
  const dir = join(root, name);
  if (existsSync(dir)) return dir;
  await mkdir(root, { recursive: true });
  const unlock = await lock(`${dir}.lock`);
  try {
    if (existsSync(dir)) return dir;
    for (const stale of (await readdir(root)).filter((each) => each.startsWith(`${name}.tmp`)))
      await rm(join(root, stale), { recursive: true, force: true });
    const temporary = `${dir}.tmp`;
    await mkdir(temporary);
    try {
      await build(temporary);
      await rename(temporary, dir);
    } finally {
      await rm(temporary, { recursive: true, force: true });
    }
    return dir;
  } finally {
    await unlock();
  }
}
