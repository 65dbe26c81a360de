// The smallest migration stream that a QEMU (`-machine none`) takes and gives: header, CONFIGURATION, the RAM section, EOF. For
// qemu-interop.test.ts: the channel alone, without migration/. Format: QEMU's version-3 stream, all integers big-endian.
import type { Channel, GuestRam, PageBitmap } from '../../../native/addon.ts';
import { StreamError } from '../../../native/errno.ts';

const MAGIC = 0x5145564d; // "QEVM"
const VERSION = 3;
const EOF = 0;
const SECTION_START = 1;
const SECTION_PART = 2;
const SECTION_END = 3;
const SECTION_FULL = 4;
const CONFIGURATION = 7;
const FOOTER = 0x7e;
const RAM_VERSION = 4;
const MEM_SIZE = 0x04n;
const EOS = 0x10n;
const RAM_SECTION = 2;
const PAGE = 4096;

/** Big-endian fields one after the other. */
function fields(...parts: readonly (number | bigint | string | readonly ['u8', number])[]): Buffer {
  const buffers = parts.map((part) => {
    if (typeof part === 'string') return Buffer.from(part);
    if (typeof part === 'object') return Buffer.of(part[1]);
    const bytes = Buffer.alloc(typeof part === 'bigint' ? 8 : 4);
    if (typeof part === 'bigint') bytes.writeBigUInt64BE(part);
    else bytes.writeUInt32BE(part);
    return bytes;
  });
  return Buffer.concat(buffers);
}
const u8 = (value: number) => ['u8', value] as const;

/** All of `ram` in one pass; resolves when the last byte was handed to the kernel. */
export async function sendStream(channel: Channel, ram: GuestRam, bitmap: PageBitmap, block: string): Promise<void> {
  const footer = [u8(FOOTER), RAM_SECTION] as const;
  await channel.write(
    fields(
      MAGIC,
      VERSION,
      ...[u8(CONFIGURATION), 4, 'none'],
      ...[u8(SECTION_START), RAM_SECTION, u8(3), 'ram', 0, RAM_VERSION],
      ...[BigInt(ram.size) | MEM_SIZE, u8(block.length), block, BigInt(ram.size), EOS],
      ...footer,
      ...[u8(SECTION_PART), RAM_SECTION],
    ),
  );
  const options = { maxPages: Number.MAX_SAFE_INTEGER, bytesPerSecond: 0 };
  await channel.sendPages(ram, bitmap, block, { from: 0, ...options });
  await channel.write(fields(EOS, ...footer, ...[u8(SECTION_END), RAM_SECTION, EOS], ...footer, ...[u8(EOF)]));
}

async function expect(channel: Channel, bytes: Buffer, what: string): Promise<void> {
  const got = Buffer.from(await channel.read(bytes.length));
  if (!got.equals(bytes)) throw new StreamError(`the stream has ${got.toString('hex')} where ${what} belongs`);
}

async function receiveSizes(channel: Channel, ram: GuestRam, block: string): Promise<void> {
  await expect(channel, fields(BigInt(ram.size) | MEM_SIZE), 'the size of all RAM');
  await expect(
    channel,
    fields(u8(block.length), block, BigInt(ram.size)),
    `block "${block}" of ${ram.size / PAGE} pages`,
  );
}

/** One section of the stream after its type byte. false: it is not RAM, and what follows has an unknown length. */
async function receiveSection(channel: Channel, ram: GuestRam, block: string, type: number): Promise<boolean> {
  const id = (await channel.read(4)) as Uint8Array;
  if (type === SECTION_START || type === SECTION_FULL) {
    const name = Buffer.from(await channel.read(((await channel.read(1))[0] as number) + 8)).toString('latin1');
    if (!name.startsWith('ram\0')) return false;
    await receiveSizes(channel, ram, block);
  }
  await channel.receivePages(ram, block, null);
  await expect(channel, Buffer.concat([Buffer.of(FOOTER), id]), 'a section footer');
  return true;
}

/** Into `ram`, up to EOF or the first section that is not RAM (a real QEMU sends `timer` and others after it). */
export async function receiveStream(channel: Channel, ram: GuestRam, block: string): Promise<void> {
  await expect(
    channel,
    fields(MAGIC, VERSION, u8(CONFIGURATION), 4, 'none'),
    'the head of a stream of "-machine none"',
  );
  for (;;) {
    const type = (await channel.read(1))[0] as number;
    if (type === EOF) return;
    if (type < SECTION_START || type > SECTION_FULL) throw new StreamError(`the stream has a record of type ${type}`);
    if (!(await receiveSection(channel, ram, block, type))) return;
  }
}
