// Takes a bzImage apart: setup header, and the compressed vmlinux in it. Unpacks the payload with the Debian tool of its format into the
// cache (kernel-cache.ts), so that the machine can start the vmlinux directly. Called by load.ts.
// Spec: Documentation/arch/x86/boot.rst (setup_header; payload_offset, payload_length since protocol 2.08).
import type { FileHandle } from 'node:fs/promises';
import { VmmError } from '../../native/errno.ts';

const BOOT_FLAG = 0xaa55;
const HDRS = 0x5372_6448;
const XLF_KERNEL_64 = 1;
/** Protocol 2.12: xloadflags and the 64-bit entry. */
const PROTOCOL_MIN = 0x20c;
const SECTOR = 512;
/** A payload claims its unpacked size in its last four bytes; more than this is no kernel. */
const VMLINUX_MAX = 2 ** 30;

export interface BzImageHeader {
  /** Bytes from 0x1f1 on, as they go into boot_params. */
  readonly setup: Uint8Array;
  /** File offset of the protected-mode part. */
  readonly payloadStart: number;
  readonly compressed: { readonly offset: number; readonly length: number };
  readonly preferredAddress: number;
  readonly initSize: number;
  readonly initrdMax: number;
}

export function isBzImage(head: Uint8Array): boolean {
  if (head.length < 0x268) return false;
  const view = new DataView(head.buffer, head.byteOffset, head.byteLength);
  return view.getUint16(0x1fe, true) === BOOT_FLAG && view.getUint32(0x202, true) === HDRS;
}

/** A string says why this bzImage cannot be started. */
export function parseBzImage(head: Uint8Array, fileSize: number): BzImageHeader | string {
  const view = new DataView(head.buffer, head.byteOffset, head.byteLength);
  const protocol = view.getUint16(0x206, true);
  if (protocol < PROTOCOL_MIN) {
    return `is a bzImage of boot protocol ${protocol >> 8}.${protocol & 0xff}; 2.12 or later is needed`;
  }
  if ((view.getUint16(0x236, true) & XLF_KERNEL_64) === 0) return 'is a 32-bit kernel; a 64-bit one is needed';
  // "For backwards compatibility, if the setup_sects field contains 0, the real value is 4."
  const payloadStart = ((view.getUint8(0x1f1) || 4) + 1) * SECTOR;
  const compressed = { offset: payloadStart + view.getUint32(0x248, true), length: view.getUint32(0x24c, true) };
  if (compressed.length < 16 || compressed.offset + compressed.length > fileSize) return 'was cut short; copy it again';
  // The header ends at 0x202 + the byte at 0x201 (the jump's operand).
  const end = Math.min(0x202 + view.getUint8(0x201), 0x290);
  return {
    setup: head.slice(0x1f1, end),
    payloadStart,
    compressed,
    preferredAddress: Number(view.getBigUint64(0x258, true)),
    initSize: view.getUint32(0x260, true),
    initrdMax: view.getUint32(0x22c, true),
  };
}

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
  // Only the first start of a kernel comes here; the others need not load these.
  const { spawn } = await import('node:child_process');
  const { Writable } = await import('node:stream');
  const { pipeline } = await import('node:stream/promises');
  const { createGunzip } = await import('node:zlib');
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
