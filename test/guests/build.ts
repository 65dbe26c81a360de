// Builds the flat test guests (multiboot-1 ELF32 with 64-bit code) with the host's gcc, at test time; cached by content in out/guests.
// Called by tests of every room. `buildFlatGuest('worker')` gives the path of the image made of test/guests/worker.c and lib/.
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';

const HERE = import.meta.dirname;
const OUT = join(HERE, '..', '..', 'out', 'guests');
/** KVMs that interpret ring 0 know no SSE and little else; a red zone would be overwritten by interrupts. */
const FLAGS = [
  '-O1',
  '-Wall',
  '-Wextra',
  '-Werror',
  '-ffreestanding',
  '-fno-stack-protector',
  '-fno-pic',
  '-fcf-protection=none',
  '-fno-asynchronous-unwind-tables',
  '-mno-red-zone',
  '-mgeneral-regs-only',
  '-nostdlib',
  '-static',
  '-no-pie',
];

export function buildFlatGuest(name: string): string {
  const lib = join(HERE, 'lib');
  const libFiles = readdirSync(lib)
    .sort()
    .map((f) => join(lib, f));
  const source = join(HERE, `${name}.c`);
  const hash = createHash('sha256').update(FLAGS.join(' '));
  for (const file of [source, ...libFiles]) hash.update(readFileSync(file));
  const image = join(OUT, `${name}-${hash.digest('hex').slice(0, 16)}.elf`);
  if (existsSync(image)) return image;
  mkdirSync(OUT, { recursive: true });
  const work = mkdtempSync(join(OUT, '.new-'));
  try {
    const elf64 = join(work, 'elf64');
    const link = [
      `-Wl,-T,${join(lib, 'guest.ld')}`,
      '-Wl,--build-id=none',
      '-Wl,-z,max-page-size=4096',
      '-Wl,--no-warn-rwx-segments',
    ];
    const sources = [join(lib, 'start.S'), join(lib, 'guest.c'), source];
    execFileSync('gcc', [...FLAGS, `-I${lib}`, ...link, '-o', elf64, ...sources], { stdio: 'pipe' });
    // A multiboot-1 loader takes ELF32 only; the code in it stays 64-bit, as in kvm-unit-tests.
    execFileSync('objcopy', ['-O', 'elf32-i386', elf64, join(work, 'elf32')], { stdio: 'pipe' });
    renameSync(join(work, 'elf32'), image);
    return image;
  } finally {
    rmSync(work, { recursive: true });
  }
}
