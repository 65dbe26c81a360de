import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { beforeAll, describe, expect, it } from 'vitest';
import { buildGuest } from '../../../images/guest/build.ts';
import { faultsOf, judge } from '../../../images/guest/verdict.ts';
import type { Lab } from '../../../lab/lab.ts';
import { cacheRoot, repoRoot } from '../../../lab/root.ts';

const _bundle = join(repoRoot(), 'dist/ferry.cjs');

/** Measured 25 s: pinning 256 MiB and booting take most of it. */
const LIMIT_MS = 280_000;

export function vfioGuest(given: () => Lab): void {
  describe('a guest with passed-through devices', () => {
    let lab: Lab;
    let guest: { vmlinuz: string; initrd: string };

    beforeAll(async () => {
      guest = await buildGuest(cacheRoot(), 'cloud');
      lab = given();
    });

    const ferry = (...args: string[]) => [join(repoRoot(), 'bin/ferry'), ...args];
    const run = (append: string, ...devices: string[]) => [
      ...ferry('run', '--kernel', guest.vmlinuz, '--initrd', guest.initrd, '--memory', '256M', '--cpus', '1'),
      ...['--append', `console=ttyS0 quiet panic=-1 ${append}`],
      ...devices.flatMap((device) => ['--device', device]),
    ];
    const driverOf = (bdf: string) =>
      lab
        .host(0)
        .run(
          `basename $(readlink /sys/bus/pci/devices/${bdf}/driver || echo none); cat /sys/bus/pci/devices/${bdf}/driver_override`,
        );

    it('is refused in one line with the remedy, exit code 2, and nothing is changed', async () => {
      const host = lab.host(0);
      const bdf = host.bdf('edu');
      const before = await driverOf(bdf);
      const refused = async (device: string, wrap: string[] = []) => {
        const result = await host.exec([...wrap, ...run('mode=poweroff', device)], { timeoutMs: LIMIT_MS });
        expect(result.code, result.stderr).toBe(2);
        expect(result.stdout).toBe('');
        expect(result.stderr.trim().split('\n').length, result.stderr).toBe(1);
        return result.stderr;
      };
      expect(await refused('vfio-pci,host=0000:77:00.0')).toMatch(/no PCI device 0000:77:00.0 on this host/);
      expect(await refused('vfio-pci,host=nonsense')).toMatch(/'nonsense' is not a PCI address/);
      expect(await refused('vfio-pci')).toMatch(/host=/);
      expect(await refused(`vfio-pci,host=${bdf}`)).toContain(`\`ferry vfio bind ${bdf}\``);
      expect(await driverOf(bdf)).toBe(before);
      expect(await host.run('ls /run/ferry 2>/dev/null || true')).toBe('');
    });

    it('has NVMe: blocks written and read back equal, interrupts by MSI-X', async () => {
      const host = lab.host(0);
      await host.run(ferry('vfio', 'bind', host.bdf('nvme')));
      const result = await host.exec(run('mode=nvme blocks=128 seed=3', `vfio-pci,host=${host.bdf('nvme')}`), {
        timeoutMs: LIMIT_MS,
      });
      expect(result.code, result.stderr).toBe(0);
      const words = /^nvme read=(\d+) written=(\d+) back=(\d+) bytes=(\d+) ok=(\d)/m.exec(result.stdout);
      expect(words, result.stdout).not.toBeNull();
      expect(words![3]).toBe(words![2]);
      expect(words!.slice(4)).toEqual(['524288', '1']);
      const vectors = [...result.stdout.matchAll(/^msix name=(\S+) before=(\d+) after=(\d+)/gm)];
      expect(
        vectors.some(([, , before, after]) => Number(after) > Number(before)),
        result.stdout,
      ).toBe(true);
      expect(await host.run("dmesg | grep -c 'DMAR.*fault' || true")).toBe('0\n');
    });

    it('has edu: DMA and INTx under the workload, without an error', async () => {
      const host = lab.host(0);
      await host.run(ferry('vfio', 'bind', host.bdf('edu')));
      const append = 'memmap=2M$0xe000000 mode=workload';
      const ferryRun = host.spawn(run(append, `vfio-pci,host=${host.bdf('edu')}`));
      let text = '';
      ferryRun.stdout.on('data', (chunk: Buffer) => {
        text += chunk.toString();
      });
      const limit = Date.now() + LIMIT_MS;
      while (!/^tick n=60 /m.test(text) && Date.now() < limit) await sleep(200);
      ferryRun.stdin.write('end\n');
      expect((await ferryRun.done).code).toBe(0);
      const verdict = judge([text]);
      expect(faultsOf(verdict, { edu: true })).toEqual([]);
      expect(verdict).toMatchObject({ ok: true, lostTicks: 0, dmaErrors: 0, irqErrors: 0, regErrors: 0 });
      expect(verdict.irqs).toBeGreaterThan(0);
      expect(verdict.dmaChecks).toBeGreaterThan(0);
      expect(await host.run("dmesg | grep -c 'DMAR.*fault' || true")).toBe('0\n');
    });

    it('has edu and a display: edu writes into the frame buffer by DMA and reads it, and nothing faults', async () => {
      const host = lab.host(0);
      await host.run(ferry('vfio', 'bind', host.bdf('bochs-display')));
      const devices = [host.bdf('edu'), host.bdf('bochs-display')].map((bdf) => `vfio-pci,host=${bdf}`);
      const append = 'memmap=2M$0xe000000 mode=peer';
      const result = await host.exec(run(append, ...devices), { timeoutMs: LIMIT_MS });
      expect(result.code, result.stderr).toBe(0);
      expect(result.stdout).toMatch(/^peer bar=[0-9a-f]+ to=1 from=1 beside=1$/m);
      expect(result.stderr).not.toContain('cannot be mapped');
      expect(await host.run("dmesg | grep -c 'DMAR.*fault' || true")).toBe('0\n');
    });

    it('gives the devices back', async () => {
      const host = lab.host(0);
      for (const kind of ['nvme', 'edu', 'bochs-display'] as const)
        await host.run(ferry('vfio', 'unbind', host.bdf(kind)));
      expect(await host.run('ls /run/ferry/bind')).toBe('');
      expect(await driverOf(host.bdf('edu'))).toMatch(/^none\n\(null\)/);
    });
  });
}
