// The flat guest of test/guests/edu.c between two lab hosts: its interrupts across moves, its resets and ends.
import { afterAll, beforeAll, describe } from 'vitest';
import { Pair, pairUnavailable } from './pair.ts';
import { ends } from './suites/ends.ts';
import { interrupts } from './suites/interrupts.ts';

const unavailable = pairUnavailable();
if (unavailable !== null) console.log(`skipped: edu-guest: ${unavailable}`);

describe.skipIf(unavailable !== null)('one pair of hosts with edu', () => {
  let pair: Pair;
  beforeAll(async () => {
    pair = await Pair.start();
  });
  afterAll(() => pair?.close());

  interrupts(() => pair);
  ends(() => pair);
});
