// The table of VFIO v2 states against two oracles that know nothing of it: all simple paths by the uAPI's words (the fake device), and
// the full table of next steps for a device with PRE_COPY and P2P, written by hand from linux/vfio.h.
import { describe, expect, it } from 'vitest';
import { opensSession, pathOf, quiescedOf, STATE_NUMBERS, stateOf } from '../../../devices/vfio/migration/states.ts';
import type { VfioState } from '../../../devices/vfio/transport.ts';
import {
  VFIO_DEVICE_STATE_ERROR,
  VFIO_DEVICE_STATE_PRE_COPY,
  VFIO_DEVICE_STATE_PRE_COPY_P2P,
  VFIO_DEVICE_STATE_RESUMING,
  VFIO_DEVICE_STATE_RUNNING,
  VFIO_DEVICE_STATE_RUNNING_P2P,
  VFIO_DEVICE_STATE_STOP,
  VFIO_DEVICE_STATE_STOP_COPY,
} from '../../../native/abi/vfio.ts';
import { walkByText } from '../../fakes/vfio-transport.ts';

const STATES = Object.keys(STATE_NUMBERS) as VfioState[];
const S = 'stop';
const R = 'running';
const C = 'stop-copy';
const U = 'resuming';
const P = 'running-p2p';
const PC = 'pre-copy';
const PP = 'pre-copy-p2p';

/** NEXT[from][to]: the first step. null: refused. Columns in the same order as the rows. */
const ORDER: VfioState[] = [S, R, C, U, P, PC, PP];
const NEXT: Record<string, (VfioState | null)[]> = {
  //     stop resp. to: S  R   C   U  P  PC   PP
  [S]: [S, P, C, U, P, P, P],
  [R]: [P, R, P, P, P, PC, P],
  [C]: [S, S, C, S, S, null, null],
  [U]: [S, S, S, U, S, S, S],
  [P]: [S, R, S, S, P, R, PP],
  [PC]: [R, R, PP, R, R, PC, PP],
  [PP]: [P, P, C, P, P, PC, PP],
};

describe('states of VFIO migration v2', () => {
  it('have the numbers of linux/vfio.h', () => {
    expect(STATE_NUMBERS).toEqual({
      error: VFIO_DEVICE_STATE_ERROR,
      stop: VFIO_DEVICE_STATE_STOP,
      running: VFIO_DEVICE_STATE_RUNNING,
      'stop-copy': VFIO_DEVICE_STATE_STOP_COPY,
      resuming: VFIO_DEVICE_STATE_RESUMING,
      'running-p2p': VFIO_DEVICE_STATE_RUNNING_P2P,
      'pre-copy': VFIO_DEVICE_STATE_PRE_COPY,
      'pre-copy-p2p': VFIO_DEVICE_STATE_PRE_COPY_P2P,
    });
    expect(stateOf(8)).toBeNull();
  });

  for (const preCopy of [false, true]) {
    for (const p2p of [false, true]) {
      it(`walks as the uAPI text says (PRE_COPY ${preCopy}, P2P ${p2p})`, () => {
        for (const from of STATES) {
          for (const to of STATES) {
            const mine = pathOf(from, to, { preCopy, p2p });
            expect(mine, `${from} -> ${to}`).toEqual(walkByText(from, to, preCopy, p2p));
          }
        }
      });
    }
  }

  it('takes the steps of the hand-written table', () => {
    for (const from of ORDER) {
      ORDER.forEach((to, column) => {
        if (from === to) return;
        const path = pathOf(from, to, { preCopy: true, p2p: true });
        expect(path?.[0] ?? null, `${from} -> ${to}`).toBe(NEXT[from]?.[column]);
      });
    }
  });

  it('never leaves ERROR and never asks for it', () => {
    for (const state of STATES) {
      expect(pathOf('error', state, { preCopy: true, p2p: true })).toBeNull();
      expect(pathOf(state, 'error', { preCopy: true, p2p: true })).toBeNull();
    }
  });

  it('opens a session only when a saving state is entered from outside, and with RESUMING', () => {
    expect(opensSession(R, PC)).toBe(true);
    expect(opensSession(S, C)).toBe(true);
    expect(opensSession(PC, PP)).toBe(false);
    expect(opensSession(PP, C)).toBe(false);
    expect(opensSession(R, U)).toBe(true);
    expect(opensSession(U, S)).toBe(false);
  });

  it('quiesces into the P2P state of the group it is in, on the way down and up', () => {
    const able = { preCopy: true, p2p: true };
    expect(quiescedOf(PC, able)).toBe(PP);
    expect(quiescedOf(R, able)).toBe(P);
    expect(quiescedOf(S, able)).toBe(P);
    expect(quiescedOf(PP, able)).toBeNull();
    expect(quiescedOf(R, { preCopy: false, p2p: false })).toBeNull();
  });
});
