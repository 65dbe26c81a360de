// ferry/crc, right before the last PING: the CRC32C over all bytes of the stream so far, its own header included, that are not page
// contents. A flipped byte in a page header would otherwise be a valid page elsewhere. Left out when the peer is a real QEMU.
import { StreamError } from '../../native/errno.ts';
import { CRC_SECTION_VERSION, SECTION } from './format.ts';
import type { SectionHead, StreamReader } from './reader.ts';
import type { StreamWriter } from './writer.ts';

/** Every write before must have been waited for: the channel's CRC counts what its thread has taken. */
export function writeCrc(writer: StreamWriter): Promise<void> {
  return writer.fullU32(SECTION.crc, CRC_SECTION_VERSION, () => writer.channel.txCrc);
}

export async function checkCrc(reader: StreamReader, section: SectionHead): Promise<void> {
  const found = reader.channel.rxCrc;
  const sent = await reader.u32();
  await reader.footer(section);
  if (found !== sent)
    throw new StreamError(
      `the stream was altered on its way: CRC32C ${found.toString(16)} here, ${sent.toString(16)} at the source`,
    );
}
