// A device's bulk state in the layout of QEMU's VFIO section: START holds SETUP and END, each PART and the END section DATA records up to
// END. ChunkSink and ChunkSource are made here: by `put`/`take` for plug-ins in TypeScript, by `pump` between data fd and socket in C++.
import type { ChunkPiece, ChunkSink, ChunkSource, Migratable, PumpResult } from '../../devices/contract.ts';
import { StreamError } from '../../native/errno.ts';
import { ByteBuilder } from './bytes.ts';
import { BULK_CHUNK_MAX, BULK_RECORD_MAX, BULK_SECTION_VERSION, BULK_TAG, bulkSectionName } from './format.ts';
import type { SectionHead, StreamReader } from './reader.ts';
import type { OpenSection, StreamWriter } from './writer.ts';

const END = new ByteBuilder().u64(BULK_TAG.endOfState).take();

export function startBulk(writer: StreamWriter, deviceId: string): Promise<OpenSection> {
  const payload = new ByteBuilder().u64(BULK_TAG.setup).u64(BULK_TAG.endOfState).take();
  return writer.start(bulkSectionName(deviceId), BULK_SECTION_VERSION, payload);
}

/** What a device writes its chunks to while its PART or END section is open. */
export class BulkSink implements ChunkSink {
  readonly #writer: StreamWriter;
  bytes = 0;

  constructor(writer: StreamWriter) {
    this.#writer = writer;
  }

  async put(chunk: Uint8Array): Promise<void> {
    for (let at = 0; at < chunk.length; at += BULK_RECORD_MAX) {
      const record = chunk.subarray(at, at + BULK_RECORD_MAX);
      const head = new ByteBuilder().u64(BULK_TAG.data).u64(BigInt(record.length)).take();
      await Promise.all([this.#writer.channel.write(head), this.#writer.channel.write(record)]);
      this.bytes += record.length;
    }
  }

  async pump(fd: number, budget: number): Promise<PumpResult> {
    const result = await this.#writer.channel.pumpFrom(fd, budget, BULK_TAG.data);
    this.bytes += result.bytes;
    return result;
  }

  async pumpPieces(pieces: readonly ChunkPiece[]): Promise<void> {
    await this.#writer.channel.pumpPiecesFrom(pieces, BULK_TAG.data);
    this.bytes += lengthOf(pieces);
  }
}

/** Opens a section, lets the device fill it, closes it. Returns the bytes of device data. */
export async function sendBulk(
  writer: StreamWriter,
  type: 'part' | 'end',
  section: OpenSection,
  fill: (sink: ChunkSink) => Promise<void>,
): Promise<number> {
  await writer.begin(type, section);
  const sink = new BulkSink(writer);
  await fill(sink);
  await writer.footer(section, END);
  return sink.bytes;
}

/** What one pump takes with it, so that the destination hears of its progress. */
const PUMP_MAX = 64 * 2 ** 20;

/** One DATA record as the device sees it: it must take all of it, by either door. */
class BulkRecord implements ChunkSource {
  readonly #reader: StreamReader;
  left: number;
  /** Of the records behind it that went with it. */
  following = 0;

  constructor(reader: StreamReader, length: number) {
    this.#reader = reader;
    this.left = length;
  }

  #claim(length: number): void {
    if (!Number.isInteger(length) || length < 1 || length > this.left)
      throw new RangeError(`a device takes ${length} bytes of a record that has ${this.left} left`);
    this.left -= length;
  }

  take(length: number): Promise<Uint8Array> {
    this.#claim(length);
    return this.#reader.channel.read(length);
  }

  async pump(fd: number, length: number): Promise<void> {
    this.#claim(length);
    const { channel } = this.#reader;
    if (this.left > 0) await channel.pumpTo(fd, length);
    else this.following = (await channel.pumpTo(fd, length, { tag: BULK_TAG.data, budget: PUMP_MAX })) - length;
  }

  pumpPieces(pieces: readonly ChunkPiece[]): Promise<void> {
    this.#claim(lengthOf(pieces));
    return this.#reader.channel.pumpPiecesTo(pieces);
  }
}

function lengthOf(pieces: readonly ChunkPiece[]): number {
  return pieces.reduce((sum, piece) => sum + ('bytes' in piece ? piece.bytes.length : piece.length), 0);
}

/** What becomes of a device's DATA records at the destination; null: they are read and thrown away (a negative control of the tests). */
export type BulkTarget = Pick<Migratable, 'loadChunk'> | null;

export async function receiveBulkStart(reader: StreamReader, section: SectionHead): Promise<void> {
  if (section.version !== BULK_SECTION_VERSION)
    throw new StreamError(
      `section ${JSON.stringify(section.name)} has version ${section.version}; ${BULK_SECTION_VERSION} is read here`,
    );
  const setup = await reader.u64();
  const end = await reader.u64();
  if (setup !== BULK_TAG.setup || end !== BULK_TAG.endOfState)
    throw new StreamError(`section ${JSON.stringify(section.name)} does not begin with SETUP and END`);
  await reader.footer(section);
}

/** DATA records up to END, and the footer. Returns the bytes of device data. */
export async function receiveBulk(reader: StreamReader, section: SectionHead, target: BulkTarget): Promise<number> {
  let bytes = 0;
  for (;;) {
    const tag = await reader.u64();
    if (tag === BULK_TAG.endOfState || tag === BULK_TAG.initialDataSent) break;
    if (tag !== BULK_TAG.data)
      throw new StreamError(`unknown tag ${tag.toString(16)} in ${JSON.stringify(section.name)}`);
    const length = await reader.u64();
    if (length === 0n) continue;
    if (length > BigInt(BULK_CHUNK_MAX))
      throw new StreamError(
        `a record of ${length} bytes in ${JSON.stringify(section.name)}; ${BULK_CHUNK_MAX} are allowed`,
      );
    bytes += await receiveRecord(reader, section, target, Number(length));
  }
  await reader.footer(section);
  return bytes;
}

/** Returns its bytes, and those that went with it. */
async function receiveRecord(
  reader: StreamReader,
  section: SectionHead,
  target: BulkTarget,
  length: number,
): Promise<number> {
  const record = new BulkRecord(reader, length);
  if (target === null) while (record.left > 0) await record.take(Math.min(record.left, BULK_RECORD_MAX));
  else await target.loadChunk(record, length);
  if (record.left !== 0)
    throw new StreamError(`${JSON.stringify(section.name)} left ${record.left} bytes of a record unread`);
  return length + record.following;
}
