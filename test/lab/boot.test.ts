// Rules: Debian's unmodified cloud kernels boot under `ferry run` in a lab host to our init, by PVH and by the 64-bit protocol, on 1 and 4
// vCPUs; the clock never goes back; ACPI has nothing to complain of; power-off, panic and reboot end as they must.
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { buildGuest, type GuestImage, type GuestVariant } from '../../images/guest/build.ts';
import { judge } from '../../images/guest/verdict.ts';
import type { ExecResult, LabHost } from '../../lab/host.ts';
import { type Lab, startLab } from '../../lab/lab.ts';
import { labUnavailable } from '../../lab/packages.ts';
import { cacheRoot, repoRoot } from '../../lab/root.ts';

const unavailable = labUnavailable();
if (unavailable !== null) console.log(`skipped: boot: ${unavailable}`);

/** A quiet boot takes 4 s with the machine to itself; ten and more may share it. */
const LIMIT_MS = 120_000;

describe.skipIf(unavailable !== null)('Debian cloud kernels under ferry run in a lab host', () => {
  let lab: Lab;
  let host: LabHost;
  const guests = {} as Record<GuestVariant, GuestImage>;
  beforeAll(async () => {
    for (const variant of ['cloud', 'cloud-6.12'] as const) guests[variant] = await buildGuest(cacheRoot(), variant);
    lab = await startLab({ hosts: 1 });
    host = lab.host(0);
  });
  afterAll(() => lab?.close());

  interface Run {
    readonly append: string;
    readonly variant?: GuestVariant;
    readonly options?: readonly string[];
    readonly environment?: string;
  }
  function command({ append, variant = 'cloud', options = [], environment = '' }: Run): string {
    const { vmlinuz, initrd } = guests[variant];
    const words = [
      '--kernel',
      vmlinuz,
      '--initrd',
      initrd,
      '--append',
      `'console=ttyS0 panic=-1 ${append}'`,
      ...options,
    ];
    return `env ${environment} /usr/bin/node ${repoRoot()}/bin/ferry run --memory 256M ${words.join(' ')} </dev/null`;
  }
  const run = (what: Run): Promise<ExecResult> => host.exec(command(what), { timeoutMs: LIMIT_MS });

  test('1 vCPU: to our init line, the workload at work, power-off with exit code 0, guest bytes alone on stdout', async () => {
    const result = await run({ append: 'quiet mode=workload edu=0 duration=3 memmap=2M$0xe000000' });
    expect(result.code, result.stderr).toBe(0);
    expect(result.stdout).toMatch(/^init mono=\d+ cpus=1 mode=workload\r$/m);
    const verdict = judge([result.stdout]);
    expect(verdict).toMatchObject({ ok: true, lostTicks: 0, memoryErrors: 0, clockBack: 0, errors: [] });
    expect(verdict.ticks).toBeGreaterThan(0);
    expect(verdict.memoryChecks).toBeGreaterThan(0);
  });

  test('4 vCPUs: all come up, CLOCK_MONOTONIC never goes back on any of them, power-off with exit code 0', async () => {
    const result = await run({ append: 'quiet mode=workload edu=0 duration=5', options: ['--cpus', '4'] });
    expect(result.code, result.stderr).toBe(0);
    expect(result.stdout).toMatch(/^init mono=\d+ cpus=4 /m);
    const verdict = judge([result.stdout]);
    expect(verdict).toMatchObject({ ok: true, lostTicks: 0, clockBack: 0 });
    expect(verdict.clockReads).toBeGreaterThan(0);
  });

  test('the kernel’s own log: ACPI tables taken, windows and clock found, no complaint (of XSAVE neither)', async () => {
    const result = await run({ append: 'mode=poweroff' });
    expect(result.code, result.stderr).toBe(0);
    expect(result.stdout).not.toMatch(
      /ACPI (BIOS )?(Error|Warning)|ACPI Exception|firmware bug|PCI: not using MMCONFIG|WARNING:|cut here|unexpected/i,
    );
    expect(result.stdout).toMatch(/PCI: MMCONFIG for domain 0000 \[bus 00-00\]/);
    expect(result.stdout).toMatch(/clocksource: Switched to clocksource kvm-clock/);
    expect(result.stdout).toMatch(/rtc_cmos 00:\d+: registered as rtc0/);
    expect(result.stdout).toMatch(/ttyS0 at I\/O 0x3f8 \(irq = 4.*is a 16550A/);
  });

  test('6.12 (ZSTD) boots and powers off', async () => {
    const result = await run({ append: 'quiet mode=poweroff', variant: 'cloud-6.12' });
    expect(result.code, result.stderr).toBe(0);
    expect(result.stdout).toMatch(/^init mono=/m);
  });

  test('without lz4 the kernel unpacks itself by the 64-bit protocol, and a note on stderr names the package', async () => {
    const environment = 'PATH=/nowhere XDG_CACHE_HOME=/tmp/no-cache-yet';
    const result = await run({ append: 'quiet mode=poweroff', environment });
    expect(result.code, result.stderr).toBe(0);
    expect(result.stdout).toMatch(/^init mono=/m);
    expect(result.stderr).toMatch(/lz4 is missing \(apt-get install lz4\)/);
  });

  test('panic: pvpanic ends the machine with exit code 1', async () => {
    const result = await run({ append: 'quiet mode=workload edu=0 duration=1 then=panic' });
    expect(result.code, result.stderr).toBe(1);
  });

  test('reboot with --no-reboot ends with exit code 0; without, the kernel starts again', async () => {
    const append = 'quiet mode=workload edu=0 duration=1 then=reboot';
    const once = await run({ append, options: ['--no-reboot'] });
    expect(once.code, once.stderr).toBe(0);
    expect(once.stdout.match(/^init /gm)).toHaveLength(1);
    const again = host.spawn(command({ append }));
    let text = '';
    again.stdout.on('data', (bytes: Buffer) => {
      text += bytes.toString('latin1');
      if ((text.match(/^init /gm)?.length ?? 0) >= 2) again.kill('SIGTERM');
    });
    await again.done;
    expect(text.match(/^finish then=reboot/gm)?.length).toBeGreaterThanOrEqual(1);
    expect(text.match(/^init /gm)?.length).toBeGreaterThanOrEqual(2);
  });
});
