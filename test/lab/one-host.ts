// Makes a test file of suites: one lab host, or one pair of hosts, for all of them. Its start, and the first guest in a host that has translated
// nothing yet, cost half a minute of CPU.
import { afterAll, beforeAll, describe } from 'vitest';
import { type Lab, startLab } from '../../lab/lab.ts';
import type { LabDeviceKind } from '../../lab/qemu-command.ts';
import { Pair, pairUnavailable } from './pair.ts';

/** To be called in a test file: describes its tests over what `given` has while they run. */
export type Suite<H> = (given: () => H) => void;

interface Host {
  close(): Promise<void>;
}

function over<H extends Host>(
  name: string,
  unavailable: string | null,
  start: () => Promise<H>,
  suites: readonly Suite<H>[],
): void {
  if (unavailable !== null) console.log(`skipped: ${name}: ${unavailable}`);
  describe.skipIf(unavailable !== null)(name, () => {
    let host: H | null = null;
    beforeAll(async () => {
      host = await start();
    });
    afterAll(() => host?.close());
    for (const suite of suites) suite(() => host!);
  });
}

/** A pair of hosts with edu at our driver. */
export function onPair(name: string, ...suites: Suite<Pair>[]): void {
  over(name, pairUnavailable(), () => Pair.start(), suites);
}

/** One host that Ferry's program is run in. */
export function onHost(name: string, devices: readonly LabDeviceKind[], ...suites: Suite<Lab>[]): void {
  over(name, pairUnavailable(), () => startLab({ devices }), suites);
}
