// Writes the records of a version-3 stream: header, commands, sections with their footers, end and description. Owned by source.ts; runs on
// the JS thread and only queues bytes on the Channel, whose tx thread keeps their order. Page contents and device data are the channel's.
import type { Channel } from '../../native/addon.ts';
import { ByteBuilder } from './bytes.ts';
import { COMMAND, RECORD, STREAM_MAGIC, STREAM_VERSION } from './format.ts';
import { packState } from './packed.ts';
import { VmDescription } from './vmdesc.ts';

/** A section that has been opened by START; PART and END refer to it by number. */
export interface OpenSection {
  readonly id: number;
  readonly name: string;
}

export class StreamWriter {
  readonly channel: Channel;
  readonly #build = new ByteBuilder();
  readonly #description = new VmDescription();
  #nextId = 1;

  constructor(channel: Channel) {
    this.channel = channel;
  }

  #send(): Promise<void> {
    return this.channel.write(this.#build.take());
  }

  /** Magic, version and the CONFIGURATION record with the machine's type. */
  header(machine: string): Promise<void> {
    const name = new TextEncoder().encode(machine);
    this.#build.u32(STREAM_MAGIC).u32(STREAM_VERSION).u8(RECORD.configuration).u32(name.length).bytes(name);
    return this.#send();
  }

  openReturnPath(): Promise<void> {
    this.#build.u8(RECORD.command).u16(COMMAND.openReturnPath).u16(0);
    return this.#send();
  }

  ping(value: number): Promise<void> {
    this.#build.u8(RECORD.command).u16(COMMAND.ping).u16(4).u32(value);
    return this.#send();
  }

  #head(type: number, section: OpenSection, version: number): ByteBuilder {
    return this.#build.u8(type).u32(section.id).cstr(section.name).u32(0).u32(version);
  }

  #open(name: string): OpenSection {
    return { id: this.#nextId++, name };
  }

  async start(name: string, version: number, payload: Uint8Array): Promise<OpenSection> {
    const section = this.#open(name);
    this.#head(RECORD.start, section, version).bytes(payload).u8(RECORD.footer).u32(section.id);
    await this.#send();
    return section;
  }

  /** Opens a PART or END; what follows is the section's own business until footer(). */
  begin(type: 'part' | 'end', section: OpenSection): Promise<void> {
    this.#build.u8(RECORD[type]).u32(section.id);
    return this.#send();
  }

  footer(section: OpenSection, before: Uint8Array): Promise<void> {
    this.#build.bytes(before).u8(RECORD.footer).u32(section.id);
    return this.#send();
  }

  /** A FULL section that holds one length-prefixed packed state. Returns the bytes of the state. */
  async state(name: string, version: number, state: unknown): Promise<number> {
    const packed = packState(`the state of ${name}`, state);
    await this.packed(name, version, packed);
    return packed.length;
  }

  /** The same out of a buffer that was packed before. */
  packed(name: string, version: number, packed: Uint8Array): Promise<void> {
    const section = this.#open(name);
    this.#head(RECORD.full, section, version).u32(packed.length).bytes(packed).u8(RECORD.footer).u32(section.id);
    this.#description.add(name, version, [
      { name: 'length', type: 'uint32', size: 4 },
      { name: 'state', type: 'buffer', size: packed.length },
    ]);
    return this.#send();
  }

  /** A FULL section of one u32 that is known only once its own header has been sent. */
  async fullU32(name: string, version: number, value: () => number): Promise<void> {
    const section = this.#open(name);
    this.#head(RECORD.full, section, version);
    await this.#send();
    this.#description.add(name, version, [{ name: 'value', type: 'uint32', size: 4 }]);
    this.#build.u32(value()).u8(RECORD.footer).u32(section.id);
    await this.#send();
  }

  /** The one point of no return. */
  eof(): Promise<void> {
    this.#build.u8(RECORD.eof);
    return this.#send();
  }

  description(): Promise<void> {
    const json = this.#description.encode();
    this.#build.u8(RECORD.vmDescription).u32(json.length).bytes(json);
    return this.#send();
  }
}
