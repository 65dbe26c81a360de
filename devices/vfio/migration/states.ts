// The device states of VFIO migration v2 and the arcs between them, as data. Called by feature-v2.ts and device-state.ts.
// The kernel walks several arcs by itself, by the shortest path that has no saving state in its middle unless both ends of the
// remaining walk are saving (linux/vfio.h, enum vfio_device_mig_state). We ask only for walks that this table knows.
import type { MigrationAbilities, VfioState } from '../transport.ts';

/** linux/vfio.h, enum vfio_device_mig_state. */
export const STATE_NUMBERS: Readonly<Record<VfioState, number>> = {
  error: 0,
  stop: 1,
  running: 2,
  'stop-copy': 3,
  resuming: 4,
  'running-p2p': 5,
  'pre-copy': 6,
  'pre-copy-p2p': 7,
};

const BY_NUMBER: ReadonlyMap<number, VfioState> = new Map(
  (Object.entries(STATE_NUMBERS) as [VfioState, number][]).map(([state, number]) => [number, state]),
);

/** null: a state that this program does not know (a newer kernel may have more). */
export function stateOf(number: number): VfioState | null {
  return BY_NUMBER.get(number) ?? null;
}

export interface Arc {
  readonly from: VfioState;
  readonly to: VfioState;
  readonly needs: { readonly preCopy: boolean; readonly p2p: boolean };
}

const BASE = { preCopy: false, p2p: false };
const P2P = { preCopy: false, p2p: true };
const PRE = { preCopy: true, p2p: false };
const BOTH = { preCopy: true, p2p: true };

/** Single arcs. With P2P, what would start or end peer traffic in one step goes through the P2P state instead. */
export const ARCS: readonly Arc[] = [
  { from: 'running', to: 'stop', needs: BASE },
  { from: 'stop', to: 'running', needs: BASE },
  { from: 'stop', to: 'stop-copy', needs: BASE },
  { from: 'stop-copy', to: 'stop', needs: BASE },
  { from: 'stop', to: 'resuming', needs: BASE },
  { from: 'resuming', to: 'stop', needs: BASE },
  { from: 'running', to: 'running-p2p', needs: P2P },
  { from: 'running-p2p', to: 'running', needs: P2P },
  { from: 'running-p2p', to: 'stop', needs: P2P },
  { from: 'stop', to: 'running-p2p', needs: P2P },
  { from: 'running', to: 'pre-copy', needs: PRE },
  { from: 'pre-copy', to: 'running', needs: PRE },
  { from: 'pre-copy', to: 'stop-copy', needs: PRE },
  { from: 'pre-copy', to: 'pre-copy-p2p', needs: BOTH },
  { from: 'pre-copy-p2p', to: 'pre-copy', needs: BOTH },
  { from: 'running-p2p', to: 'pre-copy-p2p', needs: BOTH },
  { from: 'pre-copy-p2p', to: 'running-p2p', needs: BOTH },
  { from: 'pre-copy-p2p', to: 'stop-copy', needs: BOTH },
];

/** With P2P these direct arcs are not single: they go by way of the P2P state. */
function shadowedByP2p(arc: Arc): boolean {
  const pair = `${arc.from}>${arc.to}`;
  return pair === 'running>stop' || pair === 'stop>running' || pair === 'pre-copy>stop-copy';
}

export function arcsOf(able: MigrationAbilities): readonly Arc[] {
  return ARCS.filter(
    (arc) => (!arc.needs.preCopy || able.preCopy) && (!arc.needs.p2p || able.p2p) && !(able.p2p && shadowedByP2p(arc)),
  );
}

const SAVING: ReadonlySet<VfioState> = new Set(['stop-copy', 'pre-copy', 'pre-copy-p2p']);

/** States that own a data fd for reading. */
export function isSaving(state: VfioState): boolean {
  return SAVING.has(state);
}

/** The states passed through, the last being `to`; null when the kernel would refuse. Empty when nothing is to be done. */
export function pathOf(from: VfioState, to: VfioState, able: MigrationAbilities): readonly VfioState[] | null {
  if (from === 'error' || to === 'error') return null;
  if (from === to) return [];
  const arcs = arcsOf(able);
  // "Never a saving state in the middle" unless it is left for another saving one; STOP_COPY is never left for PRE_COPY*.
  if (from === 'stop-copy' && (to === 'pre-copy' || to === 'pre-copy-p2p')) return null;
  const previous = new Map<VfioState, VfioState>();
  const queue: VfioState[] = [from];
  for (let head = 0; head < queue.length; head++) {
    const at = queue[head] as VfioState;
    if (at === to) break;
    const mayPass = at === from || !isSaving(at) || (isSaving(from) && isSaving(to));
    if (!mayPass || (at === 'resuming' && at !== from)) continue;
    for (const arc of arcs) {
      if (arc.from !== at || arc.to === from || previous.has(arc.to)) continue;
      previous.set(arc.to, at);
      queue.push(arc.to);
    }
  }
  if (!previous.has(to)) return null;
  const path: VfioState[] = [];
  for (let at: VfioState = to; at !== from; at = previous.get(at) as VfioState) path.unshift(at);
  return path;
}

/** A data fd comes back when a saving state is entered from outside, and with RESUMING. Kept through PRE_COPY* -> STOP_COPY. */
export function opensSession(from: VfioState, to: VfioState): boolean {
  if (to === 'resuming') return from !== 'resuming';
  return isSaving(to) && !isSaving(from);
}

/** The state with peer DMA stopped that belongs to a running one; null where the device has none. */
export function quiescedOf(state: VfioState, able: MigrationAbilities): VfioState | null {
  if (!able.p2p) return null;
  if (state === 'pre-copy') return 'pre-copy-p2p';
  if (state === 'running' || state === 'stop') return 'running-p2p';
  return null;
}
