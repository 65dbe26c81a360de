// Config and memory of the device state regions: what is asked of them, in which order, as chunks of the stream and back. Used by
// device-state-regions.ts, one call at a time. Reading device_memory.size takes the snapshot (and under LOGGING consumes what was dirty),
// so it is read once, outside of LOGGING, and all its chunks after it. struct vfio_device_state_ctl of February 2019, 4-11
import {
  VFIO_DEVICE_DATA_ACTION_GET_BUFFER,
  VFIO_DEVICE_DATA_ACTION_SET_BUFFER,
} from '../../../native/abi/vfio-legacy.ts';
import { VmmError } from '../../../native/errno.ts';
import type { ChunkPiece, ChunkSource } from '../../contract.ts';
import { CHUNK_MAX } from './region-chunks.ts';
import type { RegionDoor } from './region-door.ts';
import { CTL } from './state-ctl.ts';
import { HEADER_BYTES, packHeader, type StateHeader, unpackHeader } from './state-framing.ts';

export interface StateRegions {
  readonly ctl: RegionDoor;
  readonly config: RegionDoor;
  /** null: the device has no memory of its own. */
  readonly memory: RegionDoor | null;
  /** null: it writes no system memory, by its own word. */
  readonly bitmap: RegionDoor | null;
}

/** One chunk, staged in its region until the next is asked for. */
export interface StatePart {
  readonly pieces: readonly ChunkPiece[];
  readonly length: number;
}

/** How far a load has come. */
export interface LoadProgress {
  config: boolean;
  /** null: none has begun. */
  memory: { readonly total: number; next: number } | null;
}

export class StateData {
  readonly #regions: StateRegions;

  constructor(regions: StateRegions) {
    this.#regions = regions;
  }

  /** The whole state of a stopped device; what is asked of it happens as the parts are taken. */
  async *parts(leaveLogging: () => Promise<void>): AsyncGenerator<StatePart, void> {
    if (this.#regions.memory !== null) {
      await leaveLogging();
      yield* this.#memoryParts(this.#regions.memory);
    }
    yield await this.#configPart();
  }

  async configSize(): Promise<number> {
    return Number(await this.#regions.ctl.readU64(CTL.configSize));
  }

  async *#memoryParts(memory: RegionDoor): AsyncGenerator<StatePart, void> {
    const { ctl } = this.#regions;
    const total = Number(await ctl.readU64(CTL.memorySize));
    const most = memory.size;
    for (let pos = 0; pos < total; pos += most) {
      await ctl.writeU64(CTL.memoryPos, pos);
      await ctl.writeU32(CTL.memoryAction, VFIO_DEVICE_DATA_ACTION_GET_BUFFER);
      yield this.#part({ kind: 'memory', total, pos }, memory, Math.min(most, total - pos));
    }
  }

  /** The text does not say whether its size holds before GET_BUFFER or after: it is read at both places. */
  async #configPart(): Promise<StatePart> {
    const { ctl, config } = this.#regions;
    await this.configSize();
    await ctl.writeU32(CTL.configAction, VFIO_DEVICE_DATA_ACTION_GET_BUFFER);
    const total = await this.configSize();
    if (total > 0 && total <= config.size) return this.#part({ kind: 'config', total, pos: 0 }, config, total);
    throw this.#error(
      `its driver's device_config.size is ${total}, which is not between 1 and the size of region ${config.index} (${config.size})`,
    );
  }

  #part(header: StateHeader, region: RegionDoor, length: number): StatePart {
    if (length > CHUNK_MAX - HEADER_BYTES) {
      throw this.#error(`a chunk of ${length} bytes of region ${region.index} is not sent: ${CHUNK_MAX} are allowed`);
    }
    const pieces = [{ bytes: packHeader(header) }, ...region.piecesOf(0, length)];
    return { pieces, length: HEADER_BYTES + length };
  }

  /** One record. `claim` is told what was taken from the source. */
  async load(
    source: ChunkSource,
    length: number,
    progress: LoadProgress,
    claim: (bytes: number) => void,
  ): Promise<void> {
    if (length <= HEADER_BYTES) throw this.#error(`a chunk of ${length} bytes is none of the device state regions`);
    claim(HEADER_BYTES);
    const own = length - HEADER_BYTES;
    const header = unpackHeader(await source.take(HEADER_BYTES), own);
    if (header === null) throw this.#error('a chunk is none of the device state regions: the source speaks another');
    const region = this.#regionOf(header, own, progress);
    if (header.kind === 'config') await this.#regions.ctl.writeU64(CTL.configSize, header.total);
    else if (header.pos === 0) await this.#regions.ctl.writeU64(CTL.memorySize, header.total);
    claim(own);
    await source.pumpPieces(region.piecesOf(0, own));
    await this.#set(header);
    if (header.kind === 'config') progress.config = true;
    else progress.memory = { total: header.total, next: header.pos + own };
  }

  /** The answer to SET_BUFFER is what the device thinks of it. */
  async #set({ kind, pos }: StateHeader): Promise<void> {
    const { ctl } = this.#regions;
    if (kind === 'memory') await ctl.writeU64(CTL.memoryPos, pos);
    const action = kind === 'config' ? CTL.configAction : CTL.memoryAction;
    await ctl.writeU32(action, VFIO_DEVICE_DATA_ACTION_SET_BUFFER);
  }

  #regionOf({ kind, total, pos }: StateHeader, length: number, { memory }: LoadProgress): RegionDoor {
    const region = kind === 'config' ? this.#regions.config : this.#regions.memory;
    if (region === null)
      throw this.#error('there is memory of the device in the stream, and this host’s device has none');
    if (length > region.size) {
      throw this.#error(`a chunk of ${length} bytes does not fit into region ${region.index} (${region.size} bytes)`);
    }
    if (kind === 'config') return region;
    const due = pos === 0 ? 0 : memory?.total === total ? memory.next : -1;
    if (pos !== due) throw this.#error(`memory of the device at ${pos} is out of turn`);
    // A chunk's place is counted in lengths of the region.
    if (length === region.size || (pos % region.size === 0 && pos + length === total)) return region;
    throw this.#error(
      `memory of the device comes by ${length} bytes, and region ${region.index} takes it by ${region.size}: move to a host with the source's driver`,
    );
  }

  #error(what: string): VmmError {
    return new VmmError('vfio-data', `${this.#regions.ctl.name}: ${what}`, { exitCode: 1 });
  }
}
