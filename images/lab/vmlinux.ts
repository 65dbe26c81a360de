// Takes the ELF kernel out of a Debian bzImage, so that QEMU can enter it by its PVH note: the self-decompression of a bzImage costs up
// to two seconds in an emulated host. Called by images/lab/kernel.ts. Linux/x86 boot protocol: payload_offset, payload_length (2.08+).
import { open, readFile, writeFile } from 'node:fs/promises';
import { VmmError } from '../../native/errno.ts';
import { runProgram } from '../program.ts';

const SETUP_SECTS = 0x1f1;
const HEADER_MAGIC = 0x202; // "HdrS"
const PAYLOAD_OFFSET = 0x248;
const PAYLOAD_LENGTH = 0x24c;

// Each is followed in the bzImage by 4 bytes of uncompressed size, which the tools take for garbage at the end (and say so by their exit code).
const FORMATS = [
  { magic: '28b52ffd', program: 'zstd', args: ['-q', '-d', '-c'], accept: [1] },
  { magic: 'fd377a58', program: 'xz', args: ['-q', '-d', '-c'], accept: [1, 2] },
  { magic: '02214c18', program: 'lz4', args: ['-q', '-d', '-c'], accept: [1, 44] },
  { magic: '1f8b0800', program: 'gzip', args: ['-q', '-d', '-c'], accept: [1, 2] },
];

/** Where the compressed kernel lies in a bzImage. */
export function bzImagePayload(image: Buffer): Buffer {
  if (image.length < 0x250 || image.toString('latin1', HEADER_MAGIC, HEADER_MAGIC + 4) !== 'HdrS') {
    throw new VmmError('EIMAGE', 'the kernel of the Debian package is not a bzImage (no HdrS)');
  }
  const start = ((image[SETUP_SECTS] || 4) + 1) * 512 + image.readUInt32LE(PAYLOAD_OFFSET);
  const end = start + image.readUInt32LE(PAYLOAD_LENGTH);
  if (end > image.length) throw new VmmError('EIMAGE', 'the bzImage of the Debian package is truncated');
  return image.subarray(start, end);
}

/** Writes the ELF to `outPath`. */
export async function extractVmlinux(bzImagePath: string, outPath: string): Promise<void> {
  const payload = bzImagePayload(await readFile(bzImagePath));
  const magic = payload.toString('hex', 0, 4);
  const format = FORMATS.find((each) => each.magic === magic);
  if (format === undefined) throw new VmmError('EIMAGE', `${bzImagePath}: unknown compression ${magic}`);
  const packed = `${outPath}.packed`;
  await writeFile(packed, format.program === 'zstd' || format.program === 'lz4' ? payload.subarray(0, -4) : payload);
  const purpose = 'extracting vmlinux';
  await runProgram('sh', ['-c', `${format.program} ${format.args.join(' ')} < "$0"`, packed], {
    purpose,
    outFile: outPath,
    accept: format.accept,
  });
  await runProgram('rm', [packed], { purpose });
  const file = await open(outPath);
  try {
    const { buffer } = await file.read(Buffer.alloc(4), 0, 4, 0);
    if (buffer.toString('latin1') !== '\x7fELF')
      throw new VmmError('EIMAGE', `${bzImagePath}: ${format.program} gave no ELF kernel`);
  } finally {
    await file.close();
  }
}
