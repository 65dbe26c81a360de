// Reads a saved state that came from elsewhere: every field is judged before a device takes anything. Called by Stateful.load() of the
// platform devices. Throws StateError with the device's and the field's name.
import { StateError } from '../native/errno.ts';

export class StateRecord {
  readonly #device: string;
  readonly #fields: Readonly<Record<string, unknown>>;

  /** Refuses a version that this build does not know. */
  constructor(device: string, state: unknown, version: number, known: number) {
    if (version !== known)
      throw new StateError(`${device}: state version ${version}, this build loads version ${known}`);
    if (typeof state !== 'object' || state === null) throw new StateError(`${device}: a record wanted`);
    this.#device = device;
    this.#fields = state as Readonly<Record<string, unknown>>;
  }

  /** An integer in 0..max. */
  integer(name: string, max: number): number {
    const value = this.#fields[name];
    if (typeof value !== 'number' || !Number.isInteger(value) || value < 0 || value > max) {
      throw new StateError(`${this.#device}: ${name} must be 0 to ${max}`);
    }
    return value;
  }

  byte(name: string): number {
    return this.integer(name, 0xff);
  }

  /** A whole number of either sign. */
  signed(name: string): number {
    const value = this.#fields[name];
    if (typeof value !== 'number' || !Number.isSafeInteger(value)) {
      throw new StateError(`${this.#device}: ${name} must be a whole number`);
    }
    return value;
  }

  flag(name: string): boolean {
    const value = this.#fields[name];
    if (typeof value !== 'boolean') throw new StateError(`${this.#device}: ${name} must be true or false`);
    return value;
  }

  /** Bytes, at least `min` and at most `max` of them. A copy. */
  bytes(name: string, min: number, max: number): Uint8Array {
    const value = this.#fields[name];
    if (!(value instanceof Uint8Array) || value.length < min || value.length > max) {
      throw new StateError(`${this.#device}: ${name} must be ${min === max ? min : `${min} to ${max}`} bytes`);
    }
    return Uint8Array.from(value);
  }
}
