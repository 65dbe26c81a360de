// Writes an initramfs: a cpio archive of "newc" entries, uncompressed (the kernel unpacks it faster than any compressor's output).
// Called by build.ts. Spec: Documentation/driver-api/early-userspace/buffer-format.rst. Deterministic: no times, no owners but root.

export interface ArchiveFile {
  /** Without a leading slash. */
  readonly path: string;
  readonly mode: number;
  readonly content: Uint8Array;
}

const DIRECTORY = 0o040755;
const REGULAR = 0o100000;

export function newcArchive(files: readonly ArchiveFile[]): Buffer {
  const parts: Buffer[] = [];
  const directories = new Set<string>();
  let inode = 1;
  const add = (path: string, mode: number, content: Uint8Array): void => {
    parts.push(header(inode++, mode, content.length, path), name(path), padded(content));
  };
  for (const file of files) {
    const segments = file.path.split('/').slice(0, -1);
    for (let i = 1; i <= segments.length; i++) {
      const directory = segments.slice(0, i).join('/');
      if (directories.has(directory)) continue;
      directories.add(directory);
      add(directory, DIRECTORY, new Uint8Array());
    }
    add(file.path, REGULAR | file.mode, file.content);
  }
  parts.push(header(0, 0, 0, 'TRAILER!!!'), name('TRAILER!!!'));
  return Buffer.concat(parts);
}

/** Header (110 bytes) and name together are padded to four bytes, like the content. */
function name(path: string): Buffer {
  const bytes = Buffer.from(`${path}\0`);
  return Buffer.concat([bytes, Buffer.alloc((4 - ((110 + bytes.length) % 4)) % 4)]);
}

function padded(content: Uint8Array): Buffer {
  return Buffer.concat([content, Buffer.alloc((4 - (content.length % 4)) % 4)]);
}

function header(inode: number, mode: number, size: number, path: string): Buffer {
  // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
  const fields = [inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, Buffer.byteLength(path) + 1, 0];
  return Buffer.from(`070701${fields.map((f) => f.toString(16).padStart(8, '0')).join('')}`);
}
