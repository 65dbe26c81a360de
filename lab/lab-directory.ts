// The directory of a running lab: who owns it, which hosts, how to reach them. Called by lab/lab.ts (makes it) and by `ferry lab exec|ls|
// down` (find it). Mode 0700, because the secrets of the agents are in there. What a dead owner left is removed by whoever comes next.
import { mkdirSync, rmSync, statSync } from 'node:fs';
import { mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { processTag, stillRuns } from '../images/cache.ts';
import { VmmError } from '../native/errno.ts';
import type { LabDevice } from './qemu-command.ts';

export interface HostRecord {
  readonly name: string;
  readonly port: number;
  /** A 0600 file. */
  readonly secretFile: string;
  readonly qemuPid: number;
  readonly devices: readonly LabDevice[];
  readonly dir: string;
}

export interface LabRecord {
  readonly name: string;
  /** "pid starttime" of the process whose end is the end of the lab. */
  readonly owner: string;
  readonly ready: boolean;
  readonly hosts: readonly HostRecord[];
}

/** Where all labs of this user are. FERRY_LAB_DIR moves it (tests). */
export function labBase(): string {
  const base = process.env['FERRY_LAB_DIR'] ?? join(tmpdir(), `ferry-lab-${process.getuid?.() ?? 0}`);
  mkdirSync(base, { recursive: true, mode: 0o700 });
  const { uid, mode } = statSync(base);
  if (uid !== (process.getuid?.() ?? uid) || (mode & 0o077) !== 0)
    throw new VmmError('ELAB', `${base} is not a private directory of this user; remove it or set FERRY_LAB_DIR`);
  return base;
}

const RECORD = 'lab.json';

export async function writeRecord(dir: string, record: LabRecord): Promise<void> {
  const path = join(dir, RECORD);
  await writeFile(`${path}.new`, `${JSON.stringify(record, null, 2)}\n`, { mode: 0o600 });
  await rename(`${path}.new`, path);
}

async function readRecord(dir: string): Promise<LabRecord | null> {
  try {
    return JSON.parse(await readFile(join(dir, RECORD), 'utf8')) as LabRecord;
  } catch {
    return null;
  }
}

/** The labs whose owner lives. Removes the directories of the others. */
export async function liveLabs(): Promise<LabRecord[]> {
  const base = labBase();
  const labs: LabRecord[] = [];
  for (const name of await readdir(base)) {
    // The logs of keepers.
    if (name.startsWith('.')) continue;
    const dir = join(base, name);
    const record = await readRecord(dir);
    if (record !== null && stillRuns(record.owner)) labs.push(record);
    // Without a record it is in the making: mkdir and the record are a moment apart.
    else if (record !== null || Date.now() - statSync(dir, { throwIfNoEntry: false })!.mtimeMs > 60_000)
      await rm(dir, { recursive: true, force: true });
  }
  return labs;
}

/** A new directory for the lab `name`, owned by this process. */
export async function createLabDirectory(name: string): Promise<string> {
  if (!/^[A-Za-z0-9][A-Za-z0-9._-]{0,40}$/.test(name))
    throw new VmmError('ELAB', `"${name}" is no name for a lab: letters, digits, dot, dash and underscore only`);
  await liveLabs();
  const dir = join(labBase(), name);
  // unix(7): sun_path has 108 bytes; the longest socket is DIR/host-a/qmp-2.sock.
  if (Buffer.byteLength(dir) > 85)
    throw new VmmError('ELAB', `${dir} is too long a path for the sockets in it; set FERRY_LAB_DIR to a shorter one`);
  try {
    await mkdir(dir, { mode: 0o700 });
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== 'EEXIST') throw cause;
    throw new VmmError(
      'ELAB',
      `a lab "${name}" is up already; use it, end it with "ferry lab down ${name}", or take another name`,
    );
  }
  await writeRecord(dir, { name, owner: processTag(), ready: false, hosts: [] });
  return dir;
}

export function removeLabDirectory(dir: string): void {
  rmSync(dir, { recursive: true, force: true });
}
