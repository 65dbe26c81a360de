// The CTL region of the device state regions (February 2019): its registers, and the device's state, which is write-only and so is kept
// here. Called by device-state-regions.ts, one call at a time.
// GVT-g stops a device at STOP only and starts it at RUNNING only; STOP|LOGGING changes nothing at it. So a device that is being saved
// goes to STOP by way of STOP|LOGGING and back there: what it wrote until it really stood still is in the last of the two bitmaps.
// struct vfio_device_state_ctl of that patch; drivers/gpu/drm/i915/gvt/kvmgt.c of GVT-g's, set_device_state
import {
  VFIO_DEVICE_STATE_CTL_LOGGING,
  VFIO_DEVICE_STATE_CTL_RUNNING,
  VFIO_DEVICE_STATE_CTL_STOP,
  vfio_device_state_ctl,
} from '../../../native/abi/vfio-legacy.ts';
import { VmmError } from '../../../native/errno.ts';
import type { VfioState } from '../transport.ts';
import { word } from './feature-v2.ts';
import { type Field, isOverdue, type RegionDoor } from './region-door.ts';
import { whyOf } from './region-state.ts';

const { device_config, device_memory, system_memory } = vfio_device_state_ctl;

export const CTL = {
  version: { name: 'version', at: vfio_device_state_ctl.version },
  deviceState: { name: 'device_state', at: vfio_device_state_ctl.device_state },
  caps: { name: 'caps', at: vfio_device_state_ctl.caps },
  configAction: { name: 'device_config.action', at: device_config.action },
  configSize: { name: 'device_config.size', at: device_config.size_at },
  memoryAction: { name: 'device_memory.action', at: device_memory.action },
  memorySize: { name: 'device_memory.size', at: device_memory.size_at },
  memoryPos: { name: 'device_memory.pos', at: device_memory.pos },
  /** start_addr and page_nr in one write. */
  systemMemory: { name: 'system_memory', at: system_memory.at },
} as const satisfies Record<string, Field>;

const R = VFIO_DEVICE_STATE_CTL_RUNNING;
const S = VFIO_DEVICE_STATE_CTL_STOP;
const RL = VFIO_DEVICE_STATE_CTL_RUNNING | VFIO_DEVICE_STATE_CTL_LOGGING;
const SL = VFIO_DEVICE_STATE_CTL_STOP | VFIO_DEVICE_STATE_CTL_LOGGING;

type Row = Readonly<Partial<Record<VfioState, readonly number[]>>>;

/** WALKS[what was written last][to]: what is written, in order; never the state that it has already. Not there: never asked for. */
const WALKS: Readonly<Record<number, Row>> = {
  [R]: { running: [], 'pre-copy': [RL], stop: [S], 'stop-copy': [S, SL], resuming: [S] },
  [S]: { running: [R], stop: [], 'stop-copy': [SL], resuming: [] },
  [RL]: { running: [R], 'pre-copy': [], stop: [S], 'stop-copy': [SL, S, SL] },
  [SL]: { running: [R], stop: [S], 'stop-copy': [], resuming: [S] },
};

/** What a walk that was broken off has left. */
const STATE_OF: Readonly<Record<number, VfioState>> = {
  [R]: 'running',
  [S]: 'stop',
  [RL]: 'pre-copy',
  [SL]: 'stop-copy',
};

export class StateCtl {
  readonly #region: RegionDoor;
  /** Called whenever STOP|LOGGING was entered or is about to be left: the next state may void what was logged. */
  readonly #keepLog: () => Promise<void>;
  #written: number = R;
  #state: VfioState = 'running';

  constructor(region: RegionDoor, keepLog: () => Promise<void>) {
    this.#region = region;
    this.#keepLog = keepLog;
  }

  get state(): VfioState {
    return this.#state;
  }

  get logging(): boolean {
    return (this.#written & VFIO_DEVICE_STATE_CTL_LOGGING) !== 0;
  }

  async go(target: VfioState): Promise<void> {
    const from = this.#state;
    if (from === target) return;
    const walk = from === 'error' || isLoading(from, target) ? undefined : WALKS[this.#written]?.[target];
    if (walk === undefined) throw this.#error(`no way from ${word(from)} to ${word(target)}`, null);
    try {
      for (const next of walk) await this.#write(next);
      this.#state = target;
    } catch (cause) {
      // The register cannot be asked. Of a write that is overdue nobody knows what it does, which only a reset ends.
      this.#state = isOverdue(cause) ? 'error' : (STATE_OF[this.#written] ?? 'error');
      const text = `the device refused to go from ${word(from)} to ${word(target)} (${whyOf(cause, this.#region.name)}); it is in ${word(this.#state)}`;
      throw this.#error(text, cause);
    }
  }

  /** For what is told outside of LOGGING only. The device stays in its state of this program. */
  async leaveLogging(): Promise<void> {
    if (this.#written !== SL) return;
    await this.#keepLog();
    await this.#write(S);
  }

  /** RESUMING is ours alone: the device is in STOP all along. */
  loaded(): void {
    this.#state = 'stop';
  }

  wasReset(): void {
    this.#written = R;
    this.#state = 'running';
  }

  async #write(state: number): Promise<void> {
    await this.#region.writeU32(CTL.deviceState, state);
    this.#written = state;
    if (state === SL) await this.#keepLog();
  }

  #error(what: string, cause: unknown): VmmError {
    return new VmmError('vfio-state', `${this.#region.name}: ${what}`, { cause: cause ?? undefined, exitCode: 1 });
  }
}

/** Half a load is not saved. */
function isLoading(from: VfioState, to: VfioState): boolean {
  return from === 'resuming' && (to === 'stop-copy' || to === 'pre-copy');
}
