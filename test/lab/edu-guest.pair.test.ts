// The flat guest of test/guests/edu.c between two lab hosts: its interrupts across moves, its resets and ends.
import { onPair } from './one-host.ts';
import { ends } from './suites/ends.ts';
import { interrupts } from './suites/interrupts.ts';

onPair('the flat guest of edu on two hosts', interrupts, ends);
