// Our module vfio-bringup by its own test program, in one lab host: clean, then with each of its bugs.
import { afterAll, beforeAll, describe } from 'vitest';
import { type Lab, startLab } from '../../lab/lab.ts';
import { labUnavailable } from '../../lab/packages.ts';
import { kmodBringup } from './suites/kmod-bringup.ts';
import { kmodBringupBugs } from './suites/kmod-bringup-bugs.ts';

const unavailable = labUnavailable();
if (unavailable !== null) console.log(`skipped: kmod-bringup: ${unavailable}`);

describe.skipIf(unavailable !== null)('one host with vfio-bringup', () => {
  let lab: Lab;
  beforeAll(async () => {
    lab = await startLab({ devices: [] });
  });
  afterAll(() => lab?.close());

  kmodBringup(() => lab);
  kmodBringupBugs(() => lab);
});
