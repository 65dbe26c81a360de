// Each seeded bug of vfio-bringup (images/kmod/vfio-bringup/bugs.h) is seen (one of each rule here, all of them with FERRY_BUGS=all): the rule of the module's own checks that it breaks fails, and
// the same rule passes without it. What has no such rule is looked for by itself: a kernel warning, a leak, a call that hangs.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import type { Lab } from '../../../lab/lab.ts';
import { repoRoot } from '../../../lab/root.ts';
import { BringupDevices, compileBringupChecks } from '../bringup-devices.ts';

const LIMIT_MS = 300_000; // measured: 30 s a generation
/** Else the first of each rule. */
const ALL = process.env['FERRY_BUGS'] === 'all';
const WARNS = 23;
const LEAKS = 42;
const KIB_LOST = 64;
/** Bugs by the rule that sees them; the first device alone, or with the second (or third, of another size). */
const SEEN_BY: Record<'a' | 'b' | 'c' | 'd', readonly (readonly [string, readonly number[], readonly number[]])[]> = {
  d: [
    ['arcs', [0], [1, 2, 3]],
    ['precopy', [0, 1], [4, 6, 7, 8, 9, 12, 13, 14, 16]],
    ['reads', [0], [10, 11]],
    ['move', [0, 1], [5, 15, 27, 43, 44]],
    ['cancel', [0, 1], [17]],
    ['refusals', [0], [18, 19, 20, 21]],
    ['other-size', [0, 2], [22]],
    ['quiet', [0], [24, 25, 26, 28, 29, 30, 45]],
    ['log', [0], [31, 32, 33, 34, 35, 36, 37]],
    ['fail-arc', [0], [38]],
    ['reset-session', [0], [39]],
  ],
  c: [
    ['bc-move', [0, 1], [301, 309]],
    ['bc-states', [0], [302, 303]],
    ['bc-access', [0], [304]],
    ['bc-quiet', [0], [305]],
    ['bc-refusals', [0], [306, 307]],
    ['bc-fail-arc', [0], [308]],
  ],
  b: [
    ['bc-move', [0, 1], [208]],
    ['bc-states', [0], [201]],
    ['b-dirty', [0], [202, 203, 204, 205]],
    ['bc-quiet', [0], [206]],
    ['bc-refusals', [0], [207]],
  ],
  a: [
    ['a-states', [0], [101, 102]],
    ['a-refusals', [0], [103, 104, 108]],
    ['a-move', [0, 1], [105, 109]],
    ['a-dirty', [0], [106, 107]],
  ],
};
/** What a user leaves, and what shows that the next one finds it. */
const REOPENED = [
  { bug: 40, leave: 'reset', find: 'clean' },
  { bug: 41, leave: 'reset-session', find: 'reopened' },
];

function bugsInHeader(): number[] {
  const text = readFileSync(join(repoRoot(), 'images/kmod/vfio-bringup/bugs.h'), 'utf8');
  return [...text.matchAll(/^X\([A-D]_\w+, (\d+),/gm)].map(([, number]) => Number(number));
}

export function kmodBringupBugs(given: () => Lab): void {
  it('every bug of bugs.h is looked for here', () => {
    const looked = Object.values(SEEN_BY).flatMap((rules) => rules.flatMap(([, , bugs]) => bugs));
    const all = [...looked, ...REOPENED.map(({ bug }) => bug), WARNS, LEAKS].sort((a, b) => a - b);
    expect(all).toEqual(bugsInHeader().sort((a, b) => a - b));
  });

  describe('seeded bugs', () => {
    let lab: Lab;
    let devices: BringupDevices;

    beforeAll(async () => {
      lab = given();
      devices = new BringupDevices(lab);
      compileBringupChecks(lab);
    });

    it.each(Object.keys(SEEN_BY) as (keyof typeof SEEN_BY)[])(
      `abi %s: ${ALL ? 'each' : 'one of each rule'} is seen by its rule, which passes without it`,
      async (abi) => {
        await devices.load(3, `abi=${abi}`, 'memory=1048576,1048576,2097152');
        const unseen: string[] = [];
        for (const [rule, which, bugs] of SEEN_BY[abi]) {
          for (const bug of ALL ? bugs : bugs.slice(0, 1)) {
            await devices.parameter('bug', bug);
            const said = await devices.check(rule, which, 4);
            if (said === `ok ${rule}`) unseen.push(`bug ${bug} by ${rule}`);
          }
          await devices.parameter('bug', 0);
          expect(await devices.check(rule, which)).toBe(`ok ${rule}`);
        }
        expect(unseen).toEqual([]);
      },
      LIMIT_MS,
    );

    it('abi d: what one user leaves and the next one finds', async () => {
      await devices.load(1, 'abi=d');
      for (const { bug, leave, find } of REOPENED) {
        expect(await devices.check(leave, [0])).toBe(`ok ${leave}`);
        expect(await devices.check(find, [0])).toBe(`ok ${find}`);
        await devices.parameter('bug', bug);
        await devices.check(leave, [0]);
        expect(await devices.check(find, [0])).toMatch(/^FAIL/);
        await devices.parameter('bug', 0);
      }
    });

    it('abi d: a kernel warning, and a leak', async () => {
      await devices.load(2, 'abi=d');
      await devices.complaints();
      await devices.parameter('bug', WARNS);
      await devices.check('refusals', [0]);
      expect((await devices.complaints()).some((line) => line.includes('WARNING'))).toBe(true);
      const slab = async () =>
        Number(/\d+/.exec(await lab.host(0).run('grep SUnreclaim /proc/meminfo'))?.[0] ?? Number.NaN);
      const lost = async () => {
        const before = await slab();
        for (let n = 0; n < 10; n++) expect(await devices.check('cancel', [0, 1])).toBe('ok cancel');
        return (await slab()) - before;
      };
      await devices.parameter('bug', 0);
      await lost();
      expect(await lost()).toBeLessThan(10 * KIB_LOST);
      await devices.parameter('bug', LEAKS);
      expect(await lost()).toBeGreaterThanOrEqual(10 * KIB_LOST);
      await devices.parameter('bug', 0);
    });

    it(
      'oddities are none: what has to come over comes over',
      async () => {
        await devices.load(2, 'abi=d');
        for (const odd of [1, 2, 3, 5, 6, 7, 8, 9, 10]) {
          await devices.parameter('odd', odd);
          expect(`${odd}: ${await devices.check('move', [0, 1])}`).toBe(`${odd}: ok move`);
        }
        for (const abi of ['b', 'c']) {
          await devices.load(2, `abi=${abi}`, 'odd=12');
          expect(await devices.check('bc-move', [0, 1])).toBe('ok bc-move');
        }
      },
      LIMIT_MS,
    );
  });
}
