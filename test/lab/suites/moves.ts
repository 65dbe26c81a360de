// One Debian guest with edu passed through, its workload at work, goes there and back between two lab hosts: with the device's DMA log, without
// it, then twenty times in a row from other phases of a running DMA. main-job.md: report.json, the guest's workload, DMA phases; issue 2,
// "Done when" 1 and 3. What counts is the workload's own word over all consoles that it had. edu is bound once on each side.
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type OuterGap, outerGap } from '../../../cli/demo-console.ts';
import { demoFaults, demoReport } from '../../../cli/demo-report.ts';
import { faultsOf, judge } from '../../../images/guest/verdict.ts';
import type { MigrationOutcome } from '../../../migration/api.ts';
import type { Guest, Pair } from '../pair.ts';

/** The demo's is 250; beside another job the word that the guest runs waits for a CPU (279 ms were seen). */
const PAUSE_TOLERANCE_MS = 500;

const MOVES = 20;
/** edu's DMA takes 100 ms and one follows the other: moves begin 10 ms apart in it. */
const PHASES = 10;
const PHASE_MS = 10;

interface Leg {
  readonly outcome: MigrationOutcome;
  readonly gap: OuterGap;
  readonly stderr: string;
}

export function moves(given: () => Pair): void {
  describe('a guest with edu moves', () => {
    let pair: Pair;
    const began = performance.now();
    /** Every process that the guest lived in, the last one being where it is. */
    const lives: Guest[] = [];
    const legs: Leg[] = [];

    beforeAll(async () => {
      pair = given();
      lives.push(await pair.run(0));
      // The writer checks a page when it comes by again: its first lap takes 8 s.
      await pair.runsOn(lives[0]!, 12);
    });
    afterAll(async () => {
      console.log(`moves: ${Math.round((performance.now() - began) / 1000)} s in all`);
    });

    async function move(args: readonly string[], phaseMs: number): Promise<Leg> {
      const from = lives.at(-1)!;
      const to = await pair.receive(from.at === 0 ? 1 : 0);
      await pair.runsOn(from);
      await new Promise((resolve) => setTimeout(resolve, phaseMs));
      const { code, outcome, stderr } = await pair.migrate(from, to, args);
      expect(code, stderr).toBe(0);
      await pair.runsOn(to, 1.5);
      lives.push(to);
      const leg = { outcome: outcome!, gap: outerGap(from.console, to.console), stderr };
      legs.push(leg);
      return leg;
    }

    /** The rules that need no verdict: those of the report. */
    function reportFaults(leg: Leg, deviceLog: boolean): string[] {
      const verdict = judge(lives.map(({ console }) => console.text));
      const report = demoReport({
        verdict,
        outcome: leg.outcome,
        device: pair.sides[0].edu,
        gap: leg.gap,
        exitCode: 0,
      });
      return demoFaults(report, deviceLog, PAUSE_TOLERANCE_MS);
    }

    it('with the device log: the report keeps the rules of the demo', async () => {
      const leg = await move(['--downtime-limit', '1500'], 0);
      expect(reportFaults(leg, true)).toEqual([]);
      expect(leg.outcome.report.dirty.container).toBeNull();
      // What `ferry migrate` shows while the first round goes on: how fast it goes.
      expect(leg.stderr).toMatch(/round 1 .* [1-9][\d.]* [KM]iB\/s/);
      expect((await lives.at(-2)!.process.done).code).toBe(0);
    });

    it('without it: the container says what is dirty, and the longer downtime is announced before the first page', async () => {
      const leg = await move(['--downtime-limit', '60000', '--no-device-log'], 0);
      expect(reportFaults(leg, false)).toEqual([]);
      const pages = 256 * 256;
      // type1 reports every mapped page of an IOMMU-backed device, so one query is all of RAM (vfio-migration.md).
      expect(leg.outcome.report.dirty.container).toBe(pages);
      const notice = leg.stderr.indexOf('the last round carries up to 256 MiB while the guest stands still');
      const firstRound = leg.stderr.indexOf('round 1');
      expect(notice, leg.stderr).toBeGreaterThanOrEqual(0);
      expect(
        firstRound === -1 || notice < firstRound || leg.stderr.lastIndexOf('round 0', notice) >= 0,
        leg.stderr,
      ).toBe(true);
    });

    it(`${MOVES} times in a row, from ${PHASES} phases of a running DMA`, async () => {
      for (let n = 0; n < MOVES; n++) {
        const leg = await move(['--downtime-limit', '1500'], (n % PHASES) * PHASE_MS);
        expect(reportFaults(leg, true), `move ${n + 1}`).toEqual([]);
      }
      const row = legs.map(({ outcome, gap }) => {
        const { downtimeMs, downtime } = outcome.report;
        return `${Math.round(downtimeMs)} (stop ${Math.round(downtime.stop)}, seen ${Math.round(gap.outerPauseMs)}, between ticks ${Math.round(gap.outerGapMs)})`;
      });
      console.log(`downtimes, ms: ${row.join('; ')}`);
    });

    it('and all the while not a tick, a page, a DMA or an interrupt was lost', async () => {
      const code = await pair.end(lives.at(-1)!);
      const verdict = judge(lives.map(({ console }) => console.text));
      console.log(JSON.stringify({ ...verdict, consoles: verdict.consoles.length }));
      expect(faultsOf(verdict, { edu: true })).toEqual([]);
      expect(verdict.consoles).toHaveLength(MOVES + 3);
      expect(code).toBe(0);
    });
  });
}
