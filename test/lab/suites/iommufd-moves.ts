// A guest whose device was opened by iommufd moves: to another iommufd with the device's log; to a host that uses the group, without any
// tracker (VT-d here tracks nothing for a hwpt, so all RAM goes once more while the guest stands still); and back to an iommufd.
import { beforeAll, describe, expect, it } from 'vitest';
import { faultsOf, judge } from '../../../images/guest/verdict.ts';
import type { MigrationReport } from '../../../migration/api.ts';
import type { Guest, Pair, SideIndex } from '../pair.ts';

const PAGES = 256 * 256;

export function iommufdMoves(given: () => Pair): void {
  describe('a guest with edu by iommufd moves', () => {
    let pair: Pair;
    /** Every process that the guest lived in, the last one being where it is. */
    const lives: Guest[] = [];

    const device = (at: SideIndex, way: string) => [`vfio-pci,host=${pair.sides[at].edu.bdf},iommufd=${way}`];

    beforeAll(async () => {
      pair = given();
      lives.push(await pair.run(0, '', { devices: device(0, 'on') }));
      // The writer checks a page when it comes by again: its first lap takes 8 s.
      await pair.runsOn(lives[0]!, 12);
    });

    async function move(way: string, args: readonly string[]): Promise<{ report: MigrationReport; stderr: string }> {
      const from = lives.at(-1)!;
      const at = from.at === 0 ? 1 : 0;
      const to = await pair.receive(at, { devices: device(at, way) });
      await pair.runsOn(from);
      const { code, outcome, stderr } = await pair.migrate(from, to, args);
      expect(code, stderr).toBe(0);
      await pair.runsOn(to, 1.5);
      lives.push(to);
      return { report: outcome!.report, stderr };
    }

    it('to another iommufd, with the log of the device', async () => {
      const { report } = await move('on', ['--downtime-limit', '1500']);
      expect(report.dirty.deviceLog).toBeGreaterThan(0);
      expect([report.dirty.container, report.dirty.iommufd]).toEqual([null, null]);
    });

    it('to a group, without the log: all RAM counts as dirty at the end, and that is announced', async () => {
      const { report, stderr } = await move('off', ['--downtime-limit', '60000', '--no-device-log']);
      expect(stderr).toContain('the last round carries up to 256 MiB while the guest stands still');
      const last = report.rounds.at(-1);
      expect((last?.sentPages ?? 0) + (last?.zeroPages ?? 0)).toBe(PAGES);
      expect(report.dirty).toMatchObject({ deviceLog: null, container: null, iommufd: null });
    });

    it('from a group to an iommufd', async () => {
      const { report } = await move('on', ['--downtime-limit', '1500']);
      expect(report.dirty.deviceLog).toBeGreaterThan(0);
    });

    it('and all the while not a tick, a page, a DMA or an interrupt was lost', async () => {
      const code = await pair.end(lives.at(-1)!);
      const verdict = judge(lives.map(({ console }) => console.text));
      expect(faultsOf(verdict, { edu: true })).toEqual([]);
      expect(verdict.consoles).toHaveLength(4);
      expect(code).toBe(0);
      for (const { host } of pair.sides) expect(await host.run("dmesg | grep -c 'DMAR.*fault' || true")).toBe('0\n');
    });
  });
}
