// The kernel's VFIO migration v2 (Linux 5.18 and later) as a VfioMigrationPort. Called by device-state.ts and recover.ts.
// State changes run on a native thread with a deadline; the session's data fd is ours until endSession().
// linux/vfio.h, VFIO_DEVICE_FEATURE_MIGRATION, VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, VFIO_MIG_GET_PRECOPY_INFO
import {
  VFIO_DEVICE_FEATURE,
  VFIO_DEVICE_FEATURE_MIG_DATA_SIZE,
  VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE,
  VFIO_DEVICE_FEATURE_MIGRATION,
  VFIO_MIG_GET_PRECOPY_INFO,
  VFIO_MIGRATION_P2P,
  VFIO_MIGRATION_PRE_COPY,
  VFIO_MIGRATION_STOP_COPY,
  vfio_device_feature_mig_data_size,
  vfio_device_feature_mig_state,
  vfio_device_feature_migration,
  vfio_precopy_info,
} from '../../../native/abi/vfio.ts';
import { SysError, VmmError } from '../../../native/errno.ts';
import type { ChunkSink, ChunkSource, PumpResult } from '../../contract.ts';
import { within } from '../deadline.ts';
import type { KernelDoor } from '../kernel-door.ts';
import type { MigrationAbilities, PrecopyInfo, VfioMigrationPort, VfioState } from '../transport.ts';
import { callFeature, FEATURE_DATA, type FeatureDoor, featureArg, probeFeature } from './feature-arg.ts';
import { isSaving, opensSession, pathOf, STATE_NUMBERS, stateOf } from './states.ts';

/** Drivers may talk to slow firmware; the peer's patience (30 s of silence) is the bound that makes sense. */
export const STATE_DEADLINE_MS = 30_000;
const QUERY_MS = 10_000;
/** VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2 (Linux after 6.14, so not in native/abi): SET only, without data. From then on the flags of struct
 *  vfio_precopy_info mean something; before, they are what the caller had left there. */
const PRECOPY_INFO_V2 = 12;
const PRECOPY_INFO_REINIT = 1;

/** null: the device or this kernel has no migration v2. */
export function openFeatureV2(door: KernelDoor, fd: number, name: string): FeatureV2 | null {
  const arg = featureArg(VFIO_DEVICE_FEATURE_MIGRATION, 'get', vfio_device_feature_migration.size);
  try {
    door.ioctl('VFIO_DEVICE_FEATURE(MIGRATION)', fd, VFIO_DEVICE_FEATURE, arg.bytes);
  } catch (error) {
    if (error instanceof SysError) return null;
    throw error;
  }
  const flags = arg.view.getBigUint64(FEATURE_DATA + vfio_device_feature_migration.flags, true);
  if ((flags & BigInt(VFIO_MIGRATION_STOP_COPY)) === 0n) return null;
  const able = {
    preCopy: (flags & BigInt(VFIO_MIGRATION_PRE_COPY)) !== 0n,
    p2p: (flags & BigInt(VFIO_MIGRATION_P2P)) !== 0n,
    reinit: false,
  };
  able.reinit = able.preCopy && takesPrecopyInfoV2({ door, fd });
  return new FeatureV2({ door, fd }, name, able, STATE_DEADLINE_MS);
}

/** Asks the driver to say when a new batch of initial data is due. */
function takesPrecopyInfoV2(on: FeatureDoor): boolean {
  if (!probeFeature(on, PRECOPY_INFO_V2, 'set')) return false;
  const arg = featureArg(PRECOPY_INFO_V2, 'set', 0);
  try {
    on.door.ioctl('VFIO_DEVICE_FEATURE(MIG_PRECOPY_INFOv2)', on.fd, VFIO_DEVICE_FEATURE, arg.bytes);
    return true;
  } catch (error) {
    if (error instanceof SysError) return false;
    throw error;
  }
}

export interface V2Abilities extends MigrationAbilities {
  /** VFIO_PRECOPY_INFO_REINIT may be given. */
  readonly reinit: boolean;
}

export class FeatureV2 implements VfioMigrationPort {
  readonly abi = 'v2';
  readonly dirtyPages = null;
  readonly preCopy: boolean;
  readonly p2p: boolean;
  readonly #on: FeatureDoor;
  readonly #name: string;
  readonly #deadlineMs: number;
  readonly #reinit: boolean;
  #state: VfioState = 'running';
  #dataFd: number | null = null;
  /** A SET that outlived its deadline: the kernel would make the next one wait for it anyway. */
  #late: Promise<void> | null = null;
  /** The driver has no VFIO_DEVICE_FEATURE_MIG_DATA_SIZE (Linux before 6.2). */
  #noDataSize = false;

  constructor(on: FeatureDoor, name: string, able: V2Abilities, deadlineMs: number) {
    this.#on = on;
    this.#name = name;
    this.preCopy = able.preCopy;
    this.p2p = able.p2p;
    this.#reinit = able.reinit;
    this.#deadlineMs = deadlineMs;
  }

  get state(): VfioState {
    return this.#state;
  }

  /** Asks a device that was just opened where it is: a driver may let its state outlive a close. One that does not answer counts as running. */
  async look(): Promise<void> {
    this.#state = (await this.#asked()) ?? 'running';
  }

  /** For tests and `ferry vfio check`: the session's fd. */
  get dataFd(): number | null {
    return this.#dataFd;
  }

  get sessionOpen(): boolean {
    return this.#dataFd !== null;
  }

  async setState(target: VfioState): Promise<void> {
    await this.#afterLate();
    const from = this.#state;
    if (from === target) return;
    if (pathOf(from, target, this) === null) {
      throw new VmmError('vfio-state', `${this.#name}: no way from ${word(from)} to ${word(target)}`, { exitCode: 1 });
    }
    let dataFd: number;
    try {
      dataFd = await this.#set(target);
    } catch (cause) {
      // A failed SET may have stopped anywhere along the path. linux/vfio.h, enum vfio_device_mig_state
      if (this.#late === null) await this.#requery();
      const why = cause instanceof SysError ? cause.code : cause instanceof Error ? cause.message : String(cause);
      const text = `${this.#name}: the device refused to go from ${word(from)} to ${word(target)} (${why}); it is in ${word(this.#state)}`;
      throw new VmmError('vfio-state', text, { cause, exitCode: 1 });
    }
    this.#arrived(from, target, dataFd);
  }

  async stopCopySize(): Promise<number | null> {
    if (this.#noDataSize) return null;
    const arg = featureArg(VFIO_DEVICE_FEATURE_MIG_DATA_SIZE, 'get', vfio_device_feature_mig_data_size.size);
    try {
      await within(callFeature(this.#on, 'MIG_DATA_SIZE', arg), {
        ms: QUERY_MS,
        what: `${this.#name}: asking for the size of its state`,
      });
    } catch (error) {
      if (!(error instanceof SysError)) throw error;
      this.#noDataSize = error.code === 'ENOTTY';
      return null;
    }
    return Number(arg.view.getBigUint64(FEATURE_DATA + vfio_device_feature_mig_data_size.stop_copy_length, true));
  }

  async precopyInfo(): Promise<PrecopyInfo | null> {
    const fd = this.#dataFd;
    if (fd === null || (this.#state !== 'pre-copy' && this.#state !== 'pre-copy-p2p')) return null;
    const arg = new Uint8Array(vfio_precopy_info.size);
    const view = new DataView(arg.buffer);
    view.setUint32(vfio_precopy_info.argsz, arg.length, true);
    try {
      await within(this.#on.door.ioctlAsync('VFIO_MIG_GET_PRECOPY_INFO', fd, VFIO_MIG_GET_PRECOPY_INFO, arg), {
        ms: QUERY_MS,
        what: `${this.#name}: asking for the rest of its pre-copy data`,
      });
    } catch (error) {
      if (error instanceof SysError && error.code === 'ENOTTY') return null;
      throw error;
    }
    return {
      initial: Number(view.getBigUint64(vfio_precopy_info.initial_bytes, true)),
      dirty: Number(view.getBigUint64(vfio_precopy_info.dirty_bytes, true)),
      reinit: this.#reinit && (view.getUint32(vfio_precopy_info.flags, true) & PRECOPY_INFO_REINIT) !== 0,
    };
  }

  save(sink: ChunkSink, budget: number): Promise<PumpResult> {
    return sink.pump(this.#session(), budget);
  }

  load(source: ChunkSource, length: number): Promise<void> {
    return source.pump(this.#session(), length);
  }

  async finishLoad(): Promise<'validated'> {
    await this.setState('stop');
    return 'validated';
  }

  endSession(): void {
    if (this.#dataFd === null) return;
    this.#on.door.closeFd(this.#dataFd);
    this.#dataFd = null;
  }

  wasReset(): void {
    this.endSession();
    this.#state = 'running';
  }

  /** One SET; gives the data fd that came back, -1 for none. */
  async #set(target: VfioState): Promise<number> {
    const arg = featureArg(VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, 'set', vfio_device_feature_mig_state.size);
    const fdAt = FEATURE_DATA + vfio_device_feature_mig_state.data_fd;
    arg.view.setUint32(FEATURE_DATA + vfio_device_feature_mig_state.device_state, STATE_NUMBERS[target], true);
    arg.view.setInt32(fdAt, -1, true);
    const work = callFeature(this.#on, `MIG_DEVICE_STATE=${word(target)}`, arg);
    let timedOut = true;
    try {
      await within(work, { ms: this.#deadlineMs, what: `${this.#name}: going to ${word(target)}` }, () => {
        const fd = arg.view.getInt32(fdAt, true);
        if (fd >= 0) this.#on.door.closeFd(fd);
      });
      timedOut = false;
    } catch (error) {
      timedOut = error instanceof VmmError;
      if (timedOut) this.#late = settled(work);
      throw error;
    }
    return arg.view.getInt32(fdAt, true);
  }

  #arrived(from: VfioState, target: VfioState, dataFd: number): void {
    const expected = opensSession(from, target);
    if (!isSaving(target) || expected) this.endSession();
    this.#state = target;
    if (expected && dataFd >= 0) {
      this.#dataFd = dataFd;
      return;
    }
    if (expected) {
      throw new VmmError('vfio-data', `${this.#name}: the driver gave no data fd for ${word(target)}`, { exitCode: 1 });
    }
    if (dataFd < 0) return;
    // A second fd means that the session which we held is not the driver's any more.
    this.#on.door.closeFd(dataFd);
    this.endSession();
    throw new VmmError(
      'vfio-data',
      `${this.#name}: the driver opened a second data fd in ${word(target)}: the device was reset behind us`,
      { exitCode: 1 },
    );
  }

  async #afterLate(): Promise<void> {
    const late = this.#late;
    if (late === null) return;
    await within(late, { ms: this.#deadlineMs, what: `${this.#name}: waiting for the state change that is overdue` });
    this.#late = null;
    await this.#requery();
  }

  /** No answer counts as ERROR: only a reset leads out of it. */
  async #requery(): Promise<void> {
    this.#state = (await this.#asked()) ?? 'error';
    if (!isSaving(this.#state) && this.#state !== 'resuming') this.endSession();
  }

  /** A state that we do not know counts as ERROR, too; null: no answer. */
  async #asked(): Promise<VfioState | null> {
    const arg = featureArg(VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, 'get', vfio_device_feature_mig_state.size);
    try {
      await within(callFeature(this.#on, 'GET MIG_DEVICE_STATE', arg), {
        ms: QUERY_MS,
        what: `${this.#name}: asking for its state`,
      });
      const number = arg.view.getUint32(FEATURE_DATA + vfio_device_feature_mig_state.device_state, true);
      return stateOf(number) ?? 'error';
    } catch {
      return null;
    }
  }

  #session(): number {
    if (this.#dataFd === null) {
      throw new VmmError('vfio-data', `${this.#name}: no migration session is open in ${word(this.#state)}`, {
        exitCode: 1,
      });
    }
    return this.#dataFd;
  }
}

/** linux/vfio.h's word for a state: PRE_COPY_P2P. */
export function word(state: VfioState): string {
  return state.toUpperCase().replaceAll('-', '_');
}

function settled(work: Promise<unknown>): Promise<void> {
  return work.then(
    () => undefined,
    () => undefined,
  );
}
