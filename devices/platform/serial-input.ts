// What was typed and has not fitted into the UART's FIFO yet. Called by serial.ts only; saved with it, so that a move loses nothing.
import type { DeviceLog } from '../contract.ts';

export class SerialInput {
  /** Bytes that may wait; a paste beyond it is cut, with a warning. */
  static readonly limit = 65536;
  readonly #log: DeviceLog;
  #bytes: Uint8Array = new Uint8Array(0);
  #next = 0;

  constructor(log: DeviceLog) {
    this.#log = log;
  }

  add(bytes: Uint8Array): void {
    const waiting = this.waiting();
    const room = SerialInput.limit - waiting.length;
    if (bytes.length > room)
      this.#log.warn({ lost: bytes.length - room }, 'console input cut: the guest does not read it');
    const kept = bytes.subarray(0, room);
    const joined = new Uint8Array(waiting.length + kept.length);
    joined.set(waiting);
    joined.set(kept, waiting.length);
    this.#bytes = joined;
    this.#next = 0;
  }

  take(): number | null {
    return this.#bytes[this.#next] === undefined ? null : this.#bytes[this.#next++]!;
  }

  waiting(): Uint8Array {
    return this.#bytes.slice(this.#next);
  }

  replace(bytes: Uint8Array): void {
    this.#bytes = bytes;
    this.#next = 0;
  }
}
