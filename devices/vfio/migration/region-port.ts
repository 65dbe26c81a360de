// A migration region as a VfioMigrationPort: what v1 (region-v1.ts) and v7 (region-v7.ts) have in common, which is all but dirty pages.
// Called by device-state.ts and recover.ts. The session is the state: there is no fd that would come and go.
// linux/vfio.h of Linux 5.8, VFIO_REGION_TYPE_MIGRATION
import { VmmError } from '../../../native/errno.ts';
import type { ChunkSink, ChunkSource, PumpResult } from '../../contract.ts';
import type { PrecopyInfo, RegionDirtyPort, VfioMigrationPort, VfioState } from '../transport.ts';
import { word } from './feature-v2.ts';
import { RegionChunks } from './region-chunks.ts';
import type { RegionDoor } from './region-door.ts';
import { RegionState } from './region-state.ts';
import { Turns } from './turns.ts';

export interface RegionPortShape {
  readonly abi: 'v1' | 'v7';
  readonly headerBytes: number;
  readonly split: boolean;
  /** The state that the device was found in. */
  readonly state: VfioState;
  /** Made over what the port shares with it; null: the region knows no dirty pages. */
  readonly dirtyOf: ((shared: RegionShared) => RegionDirtyPort) | null;
}

/** What a dirty tracker in the same region must not come between. */
export interface RegionShared {
  readonly region: RegionDoor;
  readonly chunks: RegionChunks;
  readonly turns: Turns;
  state(): VfioState;
}

const SESSIONS: ReadonlySet<VfioState> = new Set(['pre-copy', 'stop-copy', 'resuming']);

export class RegionPort implements VfioMigrationPort {
  readonly abi: 'v1' | 'v7';
  /** "Vendor drivers must support the pre-copy state even for implementations where no data is provided". */
  readonly preCopy = true;
  readonly p2p = false;
  readonly dirtyPages: RegionDirtyPort | null;
  readonly #name: string;
  readonly #state: RegionState;
  readonly #chunks: RegionChunks;
  readonly #turns = new Turns();
  #session = false;

  constructor(region: RegionDoor, shape: RegionPortShape) {
    this.abi = shape.abi;
    this.#name = region.name;
    this.#state = new RegionState(region, shape.state);
    this.#chunks = new RegionChunks(region, shape);
    const shared = { region, chunks: this.#chunks, turns: this.#turns, state: () => this.#state.state };
    this.dirtyPages = shape.dirtyOf?.(shared) ?? null;
  }

  get state(): VfioState {
    return this.#state.state;
  }

  get sessionOpen(): boolean {
    return this.#session;
  }

  setState(target: VfioState): Promise<void> {
    return this.#turns.run(async () => {
      try {
        await this.#state.go(target);
      } finally {
        this.#session = SESSIONS.has(this.state);
      }
    });
  }

  /** A minimum, and only while saving: a device that runs makes more of it. */
  stopCopySize(): Promise<number | null> {
    return this.#turns.run(async () => (this.#saving() ? this.#chunks.pending() : null));
  }

  precopyInfo(): Promise<PrecopyInfo | null> {
    return this.#turns.run(async () => {
      if (!this.#session || this.state !== 'pre-copy') return null;
      return { initial: 0, dirty: await this.#chunks.pending(), reinit: false };
    });
  }

  save(sink: ChunkSink, budget: number): Promise<PumpResult> {
    return this.#turns.run(async () => {
      if (!this.#saving()) throw this.#noSession();
      return this.#chunks.save(sink, budget, this.state === 'stop-copy');
    });
  }

  load(source: ChunkSource, length: number): Promise<void> {
    return this.#turns.run(async () => {
      if (!this.#session || this.state !== 'resuming') throw this.#noSession();
      await this.#chunks.load(source, length);
    });
  }

  async finishLoad(): Promise<'validated' | 'late'> {
    try {
      await this.setState('stop');
      return 'validated';
    } catch (error) {
      // The text draws RESUMING -> RUNNING only, so that a driver may refuse this without having anything against the data.
      if (this.state === 'resuming' && this.#state.refused) return 'late';
      throw error;
    }
  }

  endSession(): void {
    this.#session = false;
  }

  wasReset(): void {
    this.#session = false;
    this.#state.wasReset();
  }

  #saving(): boolean {
    return this.#session && (this.state === 'pre-copy' || this.state === 'stop-copy');
  }

  #noSession(): VmmError {
    return new VmmError('vfio-data', `${this.#name}: no migration session is open in ${word(this.state)}`, {
      exitCode: 1,
    });
  }
}
