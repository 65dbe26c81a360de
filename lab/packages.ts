// The Debian packages that a lab host needs on the outer host, and the check for them. Called by lab/image.ts before anything is built
// and by scripts/setup.mjs, which installs them. Order is the order in which they are named to the user.
import { accessSync, constants } from 'node:fs';
import { join } from 'node:path';

export interface LabPackage {
  readonly name: string;
  /** A program of the package: there is no other check, so a program from elsewhere will do as well. */
  readonly program: string;
}

export const labPackages: readonly LabPackage[] = [
  { name: 'qemu-system-x86', program: 'qemu-system-x86_64' },
  { name: 'busybox-static', program: 'busybox' },
  { name: 'cpio', program: 'cpio' },
  { name: 'kmod', program: 'depmod' },
  { name: 'xz-utils', program: 'xz' },
  { name: 'zstd', program: 'zstd' },
  { name: 'lz4', program: 'lz4' },
  { name: 'gcc-12', program: 'gcc-12' },
  { name: 'make', program: 'make' },
  { name: 'bc', program: 'bc' },
  { name: 'util-linux', program: 'setpriv' },
];

// depmod and friends are in sbin, which an ordinary user's PATH leaves out.
const EXTRA_PATH = ['/usr/sbin', '/sbin'];

/** The full path of a program, or null. */
export function findProgram(program: string): string | null {
  for (const dir of [...(process.env['PATH'] ?? '').split(':'), ...EXTRA_PATH]) {
    const path = join(dir, program);
    try {
      accessSync(path, constants.X_OK);
      return path;
    } catch {
      // not here
    }
  }
  return null;
}

/** Names of the packages whose program is not there. */
export function missingLabPackages(): string[] {
  return labPackages.filter((each) => findProgram(each.program) === null).map((each) => each.name);
}

/** Why no lab can be had here (for a test's printed skip), or null. */
export function labUnavailable(): string | null {
  if (process.arch !== 'x64') return `the lab emulates x86-64 hosts for x86-64 programs, this is ${process.arch}`;
  const missing = missingLabPackages();
  return missing.length === 0 ? null : `Debian packages are missing: ${missing.join(' ')}`;
}
