// From --kernel, --initrd and --append to guest RAM and the boot vCPU's registers. openBoot() judges the files and finds the way to start
// them; BootImage.load() writes RAM, at power-on and again at every reset. Called by vmm/machine.ts on the JS thread.
// Ways, in order of preference: vmlinux by PVH, bzImage as its cached vmlinux, 64-bit boot protocol, multiboot-1.
import { constants } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import type { GpaRange, GuestMemory } from '../../devices/contract.ts';
import { VmmError } from '../../native/errno.ts';
import { writeAcpi } from '../acpi/tables.ts';
import type { BootConfig } from '../api.ts';
import { type BzImageHeader, isBzImage, parseBzImage } from './bzimage.ts';
import { compactElf } from './compact-elf.ts';
import { type ElfImage, isElf, parseElf, pvhEntry } from './elf.ts';
import type { InitrdFile } from './initrd.ts';
import { defaultCacheDir, findVmlinux, storeVmlinux } from './kernel-cache.ts';
import { loadBzImage, loadElf64 } from './linux64.ts';
import { loadMultiboot, MULTIBOOT_SEARCH, multibootFlags, multibootRefusal } from './multiboot.ts';
import { loadPvh } from './pvh.ts';
import { RamImage } from './ram-image.ts';
import type { BootRegisters } from './registers.ts';

export type BootKind = 'pvh' | 'linux64' | 'multiboot';

export interface LoadContext {
  readonly memory: GuestMemory;
  readonly cpus: number;
  /** RAM was never written: what must be zero need not be touched. */
  readonly fresh: boolean;
}

/** The boot vCPU's registers, and where the files' bytes lie: the guest will touch them first. */
export interface Loaded extends BootRegisters {
  readonly filled: readonly GpaRange[];
}

export interface BootImage {
  readonly kind: BootKind;
  /** Worth a line to the user: why the start is slower than it could be. */
  readonly notes: readonly string[];
  load(context: LoadContext): Promise<Loaded>;
  close(): Promise<void>;
}

type Kernel =
  | { readonly kind: 'pvh'; readonly file: FileHandle; readonly elf: ElfImage; readonly entry: number }
  | { readonly kind: 'elf64'; readonly file: FileHandle; readonly elf: ElfImage }
  | { readonly kind: 'bzimage'; readonly file: FileHandle; readonly header: BzImageHeader }
  | { readonly kind: 'multiboot'; readonly file: FileHandle; readonly elf: ElfImage };

/** Enough for every header that is looked at. */
const HEAD = MULTIBOOT_SEARCH + 4096;
const NOTES_MAX = 2 ** 20;

export interface OpenOptions {
  /** Where unpacked kernels are kept. */
  readonly cacheDir?: string;
}

/** Throws VmmError, exit code 2, for files that are not there, not readable or not what they should be. */
export async function openBoot(boot: BootConfig, options: OpenOptions = {}): Promise<BootImage> {
  const opened: FileHandle[] = [];
  try {
    const file = await openFile(boot.kernel, 'kernel', opened);
    const initrd = boot.initrd === null ? null : await openInitrd(boot.initrd, opened);
    const notes: string[] = [];
    const cacheDir = options.cacheDir ?? defaultCacheDir(process.env, process.getuid?.() ?? 0);
    const kernel = await judgeKernel(file, boot.kernel, { cacheDir, notes, opened });
    return {
      kind: kernel.kind === 'pvh' || kernel.kind === 'multiboot' ? kernel.kind : 'linux64',
      notes,
      load: async (context) => {
        const ram = new RamImage(context.memory, context.fresh);
        return { ...(await load(kernel, boot, initrd, { ram, cpus: context.cpus })), filled: ram.filled };
      },
      close: () => closeAll(opened),
    };
  } catch (error) {
    await closeAll(opened);
    throw error;
  }
}

async function closeAll(files: FileHandle[]): Promise<void> {
  await Promise.all(files.splice(0).map((file) => file.close()));
}

async function openFile(path: string, what: string, opened: FileHandle[]): Promise<FileHandle> {
  let file: FileHandle;
  try {
    // O_NONBLOCK: a fifo would otherwise hold us here for ever.
    file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (cause) {
    const code = cause instanceof Error && 'code' in cause ? String(cause.code) : 'an unknown error';
    const found =
      code === 'ENOENT'
        ? 'there is no such file'
        : code === 'EACCES'
          ? 'it is not readable for this user'
          : `open: ${code}`;
    throw new VmmError(`boot-${what}`, `cannot open the ${what} ${path}: ${found}; check --${what}`, { cause });
  }
  opened.push(file);
  if (!(await file.stat()).isFile()) {
    throw new VmmError(`boot-${what}`, `cannot use ${path} as the ${what}: it is not a regular file; check --${what}`);
  }
  return file;
}

async function openInitrd(path: string, opened: FileHandle[]): Promise<InitrdFile> {
  const file = await openFile(path, 'initrd', opened);
  const { size } = await file.stat();
  if (size === 0) throw new VmmError('boot-initrd', `the initrd ${path} is empty; check --initrd`);
  return { file, path, size };
}

interface Judging {
  readonly cacheDir: string;
  readonly notes: string[];
  readonly opened: FileHandle[];
}

async function judgeKernel(file: FileHandle, path: string, judging: Judging): Promise<Kernel> {
  const { size } = await file.stat();
  const head = new Uint8Array(HEAD);
  const { bytesRead } = await file.read(head, 0, HEAD, 0);
  const bytes = head.subarray(0, bytesRead);
  if (isBzImage(bytes)) return await judgeBzImage(file, path, bytes, judging);
  if (isElf(bytes)) return await judgeElf(file, path, bytes, size);
  throw refused(path, 'is neither a bzImage nor an ELF file');
}

function refused(path: string, why: string): VmmError {
  return new VmmError(
    'boot-kernel',
    `cannot start the kernel ${path}: it ${why}; give a Linux bzImage or vmlinux for x86-64`,
  );
}

async function judgeElf(file: FileHandle, path: string, head: Uint8Array, size: number): Promise<Kernel> {
  const elf = parseElf(head, size);
  if (typeof elf === 'string') throw refused(path, `is ${elf}`);
  const flags = multibootFlags(head);
  if (flags !== null) {
    const refusal = multibootRefusal(flags, elf);
    if (refusal !== null) throw new VmmError('boot-kernel', `cannot start the kernel ${path}: it ${refusal}`);
    return { kind: 'multiboot', file, elf };
  }
  for (const note of elf.notes) {
    const bytes = new Uint8Array(Math.min(note.size, NOTES_MAX));
    await file.read(bytes, 0, bytes.length, note.offset);
    const entry = pvhEntry(bytes);
    if (entry !== null) return { kind: 'pvh', file, elf, entry };
  }
  if (elf.bits === 64) return { kind: 'elf64', file, elf };
  throw refused(path, 'is an ELF32 file without a multiboot header or a PVH note');
}

async function judgeBzImage(file: FileHandle, path: string, head: Uint8Array, judging: Judging): Promise<Kernel> {
  const { size } = await file.stat();
  const header = parseBzImage(head, size);
  if (typeof header === 'string') throw new VmmError('boot-kernel', `cannot start the kernel ${path}: it ${header}`);
  const vmlinux = await vmlinuxOf(file, header, judging);
  if (vmlinux === null) return { kind: 'bzimage', file, header };
  judging.opened.push(vmlinux);
  const elfHead = new Uint8Array(HEAD);
  await vmlinux.read(elfHead, 0, HEAD, 0);
  return await judgeElf(vmlinux, `${path} (its vmlinux)`, elfHead, (await vmlinux.stat()).size);
}

async function vmlinuxOf(file: FileHandle, header: BzImageHeader, judging: Judging): Promise<FileHandle | null> {
  const cached = await findVmlinux(judging.cacheDir, file);
  if (cached !== null) return cached;
  const { unpackVmlinux } = await import('./unpack.ts');
  const vmlinux = await unpackVmlinux(file, header);
  if (!Buffer.isBuffer(vmlinux)) {
    judging.notes.push(vmlinux.note);
    return null;
  }
  const stored = await storeVmlinux(judging.cacheDir, file, compactElf(vmlinux));
  if (stored === null)
    judging.notes.push(`the cache ${judging.cacheDir} cannot be written, so the guest unpacks its kernel itself`);
  return stored;
}

async function load(
  kernel: Kernel,
  boot: BootConfig,
  initrd: InitrdFile | null,
  into: { readonly ram: RamImage; readonly cpus: number },
): Promise<BootRegisters> {
  const { ram } = into;
  const path = boot.kernel;
  if (kernel.kind !== 'bzimage') {
    const outside = kernel.elf.segments.find((s) => !ram.contains(s.paddr, s.memSize));
    if (outside !== undefined) {
      const need = Math.ceil(kernel.elf.high / 2 ** 20);
      throw new VmmError(
        'boot-kernel',
        `the kernel ${path} reaches up to ${need} MiB and guest RAM ends before; give --memory ${need}M or more`,
      );
    }
  }
  const rsdp = writeAcpi(ram, into.cpus);
  const linux = { initrd, append: boot.append, rsdp };
  switch (kernel.kind) {
    case 'multiboot':
      return await loadMultiboot(ram, { ...kernel, kernelPath: path, module: initrd, append: boot.append });
    case 'pvh':
      return await loadPvh(ram, kernel, linux);
    case 'elf64':
      return await loadElf64(ram, kernel, linux);
    case 'bzimage': {
      const { size } = await kernel.file.stat();
      return await loadBzImage(ram, { ...kernel, size, path }, linux);
    }
  }
}
