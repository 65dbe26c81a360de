// Guest RAM as the boot loaders write it: by guest-physical address, straight into the 1 GiB windows of the memfd, before the guest
// runs (at power-on and at reset). Files are read into the windows without a buffer between. Called by vmm/boot/*, JS thread only.
import type { FileHandle } from 'node:fs/promises';
import type { GpaRange, GuestMemory } from '../../devices/contract.ts';
import { VmmError } from '../../native/errno.ts';

const WINDOW = 2 ** 30;
/** read(2) takes at most 0x7ffff000 bytes and Node an int32; a window's end cuts anyway. */
const READ_MAX = 2 ** 30;

export class RamImage {
  readonly memory: GuestMemory;
  /** RAM is known to be all zero (a fresh memfd): what has to be zero need not be touched. */
  readonly fresh: boolean;
  /** What came from files, in the order in which it was read. */
  readonly filled: GpaRange[] = [];

  constructor(memory: GuestMemory, fresh: boolean) {
    this.memory = memory;
    this.fresh = fresh;
  }

  /** End of the RAM that starts at address 0: the low bank's size. */
  get lowEnd(): number {
    return this.memory.ranges.find((range) => range.gpa === 0)?.size ?? 0;
  }

  contains(gpa: number, length: number): boolean {
    return this.memory.ranges.some((range) => gpa >= range.gpa && gpa + length <= range.gpa + range.size);
  }

  /** The bytes at gpa, as long as they lie in one window; at most `length`. */
  private piece(gpa: number, length: number): Uint8Array {
    const range = this.memory.ranges.find((r) => gpa >= r.gpa && gpa < r.gpa + r.size);
    if (range === undefined) {
      throw new VmmError(
        'guest-ram',
        `cannot load at guest address 0x${gpa.toString(16)}: no RAM there; give more --memory`,
      );
    }
    const offset = range.slice.offset + (gpa - range.gpa);
    const window = range.slice.ram.window(Math.floor(offset / WINDOW));
    const at = offset % WINDOW;
    return new Uint8Array(window, at, Math.min(length, window.byteLength - at, range.gpa + range.size - gpa));
  }

  write(gpa: number, bytes: Uint8Array): void {
    for (let done = 0; done < bytes.length; ) {
      const into = this.piece(gpa + done, bytes.length - done);
      into.set(bytes.subarray(done, done + into.length));
      done += into.length;
    }
  }

  zero(gpa: number, length: number): void {
    if (this.fresh) {
      return;
    }
    for (let done = 0; done < length; ) {
      done += this.piece(gpa + done, length - done).fill(0).length;
    }
  }

  /** Exactly `length` bytes of the file at `position`. */
  async readFile(file: FileHandle, position: number, gpa: number, length: number): Promise<void> {
    if (length > 0) this.filled.push({ start: gpa, length });
    for (let done = 0; done < length; ) {
      const into = this.piece(gpa + done, Math.min(length - done, READ_MAX));
      const { bytesRead } = await file.read(into, 0, into.length, position + done);
      if (bytesRead === 0) {
        throw new VmmError('boot-file', 'the file became shorter while it was read; start again when it is complete');
      }
      done += bytesRead;
    }
  }
}
