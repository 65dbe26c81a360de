// `ferry vfio check` of vfio-bringup in one lab host, generation by generation: clean, odd and with its bugs.
import { onHost } from './one-host.ts';
import { checkBringup } from './suites/check-bringup.ts';
import { checkLegacy } from './suites/check-legacy.ts';

onHost('ferry vfio check on one host with vfio-bringup', [], checkBringup, checkLegacy);
