// The oracle of `ferry vfio check` (from the comments of linux/vfio.h) and the table that Ferry itself migrates by: two witnesses, one machine.
import { describe, expect, it } from 'vitest';
import { expectedSet, stateName, statesOf } from '../../../devices/vfio/check/oracle.ts';
import { opensSession, pathOf, STATE_NUMBERS, stateOf } from '../../../devices/vfio/migration/states.ts';

const FLAGS = [
  { preCopy: false, p2p: false },
  { preCopy: false, p2p: true },
  { preCopy: true, p2p: false },
  { preCopy: true, p2p: true },
];

describe('the oracle of the states', () => {
  it.each(FLAGS)('agrees with our own table about every pair: %o', (able) => {
    for (const from of statesOf(able)) {
      for (const to of statesOf(able).filter((each) => each !== from)) {
        const [a, b] = [stateOf(from)!, stateOf(to)!];
        const path = pathOf(a, b, able);
        const expected = expectedSet(from, to, able);
        const pair = `${stateName(from)} -> ${stateName(to)}`;
        if (path === null) expect(expected, pair).toEqual({ kind: 'refused' });
        else {
          const numbers = path.map((state) => STATE_NUMBERS[state]);
          expect(expected, pair).toEqual({ kind: 'goes', path: numbers, fd: opensSession(a, b) });
        }
      }
    }
  });

  it('refuses ERROR, what is out of ERROR, and what is no state', () => {
    const able = { preCopy: true, p2p: true };
    for (const [from, to] of [
      [2, 0],
      [0, 2],
      [2, 8],
      [2, 9],
      [2, 0xffffffff],
    ] as const) {
      expect(expectedSet(from, to, able), `${from} -> ${to}`).toEqual({ kind: 'refused' });
    }
  });
});
