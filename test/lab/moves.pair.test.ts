// Debian guests with edu move between two lab hosts, with nothing lost; and what is lost on purpose is noticed. Each suite brings its guests; the
// pair is one, for its start and its first guest cost half a minute of CPU.
import { afterAll, beforeAll, describe } from 'vitest';
import { Pair, pairUnavailable } from './pair.ts';
import { iommufdMoves } from './suites/iommufd-moves.ts';
import { moveControls } from './suites/move-controls.ts';
import { moves } from './suites/moves.ts';

const unavailable = pairUnavailable();
if (unavailable !== null) console.log(`skipped: moves: ${unavailable}`);

describe.skipIf(unavailable !== null)('one pair of hosts with edu', () => {
  let pair: Pair;
  beforeAll(async () => {
    pair = await Pair.start();
  });
  afterAll(() => pair?.close());

  moves(() => pair);
  iommufdMoves(() => pair);
  moveControls(() => pair);
});
