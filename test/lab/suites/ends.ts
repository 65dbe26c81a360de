// Rules (main-job.md, guest ends; issue 2): a reset of the guest resets its passed-through device and takes its interrupts down, however it
// comes about, also while the device is in PRE_COPY: then the guest goes on at the source. Panic, power button and SIGTERM end as they must.
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeAll, describe, expect, it } from 'vitest';
import { said, type } from '../flat-console.ts';
import { BOOT_LIMIT_MS, type Guest, type Pair } from '../pair.ts';
import { LabQmp } from '../qmp-session.ts';

/** leave(0): exit code 0 << 1 | 1. */
const RIGHT = 1;
const DMA = /^dma n=[3-9]\d* irqs=\d+\r?\n/m;

export function ends(given: () => Pair): void {
  describe('ends and resets of a guest with edu', () => {
    let pair: Pair;
    beforeAll(async () => {
      pair = given();
    });

    afterEach(() => pair.dismiss());

    const boot = (use: string, more = '') => pair.runFlat(0, 'edu', `use=${use} ${more}`, 'ready\n');

    /** What the guest finds of its device when it starts for the nth time. */
    async function found(guest: Guest, pass: number, from: number): Promise<string> {
      const [, registers] = await said(guest, new RegExp(`^edu pass=${pass} (.*?)\\r?\\n`, 'm'), from);
      await said(guest, /^ready\r?\n/m, from);
      return registers!;
    }

    it.each(['msi', 'intx'])(
      '%s: after each kind of reset edu is as after power-on, no old interrupt comes, DMA works',
      async (use) => {
        const guest = await boot(use);
        const powerOn = await found(guest, 1, 0);
        expect(powerOn).toBe('live=0x0 irq=0x0 status=0x0 factorial=0x0 source=0x0 command=0x0 msi=0');
        let pass = 1;
        for (const how of use === 'msi' ? ['c', 't', 'w'] : ['c', 'w']) {
          await type(guest, 'd', DMA);
          await type(guest, 's', /^still\r?\n/m);
          const from = guest.console.text.length;
          await type(guest, how, /^resetting\r?\n/m);
          if (how === 'w') {
            const qmp = await LabQmp.open(pair, guest);
            await qmp.execute('system_reset');
            await qmp.close();
            expect(qmp.events).toMatchObject([
              { event: 'RESET', data: { guest: false, reason: 'host-qmp-system-reset' } },
            ]);
          }
          expect(await found(guest, ++pass, from), how).toBe(powerOn);
        }
        await type(guest, 'd', DMA);
        await type(guest, 'q', /^verdict /m);
        expect((await guest.process.done).code).toBe(RIGHT);
        expect(guest.stderr()).toBe('');
      },
    );

    /** Resolves in pre-copy, with seconds of RAM still to send. */
    async function movingSlowly() {
      const guest = await boot('msi', 'fill=12');
      const there = await pair.receive(1);
      await type(guest, 'd', DMA);
      await type(guest, 's', /^still\r?\n/m);
      const { code, stderr } = await pair.migrate(guest, there, ['--bandwidth', '1000000', '--detach']);
      expect(code, stderr).toBe(0);
      const qmp = await LabQmp.open(pair, guest);
      await qmp.until('query-migrate', ({ status }) => status !== 'setup');
      return { guest, there, qmp };
    }

    async function worksAndMoves(guest: Guest): Promise<void> {
      await type(guest, 'd', DMA);
      const there = await pair.receive(1);
      const { outcome, stderr } = await pair.migrate(guest, there, ['--downtime-limit', '3000']);
      expect(outcome?.status, stderr).toBe('completed');
      await said(there, /^dma /m, 0);
      await type(there, 'q', /^verdict /m);
      expect((await there.process.done).code).toBe(RIGHT);
    }

    it.each(['the guest', 'system_reset'])(
      'a reset by %s during pre-copy: it goes on at the source, and can be moved then',
      async (by) => {
        const { guest, there, qmp } = await movingSlowly();
        const from = guest.console.text.length;
        await type(guest, by === 'the guest' ? 'c' : 'w', /^resetting\r?\n/m);
        if (by === 'system_reset') {
          expect(await qmp.execute('query-migrate')).toMatchObject({ status: 'active' });
          await qmp.execute('system_reset');
        }
        const after = await qmp.until('query-migrate', ({ status }) => status !== 'active');
        expect(after).toMatchObject({
          status: 'failed',
          'error-desc': expect.stringContaining('the guest was reset while it was being moved'),
        });
        expect(await qmp.execute('query-status')).toMatchObject({ status: 'running' });
        await qmp.close();
        expect((await there.process.done).code).toBe(1);
        expect(there.console.text).toBe('');
        await found(guest, 2, from);
        await worksAndMoves(guest);
      },
    );

    it('SIGTERM in the middle of a DMA: SHUTDOWN host-signal, exit code 0, socket gone, device free', async () => {
      const guest = await boot('intx');
      const qmp = await LabQmp.open(pair, guest);
      await type(guest, 'd', DMA);
      guest.process.kill('SIGTERM');
      expect((await guest.process.done).code).toBe(0);
      await qmp.ended();
      expect(qmp.events).toMatchObject([
        { event: 'SHUTDOWN', data: { guest: false, reason: 'host-signal' } },
        { event: 'STOP' },
      ]);
      expect(await pair.sides[0].host.run(`ls ${guest.control.slice(5)} 2>/dev/null || true`)).toBe('');
      const next = await boot('msi');
      await type(next, 'q', /^verdict /m);
      expect((await next.process.done).code).toBe(RIGHT);
    });

    it('the power button reaches a guest that listens, which powers off: exit code 0', async () => {
      const guest = await pair.runFlat(0, 'platform', 'mode=button', 'press\n', { devices: [] });
      const qmp = await LabQmp.open(pair, guest);
      await qmp.execute('system_powerdown');
      expect((await guest.process.done).code).toBe(0);
      await qmp.ended();
      expect(guest.console.text).toMatch(/button irqs=1 later=0/);
      expect(qmp.events.map(({ event }) => event)).toEqual(['POWERDOWN', 'SHUTDOWN', 'STOP']);
      expect(qmp.events[1]).toMatchObject({ data: { guest: true, reason: 'guest-shutdown' } });
    });

    it('Debian: a reboot takes edu along, DMA and INTx work after it; then a panic is exit code 1 and guest-panic', async () => {
      const guest = await pair.run(0);
      await pair.runsOn(guest, 2);
      const qmp = await LabQmp.open(pair, guest);
      const from = guest.console.text.length;
      guest.process.stdin.write('reboot\n');
      await guest.console.until('a second start', ({ text }) => /^init mono=/m.test(text.slice(from)), BOOT_LIMIT_MS);
      await guest.console.until('its ticks', ({ text }) => /^tick n=20 /m.test(text.slice(from)), BOOT_LIMIT_MS);
      // How many ticks the first DMA takes depends on the machine.
      let [stat] = await type(guest, 'stat\n', /^stat .*\r?\n/m);
      while (!/ dmaChecks=[1-9]/.test(stat)) {
        await sleep(1000);
        [stat] = await type(guest, 'stat\n', /^stat .*\r?\n/m);
      }
      expect(stat).toMatch(/ dmas=[1-9]\d* dmaChecks=[1-9]\d* dmaErrors=0 irqs=[1-9]\d* irqErrors=0 .* regErrors=0 /);
      guest.process.stdin.write('panic\n');
      expect((await guest.process.done).code).toBe(1);
      await qmp.ended();
      expect(qmp.events).toMatchObject([
        { event: 'RESET', data: { guest: true, reason: 'guest-reset' } },
        { event: 'SHUTDOWN', data: { guest: true, reason: 'guest-panic' } },
        { event: 'STOP' },
      ]);
    });
  });
}
