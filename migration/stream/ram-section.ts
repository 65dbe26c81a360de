// The "ram" section: START announces the one block and its size, PARTs and END carry pages up to EOS. The records of pages are made and
// parsed by the Channel's threads; this is what surrounds them. Called by rounds.ts, switchover.ts and destination.ts. qemu-compat A2.
import type { GuestRam, PageBitmap, SentPages } from '../../native/addon.ts';
import { StreamError } from '../../native/errno.ts';
import { ByteBuilder } from './bytes.ts';
import { PAGE_SIZE, RAM_BLOCK, RAM_FLAG, RAM_SECTION_VERSION, SECTION } from './format.ts';
import type { SectionHead, StreamReader } from './reader.ts';
import type { OpenSection, StreamWriter } from './writer.ts';

const EOS = new ByteBuilder().u64(RAM_FLAG.eos).take();

export function startRam(writer: StreamWriter, size: number): Promise<OpenSection> {
  const payload = new ByteBuilder()
    .u64(BigInt(size) | RAM_FLAG.memSize)
    .cstr(RAM_BLOCK)
    .u64(BigInt(size))
    .u64(RAM_FLAG.eos)
    .take();
  return writer.start(SECTION.ram, RAM_SECTION_VERSION, payload);
}

export interface RamSlice {
  readonly from: number;
  readonly maxPages: number;
  readonly bytesPerSecond: number;
}

/** One PART (or the END) with up to slice.maxPages of the set pages of `bitmap`. */
export async function sendRam(
  writer: StreamWriter,
  type: 'part' | 'end',
  section: OpenSection,
  pages: { readonly ram: GuestRam; readonly bitmap: PageBitmap },
  slice: RamSlice,
): Promise<SentPages & { readonly next: number }> {
  const head = writer.begin(type, section);
  const sent = writer.channel.sendPages(pages.ram, pages.bitmap, RAM_BLOCK, slice);
  const [, result] = await Promise.all([head, sent]);
  await writer.footer(section, EOS);
  return result;
}

/** The START section: refuses another block or size before the first page. */
export async function receiveRamStart(reader: StreamReader, section: SectionHead, ram: GuestRam): Promise<void> {
  if (section.version !== RAM_SECTION_VERSION)
    throw new StreamError(`ram section version ${section.version}; ${RAM_SECTION_VERSION} is read here`);
  const record = await reader.u64();
  if ((record & BigInt(PAGE_SIZE - 1)) !== RAM_FLAG.memSize)
    throw new StreamError('the ram section does not begin with the sizes of its blocks');
  const name = await reader.cstr();
  const length = await reader.u64();
  if (name !== RAM_BLOCK) throw new StreamError(`unknown RAM block ${JSON.stringify(name)}`);
  if (length !== BigInt(ram.size) || record - RAM_FLAG.memSize !== length)
    throw new StreamError(`the source's RAM has ${length} bytes, this machine's ${ram.size}`);
  await receiveRam(reader, section, ram);
}

/** Pages up to EOS, and the footer. */
export async function receiveRam(reader: StreamReader, section: SectionHead, ram: GuestRam): Promise<SentPages> {
  const received = await reader.channel.receivePages(ram, RAM_BLOCK, null);
  await reader.footer(section);
  return received;
}
