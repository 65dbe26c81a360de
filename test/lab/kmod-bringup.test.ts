// Our module vfio-bringup by its own test program, in one lab host: clean, then with each of its bugs.
import { onHost } from './one-host.ts';
import { kmodBringup } from './suites/kmod-bringup.ts';
import { kmodBringupBugs } from './suites/kmod-bringup-bugs.ts';

onHost('vfio-bringup by its own checks', [], kmodBringup, kmodBringupBugs);
