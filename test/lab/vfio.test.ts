// Real VFIO in one lab host: guests with real devices, devices/vfio without a guest, traces. In this order: the first two find edu with
// no driver, the last leaves it to ours.
import { afterAll, beforeAll, describe } from 'vitest';
import { type Lab, startLab } from '../../lab/lab.ts';
import { pairUnavailable } from './pair.ts';
import { vfioEdu } from './suites/vfio-edu.ts';
import { vfioGuest } from './suites/vfio-guest.ts';
import { vfioTrace } from './suites/vfio-trace.ts';

const unavailable = pairUnavailable();
if (unavailable !== null) console.log(`skipped: vfio: ${unavailable}`);

describe.skipIf(unavailable !== null)('one host with edu and NVMe', () => {
  let lab: Lab;
  beforeAll(async () => {
    lab = await startLab({ devices: ['edu', 'nvme'] });
  });
  afterAll(() => lab?.close());

  vfioGuest(() => lab);
  vfioEdu(() => lab);
  vfioTrace(() => lab);
});
