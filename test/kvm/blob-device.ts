// A device with bulk state that is no PCI function: 256 KiB of contents made of a seed, a third of it sent while the guest runs, and a
// register. What a passed-through device is to migration, on a machine without one. For test/kvm/migration-*.test.ts.
import type { ChunkSink, ChunkSource, Device, DeviceType, Migratable, Stateful } from '../../devices/contract.ts';
import { StateError } from '../../native/errno.ts';

const SIZE = 256 << 10;
const EARLY = 80_000;

class Blob implements Device, Migratable, Stateful {
  readonly id: string;
  readonly type = 'blob';
  readonly claims = [];
  readonly dirty = null;
  readonly interrupts = null;
  readonly version = 1;
  readonly fixedDowntimeMs = 2;
  readonly moved = { preCopyBytes: 0, stopCopyBytes: 0 };
  contents: Uint8Array;
  where: 'running' | 'saving' | 'stopped' | 'loading' = 'running';
  readonly #received: Uint8Array[] = [];
  #at = 0;

  constructor(id: string, seed: number) {
    this.id = id;
    this.contents = new Uint8Array(SIZE).map((_, at) => (at * seed + (at >> 8)) & 0xff);
  }
  get state(): Stateful {
    return this;
  }
  get live(): Migratable {
    return this;
  }
  save(): unknown {
    return { where: this.where };
  }
  load(state: unknown): void {
    if ((state as { where?: unknown } | null)?.where !== 'stopped') throw new StateError('saved before it was stopped');
  }
  blocker(): string | null {
    return null;
  }
  async saveSetup(): Promise<void> {
    this.where = 'saving';
    this.#at = 0;
  }
  async pending(): Promise<{ precopyInitial: number; precopy: number; stopCopy: number }> {
    return { precopyInitial: 0, precopy: Math.max(0, EARLY - this.#at), stopCopy: SIZE - EARLY };
  }
  async iterate(sink: ChunkSink): Promise<'more' | 'drained'> {
    await this.#put(sink, EARLY);
    return 'drained';
  }
  async #put(sink: ChunkSink, end: number): Promise<number> {
    const from = this.#at;
    if (end > from) await sink.put(this.contents.subarray(from, end));
    this.#at = Math.max(end, from);
    return this.#at - from;
  }
  async quiesce(): Promise<void> {}
  async stop(): Promise<void> {
    this.where = 'stopped';
    this.moved.preCopyBytes = this.#at;
  }
  async drain(sink: ChunkSink): Promise<void> {
    this.moved.stopCopyBytes = await this.#put(sink, SIZE);
  }
  async handedOver(): Promise<void> {}
  async loadSetup(): Promise<void> {
    this.where = 'loading';
  }
  async loadChunk(source: ChunkSource, length: number): Promise<void> {
    this.#received.push(await source.take(length));
  }
  async loadEnd(): Promise<'validated'> {
    const received = Buffer.concat(this.#received);
    if (received.length !== SIZE) throw new StateError(`${received.length} bytes of ${SIZE}`);
    this.contents = received;
    this.where = 'stopped';
    return 'validated';
  }
  async run(): Promise<void> {
    this.where = 'running';
  }
  async cancel(): Promise<void> {
    this.where = 'running';
  }
  reset(): void {}
  close(): void {}
}

/** `seed=` makes the contents; a destination with another seed shows that they came over. */
export const blobType: DeviceType = {
  name: 'blob',
  help: 'bulk state for tests of migration',
  properties: { seed: { kind: 'number', required: true, help: 'makes the contents' } },
  create: (_host, id, { seed }) => new Blob(id, Number(seed)),
};

export function blobContents(device: Device | undefined): { readonly contents: Uint8Array; readonly where: string } {
  if (!(device instanceof Blob)) throw new Error('no blob device');
  return device;
}
