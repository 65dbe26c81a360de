// Which sections this machine's stream must have, in which order, each once: unknown, missing, doubled and early ones are refused by name.
// Fed by destination.ts with what reader.ts finds; pure bookkeeping.
import { StreamError } from '../native/errno.ts';
import type { StreamDevice } from './stream/config-section.ts';
import { bulkSectionName, SECTION } from './stream/format.ts';

export type SectionRole =
  | { readonly kind: 'ram' }
  | { readonly kind: 'bulk'; readonly deviceId: string }
  | { readonly kind: 'state'; readonly deviceId: string }
  | { readonly kind: 'core' }
  | { readonly kind: 'crc' };

export class ExpectedSections {
  readonly #roles = new Map<string, SectionRole>();
  readonly #open = new Set<string>();
  readonly #ended = new Set<string>();

  constructor(devices: readonly StreamDevice[]) {
    this.#add(SECTION.ram, { kind: 'ram' });
    for (const device of devices) {
      if (device.live) this.#add(bulkSectionName(device.id), { kind: 'bulk', deviceId: device.id });
      if (device.version !== null) this.#add(device.id, { kind: 'state', deviceId: device.id });
    }
    this.#add(SECTION.core, { kind: 'core' });
    this.#add(SECTION.crc, { kind: 'crc' });
  }

  #add(name: string, role: SectionRole): void {
    if (this.#roles.has(name) || name === SECTION.config) throw new StreamError(`two sections named ${quoted(name)}`);
    this.#roles.set(name, role);
  }

  /** A START: of RAM or of a device's bulk state. */
  start(name: string): SectionRole {
    const role = this.#role(name);
    if (role.kind !== 'ram' && role.kind !== 'bulk')
      throw new StreamError(`section ${quoted(name)} cannot come in parts`);
    this.#open.add(name);
    return role;
  }

  part(name: string, last: boolean): SectionRole {
    const role = this.#roles.get(name);
    if (role === undefined || !this.#open.has(name))
      throw new StreamError(`a part of section ${quoted(name)}, which is not open`);
    if (last) {
      this.#open.delete(name);
      this.#ended.add(name);
    }
    return role;
  }

  /** A FULL section: states only after RAM END and the devices' last data, the check sum only after all of them. */
  full(name: string): SectionRole {
    const role = this.#role(name);
    if (role.kind === 'ram' || role.kind === 'bulk')
      throw new StreamError(`section ${quoted(name)} must come in parts`);
    const early = this.#missing().filter((other) => this.#comesBefore(other, role));
    if (early.length > 0) throw new StreamError(`section ${quoted(name)} comes before ${early.map(quoted).join(', ')}`);
    this.#ended.add(name);
    return role;
  }

  #comesBefore(name: string, role: SectionRole): boolean {
    const other = this.#roles.get(name)!;
    if (role.kind === 'crc') return other.kind !== 'crc';
    return other.kind === 'ram' || other.kind === 'bulk';
  }

  #role(name: string): SectionRole {
    const role = this.#roles.get(name);
    if (role === undefined) throw new StreamError(`unknown section ${quoted(name)}`);
    if (this.#open.has(name) || this.#ended.has(name)) throw new StreamError(`section ${quoted(name)} comes twice`);
    if (this.#ended.has(SECTION.crc)) throw new StreamError(`section ${quoted(name)} comes after the check sum`);
    return role;
  }

  #missing(): string[] {
    return [...this.#roles.keys()].filter((name) => !this.#ended.has(name));
  }

  /** Throws unless every section is there and has ended. */
  checkComplete(): void {
    const missing = this.#missing();
    if (missing.length > 0) throw new StreamError(`missing section ${missing.map(quoted).join(', ')}`);
  }

  get complete(): boolean {
    return this.#missing().length === 0;
  }
}

function quoted(name: string): string {
  return JSON.stringify(name);
}
