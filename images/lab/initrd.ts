// Packs the lab host's initrd: busybox, images/lab/init and the modules in their order of loading. Called by images/lab/image.ts.
// Not compressed: an emulated host unpacks more slowly than QEMU loads. Documentation/driver-api/early-userspace/buffer-format.rst.
import { chmod, copyFile, mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { basename, extname, join } from 'node:path';
import { VmmError } from '../../native/errno.ts';
import { runProgram } from '../program.ts';

export interface InitrdParts {
  readonly busybox: string;
  readonly init: string;
  /** In the order of loading. */
  readonly modules: readonly InitrdModule[];
  /** Where modprobe finds the others: their lib/modules/RELEASE, below the cache; null: nowhere. */
  readonly tree: string | null;
}

export interface InitrdModule {
  /** .ko, or packed as Debian and others do it: .ko.xz, .ko.zst, .ko.gz. */
  readonly file: string;
  /** NAME=VALUE each. */
  readonly parameters: readonly string[];
}

const UNPACK: Readonly<Record<string, string>> = { '.xz': 'xz', '.zst': 'zstd', '.gz': 'gzip' };

async function placeModule({ file, parameters }: InitrdModule, order: number, dir: string): Promise<void> {
  const packing = extname(file);
  const program = UNPACK[packing];
  const name = `${String(order).padStart(3, '0')}-${basename(file, program === undefined ? '' : packing)}`;
  const to = join(dir, name);
  if (program === undefined) await copyFile(file, to);
  else await runProgram(program, ['-dc', file], { purpose: 'unpacking a module', outFile: to });
  if (parameters.length > 0) await writeFile(`${to}.parameters`, parameters.join(' '));
}

const PT_INTERP = 3;

/** An initrd has no shared libraries, and Debian has two packages of busybox. Reads the ELF64 program headers. */
async function requireStatic(path: string): Promise<void> {
  const elf = await readFile(path);
  const at = Number(elf.readBigUInt64LE(0x20));
  const [size, count] = [elf.readUInt16LE(0x36), elf.readUInt16LE(0x38)];
  for (let n = 0; n < count; n++) {
    if (elf.readUInt32LE(at + n * size) === PT_INTERP)
      throw new VmmError('EIMAGE', `${path} needs shared libraries; run: apt-get install -y busybox-static`);
  }
}

/** Writes the cpio archive to `outPath`; `scratch` is a directory of its own, removed afterwards. */
export async function packInitrd(parts: InitrdParts, scratch: string, outPath: string): Promise<void> {
  await requireStatic(parts.busybox);
  for (const dir of ['bin', 'dev', 'proc', 'sys', 'modules']) await mkdir(join(scratch, dir), { recursive: true });
  await copyFile(parts.busybox, join(scratch, 'bin/busybox'));
  await copyFile(parts.init, join(scratch, 'init'));
  await chmod(join(scratch, 'init'), 0o755);
  await chmod(join(scratch, 'bin/busybox'), 0o755);
  for (const [index, module] of parts.modules.entries()) await placeModule(module, index, join(scratch, 'modules'));
  if (parts.tree !== null) await writeFile(join(scratch, 'modules/tree'), `${parts.tree}\n`);
  const names = (await readdir(scratch, { recursive: true })).sort();
  await runProgram('cpio', ['-o', '-H', 'newc', '--quiet', '-R', '0:0'], {
    purpose: 'packing the initrd',
    cwd: scratch,
    input: `${names.join('\n')}\n`,
    outFile: outPath,
  });
  await rm(scratch, { recursive: true });
}
