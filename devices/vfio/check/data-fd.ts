// A data fd as the rules handle it: every call gives what the kernel said. Made by bench.ts; reads and writes run off the JS thread.
// Streams are whole buffers here, unlike anywhere else in Ferry: they are to be cut, swapped and damaged. linux/vfio.h, VFIO_MIG_GET_PRECOPY_INFO
import { VFIO_MIG_GET_PRECOPY_INFO, vfio_precopy_info } from '../../../native/abi/vfio.ts';
import { SysError } from '../../../native/errno.ts';
import type { CheckDoor } from './check-door.ts';
import { Unreachable } from './rule.ts';

const MIB = 2 ** 20;
/** Longer streams are not what a bring-up is done with. */
const MOST_BYTES = 512 * MIB;

/** `bytes`: how many, or the errno's name. */
export type Answer = { readonly bytes: number; readonly error: null } | { readonly bytes: 0; readonly error: string };

export interface PrecopyInfo {
  readonly error: string | null;
  readonly initial: number;
  readonly dirty: number;
}

export class DataFd {
  readonly fd: number;
  readonly #door: CheckDoor;
  #open = true;

  constructor(door: CheckDoor, fd: number) {
    this.#door = door;
    this.fd = fd;
  }

  read(into: Uint8Array, offset: number | null = null): Promise<Answer> {
    return answered(this.#door.readFd(this.fd, into, offset));
  }

  write(from: Uint8Array): Promise<Answer> {
    return answered(this.#door.writeFd(this.fd, from));
  }

  readable(): boolean {
    return this.#door.readable(this.fd);
  }

  nonBlocking(): void {
    this.#door.nonBlocking(this.fd);
  }

  /** Another fd of the same open file. */
  duplicate(): DataFd {
    return new DataFd(this.#door, this.#door.dupFd(this.fd));
  }

  /** Up to `limit` bytes: until end of stream (0), or in PRE_COPY until its temporary end. `sizes`: of the reads, in turn; then 1 MiB. */
  async readSome(limit: number, sizes: readonly number[] = []): Promise<{ data: Uint8Array; end: string | null }> {
    const pieces: Uint8Array[] = [];
    // One buffer for all reads, and copies of what came: a driver may give a byte at a time.
    const room = new Uint8Array(Math.max(MIB, ...sizes.slice(0, 16)));
    let total = 0;
    for (let i = 0; total < limit; i++) {
      const into = room.subarray(0, Math.min(sizes[i] ?? MIB, limit - total, room.length));
      const { bytes, error } = await this.read(into);
      if (error !== null) return { data: Buffer.concat(pieces), end: error };
      if (bytes === 0) return { data: Buffer.concat(pieces), end: 'end of stream' };
      pieces.push(into.slice(0, bytes));
      total += bytes;
      if (total >= MOST_BYTES) throw new Unreachable(`the stream goes on after ${MOST_BYTES / MIB} MiB`);
    }
    return { data: Buffer.concat(pieces), end: null };
  }

  /** In STOP_COPY: all there is. An ENOMSG is another rule's finding. */
  async readToEnd(sizes: readonly number[] = []): Promise<Uint8Array> {
    const { data, end } = await this.readSome(Number.MAX_SAFE_INTEGER, sizes);
    if (end !== 'end of stream' && end !== 'ENOMSG') throw new Unreachable(`reading the stream failed (${end})`);
    return data;
  }

  /** `sizes`: of the writes, in turn; then the rest at once. Gives the errno of a write that was refused, null when all was taken. */
  async writeAll(stream: Uint8Array, sizes: readonly number[] = []): Promise<string | null> {
    for (let at = 0, i = 0; at < stream.length; i++) {
      const { bytes, error } = await this.write(
        stream.subarray(at, at + Math.min(sizes[i] ?? MIB, stream.length - at)),
      );
      if (error !== null) return error;
      if (bytes === 0) return 'a write took 0 bytes';
      at += bytes;
    }
    return null;
  }

  async precopyInfo(argsz: number = vfio_precopy_info.size): Promise<PrecopyInfo> {
    const arg = new Uint8Array(vfio_precopy_info.size);
    const view = new DataView(arg.buffer);
    view.setUint32(vfio_precopy_info.argsz, argsz, true);
    let error: string | null = null;
    try {
      await this.#door.ioctlAsync('VFIO_MIG_GET_PRECOPY_INFO', this.fd, VFIO_MIG_GET_PRECOPY_INFO, arg);
    } catch (cause) {
      if (!(cause instanceof SysError)) throw cause;
      error = cause.code;
    }
    return {
      error,
      initial: Number(view.getBigUint64(vfio_precopy_info.initial_bytes, true)),
      dirty: Number(view.getBigUint64(vfio_precopy_info.dirty_bytes, true)),
    };
  }

  close(): void {
    if (this.#open) this.#door.closeFd(this.fd);
    this.#open = false;
  }
}

async function answered(call: Promise<number>): Promise<Answer> {
  try {
    return { bytes: await call, error: null };
  } catch (cause) {
    if (!(cause instanceof SysError)) throw cause;
    return { bytes: 0, error: cause.code };
  }
}
