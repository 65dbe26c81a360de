// Unpacks a bzImage's payload with the Debian tool of its format, so that the machine can start the vmlinux directly. Loaded by load.ts at
// the first start of a kernel; later ones find the vmlinux in the cache (kernel-cache.ts) and need none of the modules that this takes.
import { spawn } from 'node:child_process';
import type { FileHandle } from 'node:fs/promises';
import { Writable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { createGunzip } from 'node:zlib';
import { VmmError } from '../../native/errno.ts';
import type { BzImageHeader } from './bzimage.ts';

/** A payload claims its unpacked size in its last four bytes; more than this is no kernel. */
const VMLINUX_MAX = 2 ** 30;

interface Format {
  readonly name: string;
  readonly magic: readonly number[];
  /** null: Node's own zlib. */
  readonly tool: { readonly command: string; readonly args: readonly string[]; readonly package: string } | null;
  /** The kernel's build appends the unpacked size to these formats; the tools take it for garbage. */
  readonly trailer: 0 | 4;
}

const FORMATS: readonly Format[] = [
  { name: 'GZIP', magic: [0x1f, 0x8b], tool: null, trailer: 0 },
  {
    name: 'LZ4',
    magic: [0x02, 0x21, 0x4c, 0x18],
    tool: { command: 'lz4', args: ['-d', '-c', '-q', '-'], package: 'lz4' },
    trailer: 4,
  },
  {
    name: 'XZ',
    magic: [0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00],
    tool: { command: 'xz', args: ['-d', '-c', '-q'], package: 'xz-utils' },
    trailer: 4,
  },
  {
    name: 'ZSTD',
    magic: [0x28, 0xb5, 0x2f, 0xfd],
    tool: { command: 'zstd', args: ['-d', '-c', '-q'], package: 'zstd' },
    trailer: 4,
  },
];

/** The vmlinux, or a note in words why it cannot be had here (the caller then lets the kernel unpack itself). */
export async function unpackVmlinux(file: FileHandle, header: BzImageHeader): Promise<Buffer | { note: string }> {
  const { offset, length } = header.compressed;
  const payload = Buffer.allocUnsafe(length);
  const { bytesRead } = await file.read(payload, 0, length, offset);
  if (bytesRead !== length)
    throw new VmmError('boot-kernel', 'the kernel became shorter while it was read; start again');
  const format = FORMATS.find((f) => f.magic.every((byte, i) => payload[i] === byte));
  if (format === undefined)
    return { note: `the kernel's payload has a format unknown here (${payload.toString('hex', 0, 6)})` };
  const size = payload.readUInt32LE(length - 4);
  if (size < length || size > VMLINUX_MAX)
    return { note: `the kernel's ${format.name} payload claims an impossible size` };
  const vmlinux = await decompress(format, payload.subarray(0, length - format.trailer), size);
  if (!Buffer.isBuffer(vmlinux)) return vmlinux;
  if (vmlinux.readUInt32BE(0) !== 0x7f45_4c46)
    return { note: `the kernel's ${format.name} payload is not an ELF file` };
  return vmlinux;
}

async function decompress(format: Format, payload: Buffer, size: number): Promise<Buffer | { note: string }> {
  const out = Buffer.allocUnsafe(size);
  let filled = 0;
  const sink = new Writable({
    write(chunk: Buffer, _encoding, done) {
      if (filled + chunk.length > size) return done(new Error('more bytes than the kernel announces'));
      filled += chunk.copy(out, filled);
      done();
    },
  });
  try {
    if (format.tool === null) {
      await pipeline([payload], createGunzip(), sink);
    } else {
      const child = spawn(format.tool.command, [...format.tool.args], { stdio: ['pipe', 'pipe', 'ignore'] });
      const ended = new Promise<void>((resolve, reject) => {
        child.on('error', reject);
        child.on('close', (code) =>
          code === 0 ? resolve() : reject(new Error(`${format.tool?.command} ended with ${code}`)),
        );
      });
      const fed = pipeline([payload], child.stdin).catch(() => undefined); // the exit code says it better than EPIPE
      await Promise.all([ended, fed, pipeline(child.stdout, sink)]);
    }
  } catch (cause) {
    if (isMissing(cause) && format.tool !== null) {
      const { command, package: debian } = format.tool;
      return {
        note: `${command} is missing (apt-get install ${debian}), so the guest unpacks its ${format.name} kernel itself, slowly`,
      };
    }
    return {
      note: `the kernel's ${format.name} payload cannot be unpacked (${cause instanceof Error ? cause.message : cause})`,
    };
  }
  return filled === size ? out : { note: `the kernel's ${format.name} payload is shorter than it says` };
}

function isMissing(cause: unknown): boolean {
  return cause instanceof Error && 'code' in cause && cause.code === 'ENOENT';
}
