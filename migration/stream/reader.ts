// Reads the records of a version-3 stream and refuses what is none: StreamError names what was expected and what came. Owned by
// destination.ts; reads exactly what it needs, for the channel's CRC counts what was read. The sections' contents are read by their own files.
import type { Channel } from '../../native/addon.ts';
import { StreamError } from '../../native/errno.ts';
import { viewOf } from './bytes.ts';
import { COMMAND, RECORD, STREAM_MAGIC, STREAM_VERSION } from './format.ts';
import { PACKED_MAX, unpackState } from './packed.ts';

export interface SectionHead {
  readonly id: number;
  readonly name: string;
  readonly version: number;
}
export type StreamRecord =
  | { readonly kind: 'start' | 'full'; readonly section: SectionHead }
  | { readonly kind: 'part' | 'end'; readonly section: SectionHead }
  | { readonly kind: 'openReturnPath' }
  | { readonly kind: 'ping'; readonly value: number }
  | { readonly kind: 'eof' };

/** No machine has more: bounds what a hostile stream can make us remember. */
const SECTIONS_MAX = 4096;

export class StreamReader {
  readonly channel: Channel;
  readonly #open = new Map<number, SectionHead>();

  constructor(channel: Channel) {
    this.channel = channel;
  }

  async #view(length: number): Promise<DataView> {
    return viewOf(await this.channel.read(length));
  }

  async u8(): Promise<number> {
    return (await this.#view(1)).getUint8(0);
  }

  async u32(): Promise<number> {
    return (await this.#view(4)).getUint32(0);
  }

  async u64(): Promise<bigint> {
    return (await this.#view(8)).getBigUint64(0);
  }

  async text(length: number): Promise<string> {
    if (length === 0) return '';
    const bytes = await this.channel.read(length);
    try {
      return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
    } catch (cause) {
      throw new StreamError('a name in the stream is not UTF-8', { cause });
    }
  }

  async cstr(): Promise<string> {
    return this.text(await this.u8());
  }

  /** Magic, version, CONFIGURATION; returns the machine type that the peer names. */
  async header(): Promise<string> {
    const magic = await this.u32();
    if (magic !== STREAM_MAGIC) throw new StreamError(`this is no migration stream: it begins with ${hex(magic)}`);
    const version = await this.u32();
    if (version !== STREAM_VERSION)
      throw new StreamError(`stream version ${version}; version ${STREAM_VERSION} is read here`);
    const type = await this.u8();
    if (type !== RECORD.configuration)
      throw new StreamError(`configuration record missing: record type ${hex(type)} found`);
    const length = await this.u32();
    if (length > 127) throw new StreamError(`a machine type of ${length} bytes`);
    return this.text(length);
  }

  async next(): Promise<StreamRecord> {
    const type = await this.u8();
    switch (type) {
      case RECORD.eof:
        return { kind: 'eof' };
      case RECORD.start:
        return { kind: 'start', section: await this.#head() };
      case RECORD.full:
        return { kind: 'full', section: await this.#head() };
      case RECORD.part:
        return { kind: 'part', section: await this.#opened() };
      case RECORD.end:
        return { kind: 'end', section: await this.#opened() };
      case RECORD.command:
        return this.#command();
      default:
        throw new StreamError(`unknown record type ${hex(type)}`);
    }
  }

  async #head(): Promise<SectionHead> {
    const id = await this.u32();
    const name = await this.cstr();
    const numbers = await this.#view(8);
    const instance = numbers.getUint32(0);
    if (instance !== 0)
      throw new StreamError(`section ${JSON.stringify(name)} has instance ${instance}; only 0 is known`);
    if (this.#open.has(id)) throw new StreamError(`section number ${id} is used twice`);
    if (this.#open.size >= SECTIONS_MAX) throw new StreamError(`more than ${SECTIONS_MAX} sections`);
    const section = { id, name, version: numbers.getUint32(4) };
    this.#open.set(id, section);
    return section;
  }

  async #opened(): Promise<SectionHead> {
    const id = await this.u32();
    const section = this.#open.get(id);
    if (section === undefined) throw new StreamError(`a part of section number ${id}, which was never opened`);
    return section;
  }

  async #command(): Promise<StreamRecord> {
    const head = await this.#view(4);
    const command = head.getUint16(0);
    const length = head.getUint16(2);
    if (command === COMMAND.ping && length === 4) return { kind: 'ping', value: await this.u32() };
    if (command === COMMAND.openReturnPath && length === 0) return { kind: 'openReturnPath' };
    if (command === COMMAND.switchoverStart && length === 0) return this.next();
    throw new StreamError(`unknown command ${command} with ${length} bytes`);
  }

  async footer(section: SectionHead): Promise<void> {
    const bytes = await this.#view(5);
    if (bytes.getUint8(0) !== RECORD.footer || bytes.getUint32(1) !== section.id)
      throw new StreamError(`section ${JSON.stringify(section.name)} does not end where it should`);
  }

  /** The length-prefixed packed state of a FULL section, and its footer. */
  async state(section: SectionHead): Promise<unknown> {
    const length = await this.u32();
    if (length === 0 || length > PACKED_MAX)
      throw new StreamError(
        `the state of ${JSON.stringify(section.name)} claims ${length} bytes; 1 to ${PACKED_MAX} are allowed`,
      );
    const bytes = await this.channel.read(length);
    await this.footer(section);
    return unpackState(`the state of ${JSON.stringify(section.name)}`, bytes);
  }
}

function hex(value: number): string {
  return `0x${value.toString(16)}`;
}
