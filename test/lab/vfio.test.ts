// Real VFIO in one lab host: guests with real devices, devices/vfio without a guest, traces. In this order: the first two find edu with
// no driver, the last leaves it to ours.
import { onHost } from './one-host.ts';
import { vfioEdu } from './suites/vfio-edu.ts';
import { vfioGuest } from './suites/vfio-guest.ts';
import { vfioTrace } from './suites/vfio-trace.ts';

onHost(
  'VFIO on one host with edu, NVMe and a display',
  ['edu', 'nvme', 'bochs-display'],
  vfioGuest,
  vfioEdu,
  vfioTrace,
);
