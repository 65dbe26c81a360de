// The fault ladder of each generation of the migration interface, as data: what vfio-bringup is told to fail at which end of a move, what
// the verb then says, and what the guest's driver meets. Used by ladder.ts; the parameters are images/kmod/vfio-bringup/README.md's.
import type { Generator } from '../fuzz/generator.ts';

export type Abi = 'a' | 'b' | 'c' | 'd';
export type FaultKind = 'save arc' | 'way back' | 'load arc' | 'read' | 'write' | 'reset' | 'gone';
export type Parameters = Readonly<Record<string, string>>;

export interface Fault {
  readonly kind: FaultKind;
  readonly name: string;
  readonly source: Parameters;
  readonly destination: Parameters;
  /** In the error of `ferry migrate`. */
  readonly why: RegExp;
  /** What the guest's driver notes: its device was reset under it, took no writes or was not there. */
  readonly met: 'reset' | 'stands' | 'gone' | null;
  /** The device is lost until the next attempt, which fails, too, but brings it back: what that one says and the driver notes. */
  readonly next: { readonly why: RegExp; readonly met: 'reset' | null } | null;
}

const FINE: Parameters = {};
const arc = (value: string): Parameters => ({ fail_arc: value });
const PLACES = ['first', 'middle', 'last'] as const;
const REFUSED = /the destination refused: .*EIO/;

const plain = { source: FINE, destination: FINE, met: null, next: null };

const saveArc = (arcs: string): Fault => ({
  ...plain,
  ...{ kind: 'save arc', name: `${arcs} is refused`, source: arc(arcs), why: /refused to go .*\(EIO\)/ },
});
const loadArc = (arcs: string): Fault => ({
  ...plain,
  ...{ kind: 'load arc', name: `${arcs} is refused`, destination: arc(arcs), why: REFUSED },
});
/** What leads to a reset: one thing fails, and so does the way back from there. */
const wayBack = (arcs: string, read: string | null = null, destination = FINE): Fault => ({
  ...plain,
  kind: 'way back',
  name: `${arcs} is refused${read === null ? '' : ` after the ${read} read`}${destination === FINE ? '' : ' after the load'}`,
  source: { ...arc(arcs), ...(read === null ? {} : { fail_read: read }) },
  destination,
  why: /EIO/,
  met: 'reset',
});
const data = PLACES.flatMap((place): Fault[] => [
  { ...plain, kind: 'read', name: `the ${place} read fails`, source: { fail_read: place }, why: /EIO/ },
  { ...plain, kind: 'write', name: `the ${place} write fails`, destination: { fail_write: place }, why: REFUSED },
]);
const LOST = /is lost until this host resets it/;
const resetFails = (back: string, load: string): Fault[] => [
  {
    ...plain,
    kind: 'reset',
    name: `${back} is refused after the last read, and the reset fails`,
    source: { ...arc(back), fail_read: 'last', fail_reset: '1' },
    why: LOST,
    met: 'stands',
    next: { why: /no way from STOP(_COPY)? to PRE_COPY/, met: null },
  },
  {
    ...plain,
    kind: 'reset',
    name: `${load} is refused at the destination, and the reset fails`,
    destination: { ...arc(load), fail_reset: '1' },
    why: /the destination refused: .*is lost until/,
  },
];
/** In the middle of its data: the way back from there is refused, too. `reset`: the next attempt finds it in no state that it knows. */
const goes = (reset: boolean): Fault[] => [
  {
    ...plain,
    kind: 'gone',
    name: 'the device goes in the middle of its save',
    source: { gone_read: 'middle' },
    why: LOST,
    met: 'gone',
    next: reset ? { why: /the device was reset/, met: 'reset' } : { why: /no way from STOP to PRE_COPY/, met: null },
  },
  {
    ...plain,
    kind: 'gone',
    name: 'the device goes in the middle of its load',
    destination: { gone_write: 'middle' },
    why: /the destination refused: .*ENODEV/,
  },
];
/** Abi a has no state that could be read: a device that does not answer counts as where it was. */
const gone = (lost: boolean): Fault[] => [
  {
    ...plain,
    kind: 'gone',
    name: 'the device is gone at the source',
    source: { gone: '1' },
    why: lost ? LOST : /refused to go .*\(ENODEV\)/,
    met: 'gone',
    next: lost ? { why: /the device was reset/, met: 'reset' } : null,
  },
  {
    ...plain,
    kind: 'gone',
    name: 'the device is gone at the destination',
    destination: { gone: '1' },
    why: /the destination refused: .*ENODEV/,
  },
];

/** RUNNING is 1, SAVING 2, RESUMING 4. RESUMING to 0 may always be refused: that only makes the verdict late. */
const REGION: readonly Fault[] = [
  ...['1:3', '3:2'].map(saveArc),
  ...[wayBack('3:1', 'first'), wayBack('2:1', 'last'), wayBack('3:2,3:0'), wayBack('3:2,0:1')],
  loadArc('1:4'),
  ...data,
  ...resetFails('2:1', '1:4'),
  ...gone(true),
  ...goes(true),
];

export const LADDERS: Readonly<Record<Abi, readonly Fault[]>> = {
  d: [
    ...['RUNNING:PRE_COPY', 'PRE_COPY:PRE_COPY_P2P', 'PRE_COPY_P2P:STOP_COPY'].map(saveArc),
    wayBack('PRE_COPY:RUNNING', 'first'),
    ...['STOP_COPY:STOP', 'STOP:RUNNING_P2P', 'RUNNING_P2P:RUNNING'].map((each) => wayBack(each, 'last')),
    ...['PRE_COPY_P2P:RUNNING_P2P', 'RUNNING_P2P:STOP'].map((each) => wayBack(`PRE_COPY_P2P:STOP_COPY,${each}`)),
    ...['RUNNING:RUNNING_P2P', 'RUNNING_P2P:STOP', 'STOP:RESUMING', 'RESUMING:STOP'].map(loadArc),
    ...data,
    ...resetFails('STOP_COPY:STOP', 'STOP:RESUMING'),
    ...gone(true),
    ...goes(true),
  ],
  c: REGION,
  b: REGION,
  // STOP is 1, LOGGING 2. A device is saved by way of 2, 3, 1, 3 and 1, and its memory is read in 1.
  a: [
    ...['0:2', '2:3', '1:3'].map(saveArc),
    ...[wayBack('3:1'), wayBack('2:3,2:1'), wayBack('1:0', 'first'), wayBack('2:0', null, arc('0:1'))],
    loadArc('0:1'),
    ...data,
    ...resetFails('1:0', '0:1'),
    ...gone(false),
    ...goes(false),
  ],
};

/** One of each kind, dealt out among the generations. */
export function dealt(dice: Generator): Readonly<Record<Abi, readonly Fault[]>> {
  const hands: Record<Abi, Fault[]> = { a: [], b: [], c: [], d: [] };
  const kinds = [...new Set(LADDERS.d.map(({ kind }) => kind))];
  const first = dice(4);
  for (let n = 0; kinds.length > 0; n++) {
    const [kind] = kinds.splice(dice(kinds.length), 1);
    const abi = (['a', 'b', 'c', 'd'] as const)[(first + n) % 4]!;
    const of = LADDERS[abi].filter((each) => each.kind === kind);
    hands[abi].push(of[dice(of.length)]!);
  }
  return hands;
}
