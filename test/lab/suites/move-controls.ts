// Negative controls: what a migration loses on purpose (ferry migrate --test-drop), the workload must notice. Without these the moves of
// moves.ts would prove nothing. main-job.md, "Negative controls are tests". A guest a control.
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type GuestVerdict, judge } from '../../../images/guest/verdict.ts';
import type { Pair } from '../pair.ts';

/** A guest whose interrupt was lost with the device's state waits 20 s for it before it looks again. */
const NOTICE_MS = { deviceLog: 60_000, kvmLastRound: 60_000, deviceState: 120_000 };

export function moveControls(given: () => Pair): void {
  describe('what a move loses on purpose is noticed', () => {
    let pair: Pair;
    const began = performance.now();
    beforeAll(async () => {
      pair = given();
    });
    afterAll(async () => {
      console.log(`negative controls: ${Math.round((performance.now() - began) / 1000)} s in all`);
    });

    /** The migration itself succeeds; whatever is wrong, the guest says: `word` is looked for. */
    async function moveWithout(
      what: 'deviceLog' | 'kvmLastRound' | 'deviceState',
      word: RegExp,
    ): Promise<GuestVerdict> {
      const [here, there] = await Promise.all([pair.run(0), pair.receive(1)]);
      // Of the ring and of the writer's pages some must have been there before: the move begins when both have gone on for a while.
      await pair.runsOn(here, 4);
      try {
        const { code, stderr } = await pair.migrate(here, there, ['--downtime-limit', '3000', '--test-drop', what]);
        expect(code, stderr).toBe(0);
        await there.console.until(String(word), ({ text }) => word.test(text), NOTICE_MS[what]);
        await pair.end(there);
      } finally {
        // A guest that came to grief must not keep the device from the next one.
        for (const { process } of [here, there]) process.kill('SIGKILL');
        await Promise.all([here.process.done, there.process.done]);
      }
      const verdict = judge([here.console.text, there.console.text]);
      console.log(what, JSON.stringify({ ...verdict, consoles: undefined, errors: verdict.errors.slice(0, 3) }));
      expect(verdict.ok).toBe(false);
      return verdict;
    }

    it("the device log's bits: a page that only the device wrote is stale", async () => {
      const verdict = await moveWithout('deviceLog', /^error kind=dma page=/m);
      expect(verdict.dmaErrors).toBeGreaterThan(0);
      expect(verdict.regErrors).toBe(0);
    });

    it("KVM's log of the last round: a page that was written is stale", async () => {
      // The guest's kernel loses pages like anybody else, and often dies of it before the writer comes by: that is noticed, too (no verdict,
      // ticks missing), but says less. So a second guest is tried for the writer's own word.
      const died: string[] = [];
      for (let attempt = 1; attempt <= 2; attempt++) {
        const verdict = await moveWithout('kvmLastRound', /^error kind=memory page=/m).catch((error: Error) => error);
        if (verdict instanceof Error) {
          died.push(verdict.message);
          console.log(`kvmLastRound, guest ${attempt} died: ${verdict.message.slice(-600)}`);
          continue;
        }
        expect(verdict.memoryErrors).toBeGreaterThan(0);
        return;
      }
      // A move that merely failed would prove nothing: each of them was handed over, and then the guest came to grief.
      expect(died).toHaveLength(2);
      for (const message of died) expect(message).toMatch(/did not end|did not come/);
    });

    it("the device's state: its registers are not what they were", async () => {
      const verdict = await moveWithout('deviceState', /^error kind=register /m);
      expect(verdict.regErrors).toBeGreaterThan(0);
      expect(verdict.memoryErrors).toBe(0);
    });
  });
}
