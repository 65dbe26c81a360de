// The states of the migration region (v1 and v7) as bits, and the walks between them, as data. Called by region-state.ts.
// The texts draw RUNNING -> STOP, RUNNING -> [pre-copy ->] stop-and-copy -> STOP, RUNNING -> RESUMING and RESUMING -> RUNNING. What else
// stands here was asked by every user of these interfaces (back to RUNNING after a cancel) or is tried and may be refused (RESUMING -> STOP).
// linux/vfio.h of Linux 5.8, struct vfio_device_migration_info, device_state
import {
  VFIO_DEVICE_STATE_V1_RESUMING,
  VFIO_DEVICE_STATE_V1_RUNNING,
  VFIO_DEVICE_STATE_V1_SAVING,
  VFIO_DEVICE_STATE_V1_STOP,
} from '../../../native/abi/vfio.ts';
import type { VfioState } from '../transport.ts';

/** States that are ever written; SAVING | RESUMING is ERROR and RUNNING | RESUMING is invalid. */
export type RegionTarget = 'stop' | 'running' | 'stop-copy' | 'pre-copy' | 'resuming';

export const STATE_BITS: Readonly<Record<RegionTarget, number>> = {
  stop: VFIO_DEVICE_STATE_V1_STOP,
  running: VFIO_DEVICE_STATE_V1_RUNNING,
  'stop-copy': VFIO_DEVICE_STATE_V1_SAVING,
  'pre-copy': VFIO_DEVICE_STATE_V1_RUNNING | VFIO_DEVICE_STATE_V1_SAVING,
  resuming: VFIO_DEVICE_STATE_V1_RESUMING,
};

/** What the three bits say; everything that the text calls invalid counts as ERROR, which a reset leaves. */
export function stateOfBits(bits: number): VfioState {
  const found = (Object.keys(STATE_BITS) as RegionTarget[]).find((state) => STATE_BITS[state] === bits);
  return found ?? 'error';
}

type Row = Readonly<Partial<Record<RegionTarget, readonly RegionTarget[]>>>;

/** WALKS[from][to]: what is written, in order. Not there: never asked for. */
const WALKS: Readonly<Record<RegionTarget, Row>> = {
  running: {
    'pre-copy': ['pre-copy'],
    'stop-copy': ['stop-copy'],
    stop: ['stop'],
    resuming: ['resuming'],
  },
  'pre-copy': {
    'stop-copy': ['stop-copy'],
    running: ['running'],
    stop: ['stop'],
  },
  'stop-copy': {
    stop: ['stop'],
    running: ['running'],
  },
  // RESUMING is entered from RUNNING only.
  stop: {
    running: ['running'],
    'stop-copy': ['stop-copy'],
    resuming: ['running', 'resuming'],
  },
  resuming: {
    running: ['running'],
    stop: ['stop'],
  },
};

/** null: there is no way. Empty: it is that already. */
export function walkOf(from: VfioState, to: VfioState): readonly RegionTarget[] | null {
  if (!isTarget(from) || !isTarget(to)) return null;
  return from === to ? [] : (WALKS[from][to] ?? null);
}

function isTarget(state: VfioState): state is RegionTarget {
  return state in STATE_BITS;
}
