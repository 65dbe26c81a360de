// `ferry vfio check` on vfio-bringup of the three older generations, in a lab host, with a second device and one of another size: each is
// recognised, the clean module has no finding, and its seeded bugs are found by their rules (every fifth here, all of them, and its oddities, with
// FERRY_BUGS=all). Numbers: images/kmod/vfio-bringup/bugs.h.
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import type { CheckReport } from '../../../devices/vfio/check/check.ts';
import type { Generation } from '../../../devices/vfio/check/rule.ts';
import type { LabHost } from '../../../lab/host.ts';
import type { Lab } from '../../../lab/lab.ts';
import { repoRoot } from '../../../lab/root.ts';
import { BringupDevices, uuidOf } from '../bringup-devices.ts';

const _bundled = existsSync(join(repoRoot(), 'dist/ferry.cjs'));

const device = (n: number) => `/sys/bus/mdev/devices/${uuidOf(n)}`;
const ALL = process.env['FERRY_BUGS'] === 'all';
const TIMEOUT_MS = 600_000;

type Abi = 'a' | 'b' | 'c';

const GENERATIONS: readonly (readonly [Abi, Generation])[] = [
  ['a', 'regions'],
  ['b', 'v7'],
  ['c', 'v1'],
];

/** abi, bug, the rule that finds it. */
const BUGS: readonly (readonly [Abi, number, string])[] = [
  ['a', 101, 'ctl.stop'],
  ['a', 102, 'ctl.activate'],
  ['a', 103, 'parts.config-verdict'],
  ['a', 104, 'parts.memory-verdict'],
  ['a', 105, 'parts.memory-dirty'],
  ['a', 106, 'ctl.bitmap'],
  ['a', 107, 'ctl.page-nr'],
  ['a', 108, 'parts.second'],
  ['a', 109, 'parts.into-second'],
  ['b', 201, 'region.invalid'],
  ['b', 202, 'pfns.partial'],
  ['b', 203, 'pfns.writes'],
  ['b', 204, 'pfns.page-size'],
  ['b', 205, 'pfns.total'],
  ['b', 206, 'region.stop'],
  ['b', 207, 'region.truncated'],
  ['b', 208, 'region.into-second'],
  ['c', 301, 'region.pending'],
  ['c', 302, 'region.invalid'],
  ['c', 303, 'region.reserved-bits'],
  ['c', 304, 'region.widths'],
  ['c', 305, 'region.stop'],
  ['c', 306, 'region.chunk-whole'],
  ['c', 307, 'region.truncated'],
  ['c', 308, 'region.reset'],
  ['c', 309, 'region.into-second'],
];

/** Legal ones: nothing in pre-copy, ALL pages always, data_offset moves. */
const ODDITIES: Readonly<Record<Abi, readonly number[]>> = { a: [], b: [10, 11, 12], c: [10, 12] };

/** What no clean device leads to: the error state; ctl.page-nr runs here, with --destructive. */
const NOT_REACHED: Readonly<Record<Abi, readonly string[]>> = { a: [], b: [], c: ['region.error'] };

export function checkLegacy(given: () => Lab): void {
  describe('ferry vfio check of an older vfio-bringup', () => {
    let lab: Lab;
    let host: LabHost;
    let devices: BringupDevices;

    async function check(...options: string[]): Promise<CheckReport> {
      const beside = ['--second', device(1), '--other-size', device(2)];
      const argv = [join(repoRoot(), 'bin/ferry'), 'vfio', 'check', device(0), ...beside, '--json', '--destructive'];
      argv.push(...options);
      const { stdout, stderr } = await host.exec(argv, { timeoutMs: TIMEOUT_MS });
      expect(stderr).toBe('');
      return JSON.parse(stdout) as CheckReport;
    }

    beforeAll(async () => {
      lab = given();
      host = lab.host(0);
      devices = new BringupDevices(lab);
    });

    describe.each(GENERATIONS)('abi=%s', (abi, generation) => {
      beforeAll(() => devices.load(3, `abi=${abi}`, 'memory=262144,262144,524288'));

      it(
        'is recognised, and clean it has no finding',
        async () => {
          const report = await check();
          expect(report.generation).toBe(generation);
          expect(report.results.flatMap(({ findings }) => findings)).toEqual([]);
          expect(report.exerciser).toBe('vfio-bringup');
          const left = report.results.filter(({ outcome }) => outcome !== 'ok' && outcome !== 'note');
          expect(left.map(({ rule }) => rule)).toEqual(NOT_REACHED[abi]);
        },
        TIMEOUT_MS,
      );

      it.each(ALL ? ODDITIES[abi] : [])(
        `abi=${abi}: oddity %i is no finding`,
        async (odd) => {
          await devices.parameter('odd', odd);
          const { results } = await check();
          expect(results.flatMap(({ findings }) => findings)).toEqual([]);
          await devices.parameter('odd', 0);
        },
        TIMEOUT_MS,
      );

      it.each(ALL && abi !== 'a' ? [abi] : [])(
        'abi=%s: that data of a smaller device are taken (bug 22) is a note, for no older text asks for more',
        async () => {
          await devices.parameter('bug', 22);
          const { results } = await check('--only', 'region.other-size');
          expect(results[0]).toMatchObject({ outcome: 'note', findings: [] });
          await devices.parameter('bug', 0);
        },
        TIMEOUT_MS,
      );

      const own = BUGS.filter(([each]) => each === abi);
      const chosen = ALL ? own : own.filter((_, n) => n % 5 === 0);
      it.each(chosen)(
        'abi=%s: finds bug %i by %s',
        async (_abi, bug, rule) => {
          await devices.parameter('bug', bug);
          const { results } = await check('--only', rule);
          expect(results.filter(({ findings }) => findings.length > 0).map((each) => each.rule)).toEqual([rule]);
          await devices.parameter('bug', 0);
        },
        TIMEOUT_MS,
      );
    });
  });
}
