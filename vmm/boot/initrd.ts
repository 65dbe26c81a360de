// Where the initrd goes: as high in low RAM as the kernel allows, page-aligned, so that what the kernel unpacks and allocates meanwhile
// does not run into it. Called by pvh.ts and linux64.ts. Spec: Linux/x86 boot protocol, ramdisk_image and initrd_addr_max.
import type { FileHandle } from 'node:fs/promises';
import { VmmError } from '../../native/errno.ts';
import type { RamImage } from './ram-image.ts';

export interface InitrdFile {
  readonly file: FileHandle;
  readonly path: string;
  readonly size: number;
}

export interface PlacedInitrd {
  readonly start: number;
  readonly size: number;
}

const PAGE = 4096;

/** `kernelEnd`: first address after all that the kernel occupies while it starts. `addressMax`: last address that it can reach. */
export async function loadInitrd(
  ram: RamImage,
  initrd: InitrdFile | null,
  kernelEnd: number,
  addressMax: number,
): Promise<PlacedInitrd | null> {
  if (initrd === null) return null;
  const top = Math.min(ram.lowEnd, addressMax + 1);
  const start = Math.floor((top - initrd.size) / PAGE) * PAGE;
  if (start < kernelEnd) {
    const need = Math.ceil((kernelEnd + initrd.size) / 2 ** 20);
    throw new VmmError(
      'boot-initrd',
      `the initrd ${initrd.path} (${Math.ceil(initrd.size / 2 ** 20)} MiB) does not fit into RAM beside the kernel; give --memory ${need}M or more`,
    );
  }
  await ram.readFile(initrd.file, 0, start, initrd.size);
  return { start, size: initrd.size };
}
