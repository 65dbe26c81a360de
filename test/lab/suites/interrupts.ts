// Rule (main-job.md, the guest's workload): no interrupt of a passed-through device is lost, doubled or stuck by a move, whatever it was
// doing: vector pending or masked, INTx asserted and not acknowledged, handler running, or raised between the vCPUs' stop and the device's
// (edu's DMA is in flight 95% of the time here). test/guests/edu.c counts each one against its cause, and says "wrong" itself.
import { afterEach, beforeAll, describe, expect, it } from 'vitest';
import { said, type } from '../flat-console.ts';
import type { Guest, Pair } from '../pair.ts';

/** One that ends without a wrong word: leave(0) is exit code 0 << 1 | 1. */
const RIGHT = 1;
const WRONG = 3;

export function interrupts(given: () => Pair): void {
  describe('interrupts of edu across a move', () => {
    let pair: Pair;
    beforeAll(async () => {
      pair = given();
    });
    afterEach(() => pair.dismiss());

    async function moved(guest: Guest, ...args: string[]): Promise<Guest> {
      const there = await pair.receive(guest.at === 0 ? 1 : 0);
      const { outcome, stderr } = await pair.migrate(guest, there, ['--downtime-limit', '3000', ...args]);
      expect(outcome?.status, stderr + there.stderr()).toBe('completed');
      // Its device is free then.
      expect((await guest.process.done).code).toBe(0);
      return there;
    }

    async function ended(guest: Guest): Promise<number> {
      const [, irqs] = await type(guest, 'q', /^verdict .*irqs=(\d+)\r?\n/m);
      expect((await guest.process.done).code).toBe(RIGHT);
      return Number(irqs);
    }

    const boot = (use: string) => pair.runFlat(0, 'edu', `use=${use}`, 'ready\n');

    it.each([
      ['msi', ['pending', 'inside', 'after']],
      ['intx', ['pending', 'masked', 'inside', 'after']],
    ] as const)('%s: %j at the switch-over: each comes once, when it may', async (use, states) => {
      let guest = await boot(use);
      let irqs = 0;
      for (const state of states) {
        await type(guest, state[0]!, state === 'after' ? /^inside\r?\n/m : new RegExp(`^${state}\\r?\\n`, 'm'));
        guest = await moved(guest);
        irqs += state === 'after' ? 2 : 1;
        const [, found] = await type(guest, 'r', /^released irqs=(\d+)\r?\n/m);
        expect(Number(found), state).toBe(irqs);
      }
      expect(await ended(guest)).toBe(irqs);
    });

    it.each([
      ['msi', 'ddddff'],
      ['intx', 'ddff'],
    ])(
      '%s: moved in the middle of %s (DMA, factorial): every one has its interrupt, and its data',
      async (use, kinds) => {
        let guest = await boot(use);
        for (const kind of kinds) {
          const word = kind === 'd' ? /^dma n=\d+ irqs=\d+\r?\n/m : /^factorial n=\d+ irqs=\d+\r?\n/m;
          await type(guest, kind, word);
          guest = await moved(guest);
          await said(guest, word, 0);
          await type(guest, 's', /^still\r?\n/m);
        }
        const [verdict] = await type(guest, 'q', /^verdict dmas=\d+ factorials=\d+ irqs=\d+\r?\n/m);
        const [dmas, factorials, irqs] = [...verdict.matchAll(/=(\d+)/g)].map(([, number]) => Number(number));
        expect(irqs).toBe(2 * dmas! + factorials!);
        expect((await guest.process.done).code).toBe(RIGHT);
      },
    );

    it('the guest does notice: a move without the device state loses the cause of its interrupt', async () => {
      const guest = await boot('intx');
      await type(guest, 'i', /^inside\r?\n/m);
      const there = await moved(guest, '--test-drop', 'deviceState');
      there.process.stdin.write('r');
      expect((await there.process.done).code).toBe(WRONG);
      expect(there.console.text).toMatch(/^wrong /m);
    });
  });
}
