// The stream of test/fakes/v2-device.ts: records of type, length and body - identity, inner state (again whenever it has changed), final with a
// checksum. A session is one data fd's open file. Errors are what the device's driver would give to read() and write().
import { crc32 } from 'node:zlib';
import { SysError } from '../../native/errno.ts';
import type { V2Device } from './v2-device.ts';

const ENODEV = 19;
const EINVAL = 22;
const EBADF = 9;
const ENOMSG = 42;
const ESPIPE = 29;
const MAGIC = Buffer.from('V2-DEVICE-SAVED.');
const [IDENTITY, INNER, FINAL, PADDING] = [1, 2, 3, 4];

function record(type: number, body: Uint8Array): Buffer {
  const head = Buffer.alloc(5);
  head.writeUInt8(type, 0);
  head.writeUInt32LE(body.length, 1);
  return Buffer.concat([head, body]);
}

/** A name of its own: what no stream may have. */
function identityOf(device: V2Device): Buffer {
  const identity = Buffer.from(MAGIC);
  if (device.has('instance-bound')) identity[15] = device.which.instance;
  return identity;
}

function sumOf(inner: Uint8Array): Buffer {
  const sum = Buffer.alloc(4);
  sum.writeUInt32LE(crc32(inner));
  return sum;
}

export class Session {
  /** How it ended; null: it goes on. */
  over: 'set' | 'reset' | 'close' | 'dead' | null = null;
  readonly #device: V2Device;
  readonly #kind: 'saving' | 'resuming';
  #queue: Buffer = Buffer.alloc(0);
  #initialLeft = 0;
  #sent: Uint8Array | null = null;
  #finished = false;
  #touched = false;
  #nonBlocking = false;
  readonly #initial: number;
  readonly #blank: boolean;
  /** Resuming: what came and was not parsed, and what was. */
  #coming: Buffer = Buffer.alloc(0);
  #identity = false;
  #inner: Buffer | null = null;
  #final = false;
  #forgiven = false;
  #refused = false;

  constructor(device: V2Device, kind: 'saving' | 'resuming') {
    this.#device = device;
    this.#kind = kind;
    this.#blank = device.cancelledPrecopy;
    if (kind === 'saving') {
      this.#queue = record(IDENTITY, identityOf(device));
      this.#queueInner();
      if (device.has('size-changes')) this.#push(record(PADDING, new Uint8Array(1 + ((device.sessions * 37) % 200))));
      if (device.has('residue') && device.lastSession?.abandoned === true) this.#queue = this.#queue.subarray(7);
      this.#initialLeft = this.#queue.length;
    }
    this.#initial = this.#initialLeft;
  }

  #push(bytes: Uint8Array): void {
    this.#queue = Buffer.concat([this.#queue, bytes]);
  }

  #queueInner(): void {
    this.#sent =
      this.#device.has('thin-second') && this.#device.sessions > 1 ? new Uint8Array(64) : this.#device.inner.slice();
    this.#push(record(INNER, this.#device.ownView(this.#sent)));
  }

  #changed(): boolean {
    if (this.#device.has('thin-second') && this.#device.sessions > 1) return this.#sent === null;
    return this.#sent === null || Buffer.compare(this.#sent, this.#device.inner) !== 0;
  }

  finish(): void {
    if (this.#device.has('leaving-loses') && this.#initialLeft > 0 && !this.#finished && this.#device.preCopying) {
      this.#queue = this.#queue.subarray(this.#initialLeft);
    }
    this.#initialLeft = 0;
    if (this.#changed() && !this.#device.has('precopy-misses')) this.#queueInner();
    this.#push(record(FINAL, sumOf(this.#device.ownView(this.#sent as Uint8Array))));
    this.#finished = true;
  }

  /** Given up in its middle. */
  get abandoned(): boolean {
    return this.#kind === 'saving' && this.#touched && this.#queue.length > 0;
  }

  setNonBlocking(): void {
    this.#nonBlocking = true;
  }

  read(want: number, offset: number | null): Buffer {
    const device = this.#device;
    if (offset !== null && !device.has('pread')) throw new SysError('pread', ESPIPE);
    if (this.over !== null) return this.#readAfterEnd();
    if (this.#kind === 'resuming') throw new SysError('read', EBADF);
    this.#touched = true;
    if (this.#queue.length === 0 && !this.#finished && this.#changed() && !device.has('precopy-misses'))
      this.#queueInner();
    if (this.#queue.length === 0) return this.#readNothing();
    const take = device.has('one-byte-reads') ? 1 : want;
    const bytes = this.#queue.subarray(0, take);
    const drop = device.has('short-reads-drop') && want < 4 ? 4 : bytes.length;
    this.#queue = this.#queue.subarray(drop);
    if (!device.has('initial-stuck')) this.#initialLeft = Math.max(0, this.#initialLeft - drop);
    return bytes;
  }

  /** Puts back what could not be copied out. */
  unread(bytes: Uint8Array): void {
    this.#queue = Buffer.concat([bytes, this.#queue]);
  }

  #readNothing(): Buffer {
    const ends = this.#finished ? !this.#device.has('end-enomsg') : this.#device.has('precopy-ends');
    if (this.#nonBlocking && this.#device.has('non-blocking')) throw new SysError('read', EINVAL);
    if (!ends) throw new SysError('read', ENOMSG);
    return Buffer.alloc(0);
  }

  #readAfterEnd(): Buffer {
    const { over } = this;
    if (this.#device.has('old-fd-ends') && over === 'set') return Buffer.alloc(0);
    if (this.#device.has('old-fd-data') && over === 'set') return Buffer.from('old');
    if (this.#device.has('fd-after-close') && over === 'close') return Buffer.from('old');
    if (this.#device.has('fd-after-reset') && over === 'reset') return Buffer.from('old');
    throw new SysError('read', ENODEV);
  }

  get readable(): boolean {
    return this.over !== null || this.#finished || this.#queue.length > 0 || this.#device.has('no-poll');
  }

  info(argsz: number): { initial: number; dirty: number } {
    const device = this.#device;
    if (device.has('no-info')) throw new SysError('INFO', 25);
    if (argsz < 24 && !device.has('argsz-ignored')) throw new SysError('INFO', EINVAL);
    if (this.over !== null) throw new SysError('INFO', ENODEV);
    if (!device.preCopying && !device.has('info-anywhere')) throw new SysError('INFO', EINVAL);
    let dirty = Math.max(0, this.#queue.length - this.#initialLeft);
    if (this.#changed() && this.#queue.length === 0) dirty += 5 + device.inner.length;
    if (device.has('dirty-at-start') && !this.#touched) dirty = 12;
    if (device.has('estimate-lies') && this.#touched) dirty = 8;
    const blank = device.has('initial-zero') || (device.has('cancel-keeps') && this.#blank);
    return { initial: blank ? 0 : device.has('initial-stuck') ? this.#initial : this.#initialLeft, dirty };
  }

  write(bytes: Uint8Array): number {
    if (this.#kind === 'saving') {
      if (this.#device.has('write-to-saving')) return bytes.length;
      throw new SysError('write', EBADF);
    }
    if (this.over !== null) {
      if (this.#device.has('old-fd-writes') && this.over === 'set') return bytes.length;
      throw new SysError('write', ENODEV);
    }
    if (this.#device.has('whole-header') && this.#coming.length === 0 && bytes.length < 5) this.#refuse();
    this.#coming = Buffer.concat([this.#coming, bytes]);
    while (this.#parseOne());
    return bytes.length;
  }

  #refuse(): never {
    this.#refused = true;
    throw new SysError('write', EINVAL);
  }

  #parseOne(): boolean {
    if (this.#coming.length < 1) return false;
    if (this.#final) {
      if (this.#device.has('accepts-more')) return false;
      this.#refuse();
    }
    if (this.#coming.length < 5) return false;
    const type = this.#coming.readUInt8(0);
    const length = this.#coming.readUInt32LE(1);
    if (length > 4096) this.#refuse();
    if (this.#coming.length < 5 + length) return false;
    this.#take(type, this.#coming.subarray(5, 5 + length));
    this.#coming = this.#coming.subarray(5 + length);
    return true;
  }

  #take(type: number, body: Buffer): void {
    const fits = body.length === this.#device.which.size || this.#device.has('any-size');
    if (type === IDENTITY && !this.#identity && body.equals(identityOf(this.#device))) this.#identity = true;
    else if (type === INNER && this.#identity && fits) this.#inner = Buffer.from(body);
    else if (type === FINAL && this.#inner !== null) {
      if (!body.equals(sumOf(this.#inner)) && !this.#device.has('no-checksum')) this.#refuse();
      this.#final = true;
    } else if (type !== PADDING || !this.#identity) this.#refuse();
  }

  /** Retrying without new data succeeds. */
  forgive(): void {
    this.#forgiven = true;
  }

  /** null: it is not a whole stream. */
  loaded(): Uint8Array | null {
    if (this.#forgiven) return this.#device.inner;
    if (this.#device.has('refused-loads') && this.#refused) return this.#device.inner;
    if (this.#device.has('accepts-nothing') && !this.#identity && this.#coming.length === 0 && !this.#refused) {
      return this.#device.inner;
    }
    if (this.#device.has('accepts-part') && this.#inner !== null && !this.#refused) return this.#inner;
    return this.#final && !this.#refused ? this.#inner : null;
  }
}
