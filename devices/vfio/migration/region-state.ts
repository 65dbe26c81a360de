// The device_state register of a migration region: the write is the transition. Called by region-port.ts, one call at a time.
// Bits 3-31 are not ours and are written back as they were read; after a failed write the register says where the device is.
// linux/vfio.h of Linux 5.8, struct vfio_device_migration_info, device_state
import { VFIO_DEVICE_STATE_MASK } from '../../../native/abi/vfio.ts';
import { vfio_device_migration_info_v1 } from '../../../native/abi/vfio-legacy.ts';
import { SysError, VmmError } from '../../../native/errno.ts';
import type { VfioState } from '../transport.ts';
import { word } from './feature-v2.ts';
import { type Field, isOverdue, type RegionDoor } from './region-door.ts';
import { type RegionTarget, STATE_BITS, stateOfBits, walkOf } from './region-states.ts';

const DEVICE_STATE: Field = { name: 'device_state', at: vfio_device_migration_info_v1.device_state };

export class RegionState {
  readonly #region: RegionDoor;
  #state: VfioState;
  #refused = false;
  /** A write outlived its deadline: what it made of the device is known when it has ended. */
  #unsure = false;

  constructor(region: RegionDoor, state: VfioState) {
    this.#region = region;
    this.#state = state;
  }

  get state(): VfioState {
    return this.#state;
  }

  /** Whether the last go() ended with a write that the driver refused: other failures say nothing about the way. */
  get refused(): boolean {
    return this.#refused;
  }

  async go(target: VfioState): Promise<void> {
    this.#refused = false;
    if (this.#unsure) await this.#readBack();
    const from = this.#state;
    const walk = walkOf(from, target);
    if (walk === null) throw this.#error(`no way from ${word(from)} to ${word(target)}`, null);
    for (const next of walk) await this.#enter(next);
  }

  wasReset(): void {
    this.#state = 'running';
    this.#unsure = false;
  }

  async #enter(next: RegionTarget): Promise<void> {
    const from = this.#state;
    try {
      const now = await this.#region.readU32(DEVICE_STATE);
      this.#expect(from, stateOfBits(now & VFIO_DEVICE_STATE_MASK));
      this.#refused = true;
      await this.#region.writeU32(DEVICE_STATE, ((now & ~VFIO_DEVICE_STATE_MASK) | STATE_BITS[next]) >>> 0);
      this.#refused = false;
      this.#state = next;
    } catch (cause) {
      this.#refused &&= !isOverdue(cause);
      if (isOverdue(cause)) this.#unsure = true;
      else await this.#readBack();
      const why = whyOf(cause, this.#region.name);
      const now = this.#unsure ? '' : `; it is in ${word(this.#state)}`;
      throw this.#error(`the device refused to go from ${word(from)} to ${word(next)} (${why})${now}`, cause);
    }
  }

  /** A device that is elsewhere than it was left has lost its session, and what was saved of it is of no use. */
  #expect(expected: VfioState, found: VfioState): void {
    if (found === expected) return;
    throw this.#error(`it is in ${word(found)} and was left in ${word(expected)}`, null);
  }

  /** What cannot be read counts as ERROR: only a reset leads out of it. */
  async #readBack(): Promise<void> {
    try {
      this.#state = stateOfBits((await this.#region.readU32(DEVICE_STATE)) & VFIO_DEVICE_STATE_MASK);
    } catch {
      this.#state = 'error';
    }
    this.#unsure = false;
  }

  #error(what: string, cause: unknown): VmmError {
    return new VmmError('vfio-state', `${this.#region.name}: ${what}`, { cause: cause ?? undefined, exitCode: 1 });
  }
}

/** The errno where there is one; without the name of the device, which the sentence around it has. */
export function whyOf(error: unknown, name: string): string {
  const { cause } = error instanceof VmmError ? error : { cause: null };
  if (cause instanceof SysError) return cause.code;
  const text = error instanceof Error ? error.message : String(error);
  return text.startsWith(`${name}: `) ? text.slice(name.length + 2) : text;
}

export async function readRegionState(region: RegionDoor): Promise<VfioState> {
  return stateOfBits((await region.readU32(DEVICE_STATE)) & VFIO_DEVICE_STATE_MASK);
}
