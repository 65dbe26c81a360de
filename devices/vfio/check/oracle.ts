// What linux/vfio.h says of the migration states, for the rules of `ferry vfio check`: which SETs succeed, where they end, which give a data
// fd. Written from the comment at enum vfio_device_mig_state alone; shares nothing with migration/states.ts, which it is a second witness of.
// Pure; called by rules-states.ts and bench.ts. States are the header's numbers: a driver under test may answer any other.

export const ERROR = 0;
export const STOP = 1;
export const RUNNING = 2;
export const STOP_COPY = 3;
export const RESUMING = 4;
export const RUNNING_P2P = 5;
export const PRE_COPY = 6;
export const PRE_COPY_P2P = 7;

const NAMES = ['ERROR', 'STOP', 'RUNNING', 'STOP_COPY', 'RESUMING', 'RUNNING_P2P', 'PRE_COPY', 'PRE_COPY_P2P'];

export function stateName(state: number): string {
  return NAMES[state] ?? `state ${state}`;
}

export interface Able {
  readonly preCopy: boolean;
  readonly p2p: boolean;
}

/** "PRE_COPY, PRE_COPY_P2P and STOP_COPY form the "saving group" of states which share a data transfer session." */
export function inSavingGroup(state: number): boolean {
  return state === STOP_COPY || state === PRE_COPY || state === PRE_COPY_P2P;
}

/** The arcs that the comment lists, in its order. Those into ERROR are nobody's to ask for. */
const LISTED: readonly (readonly [number, number])[] = [
  [RUNNING_P2P, STOP],
  [STOP_COPY, STOP],
  [RESUMING, STOP],
  [PRE_COPY, RUNNING],
  [RUNNING_P2P, RUNNING],
  [PRE_COPY_P2P, RUNNING_P2P],
  [RUNNING, RUNNING_P2P],
  [STOP, RUNNING_P2P],
  [RUNNING, PRE_COPY],
  [RUNNING_P2P, PRE_COPY_P2P],
  [STOP, STOP_COPY],
  [PRE_COPY, PRE_COPY_P2P],
  [PRE_COPY_P2P, PRE_COPY],
  [PRE_COPY_P2P, STOP_COPY],
  [STOP, RESUMING],
];

/** The states that a device has, RUNNING first. ERROR is one too, but nobody can ask for it. */
export function statesOf(able: Able): number[] {
  return [RUNNING, STOP, STOP_COPY, RESUMING, RUNNING_P2P, PRE_COPY, PRE_COPY_P2P].filter((state) => has(state, able));
}

function has(state: number, able: Able): boolean {
  if (state === RUNNING_P2P) return able.p2p;
  if (state === PRE_COPY) return able.preCopy;
  if (state === PRE_COPY_P2P) return able.preCopy && able.p2p;
  return state === STOP || state === RUNNING || state === STOP_COPY || state === RESUMING;
}

/**
 * Every way without a detour, by depth: "Select the shortest path. The path cannot have saving group states as interior arcs" - but a walk from
 * one saving state to another stays in their group, since the session goes on. P2P states that a device has not are walked through all the same:
 * "the states behave as though the device was fully running if not supported".
 */
function shortestWalk(from: number, to: number, able: Able): number[] | null {
  const arcs = LISTED.filter((arc) => able.preCopy || !arc.some((end) => end === PRE_COPY || end === PRE_COPY_P2P));
  const within = inSavingGroup(from) && inSavingGroup(to);
  let ways: number[][] = [[from]];
  for (let length = 0; length < NAMES.length; length++) {
    const found = ways.find((way) => way.at(-1) === to);
    if (found !== undefined) return found.slice(1);
    ways = ways.flatMap((way) => {
      const at = way.at(-1) as number;
      if (way.length > 1 && inSavingGroup(at) !== within) return [];
      return arcs.filter(([start, end]) => start === at && !way.includes(end)).map(([, end]) => [...way, end]);
    });
  }
  return null;
}

export type Expected =
  /** `path` ends with the state asked for; states that the device has not are left out. */
  { readonly kind: 'goes'; readonly path: readonly number[]; readonly fd: boolean } | { readonly kind: 'refused' };

/** For two different states of which the device is in the first. */
export function expectedSet(from: number, to: number, able: Able): Expected {
  if (from === ERROR || !has(to, able)) return { kind: 'refused' };
  const walk = shortestWalk(from, to, able);
  if (walk === null) return { kind: 'refused' };
  const path = walk.filter((state) => has(state, able));
  return { kind: 'goes', path, fd: to === RESUMING || (inSavingGroup(to) && !inSavingGroup(from)) };
}
