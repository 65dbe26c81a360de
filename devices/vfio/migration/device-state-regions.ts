// The device state regions of February 2019, which GVT-g forks have, as a VfioMigrationPort. Opened by probe-abi.ts, called by
// device-state.ts and recover.ts. Pre-copy is LOGGING: dirty system memory is told, and the device's own state goes as a whole once it
// has stopped. There is no RESUMING: state is loaded in STOP, and every chunk is judged at once.
// struct vfio_device_state_ctl of that patch
import { VmmError } from '../../../native/errno.ts';
import type { ChunkSink, ChunkSource, PumpResult } from '../../contract.ts';
import type { PrecopyInfo, RegionDirtyPort, VfioMigrationPort, VfioState } from '../transport.ts';
import { word } from './feature-v2.ts';
import { CHUNK_MAX, discard, refusalOf } from './region-chunks.ts';
import { StateCtl } from './state-ctl.ts';
import { type LoadProgress, StateData, type StatePart, type StateRegions } from './state-data.ts';
import { StateDirty } from './state-dirty.ts';
import { Turns } from './turns.ts';

export class DeviceStateRegions implements VfioMigrationPort {
  readonly abi = 'regions';
  readonly preCopy = true;
  readonly p2p = false;
  readonly dirtyPages: RegionDirtyPort | null;
  readonly #name: string;
  readonly #regions: StateRegions;
  readonly #ctl: StateCtl;
  readonly #data: StateData;
  readonly #turns = new Turns();
  /** What is left to save; null: nothing was asked for yet. */
  #parts: AsyncGenerator<StatePart, void> | null = null;
  #progress: LoadProgress = { config: false, memory: null };
  #session = false;

  constructor(regions: StateRegions) {
    const { ctl, bitmap } = regions;
    this.#name = ctl.name;
    this.#regions = regions;
    this.#data = new StateData(regions);
    const dirty =
      bitmap === null ? null : new StateDirty({ ctl, bitmap, turns: this.#turns, told: () => this.#told() });
    this.dirtyPages = dirty;
    this.#ctl = new StateCtl(ctl, async () => dirty?.keep());
  }

  get state(): VfioState {
    return this.#ctl.state;
  }

  get sessionOpen(): boolean {
    return this.#session;
  }

  setState(target: VfioState): Promise<void> {
    return this.#turns.run(async () => {
      const from = this.state;
      try {
        await this.#ctl.go(target);
      } finally {
        if (this.state !== from) this.#parts = null;
        if (this.state !== from && this.state === 'resuming') this.#progress = { config: false, memory: null };
        this.#session = this.#saving() || this.state === 'resuming';
      }
    });
  }

  /** Of device memory nothing is known without taking its snapshot. */
  stopCopySize(): Promise<number | null> {
    return this.#turns.run(async () =>
      this.#session && this.#saving() && this.#regions.memory === null ? this.#data.configSize() : null,
    );
  }

  async precopyInfo(): Promise<PrecopyInfo | null> {
    return this.#session && this.state === 'pre-copy' ? { initial: 0, dirty: 0, reinit: false } : null;
  }

  save(sink: ChunkSink, budget: number): Promise<PumpResult> {
    return this.#turns.run(async () => {
      if (!this.#session || !this.#saving()) throw this.#noSession();
      // What device memory was dirty meanwhile may be void once the device has stopped (see StateCtl), so all of it goes then.
      if (this.state === 'pre-copy') return { bytes: 0, end: 'drained' };
      this.#parts ??= this.#data.parts(() => this.#ctl.leaveLogging());
      try {
        return await this.#send(this.#parts, sink, budget);
      } catch (error) {
        // A sequence that was broken off would look like one that has ended.
        this.#parts = null;
        throw error;
      }
    });
  }

  async #send(parts: AsyncGenerator<StatePart, void>, sink: ChunkSink, budget: number): Promise<PumpResult> {
    for (let bytes = 0; ; ) {
      const { value, done } = await parts.next();
      if (done === true) return { bytes, end: 'end' };
      await sink.pumpPieces(value.pieces);
      bytes += value.length;
      if (bytes >= budget) return { bytes, end: 'more' };
    }
  }

  load(source: ChunkSource, length: number): Promise<void> {
    return this.#turns.run(async () => {
      if (!this.#session || this.state !== 'resuming') throw this.#noSession();
      let left = length;
      try {
        if (length > CHUNK_MAX) throw this.#error(`a chunk of ${length} bytes is not loaded: ${CHUNK_MAX} are allowed`);
        await this.#data.load(source, length, this.#progress, (bytes) => {
          left -= bytes;
        });
      } catch (cause) {
        await discard(source, left);
        throw refusalOf(cause, this.#name) ?? cause;
      }
    });
  }

  finishLoad(): Promise<'validated'> {
    return this.#turns.run(async () => {
      const { config, memory } = this.#progress;
      if (this.state !== 'resuming') throw this.#noSession();
      if (!config || (memory !== null && memory.next !== memory.total)) {
        throw this.#error('its state has not come as a whole');
      }
      this.#ctl.loaded();
      this.#session = false;
      return 'validated' as const;
    });
  }

  endSession(): void {
    this.#session = false;
    this.#parts = null;
  }

  wasReset(): void {
    this.endSession();
    this.#ctl.wasReset();
  }

  #saving(): boolean {
    return this.state === 'pre-copy' || this.state === 'stop-copy';
  }

  #told(): 'logging' | 'kept' | 'unknown' {
    if (this.#ctl.logging) return 'logging';
    return this.state === 'stop-copy' ? 'kept' : 'unknown';
  }

  #noSession(): VmmError {
    return this.#error(`no migration session is open in ${word(this.state)}`);
  }

  #error(what: string): VmmError {
    return new VmmError('vfio-data', `${this.#name}: ${what}`, { exitCode: 1 });
  }
}
