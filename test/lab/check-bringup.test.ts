// `ferry vfio check` of vfio-bringup in one lab host, generation by generation: clean, odd and with its bugs.
import { afterAll, beforeAll, describe } from 'vitest';
import { type Lab, startLab } from '../../lab/lab.ts';
import { pairUnavailable } from './pair.ts';
import { checkBringup } from './suites/check-bringup.ts';
import { checkLegacy } from './suites/check-legacy.ts';

const unavailable = pairUnavailable();
if (unavailable !== null) console.log(`skipped: check-bringup: ${unavailable}`);

describe.skipIf(unavailable !== null)('one host with vfio-bringup', () => {
  let lab: Lab;
  beforeAll(async () => {
    lab = await startLab({ devices: [] });
  });
  afterAll(() => lab?.close());

  checkBringup(() => lab);
  checkLegacy(() => lab);
});
