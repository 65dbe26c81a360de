// `ferry vfio check` on real drivers in a lab host: our edu driver has no finding, every rule is reached that can be, and the device is as it was;
// the kernel's own mtty sample has exactly the findings of mtty-expected.ts, however often it is checked. FERRY_BUGS=all looks for leaks in it, too.
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { CheckReport } from '../../devices/vfio/check/check.ts';
import { HANG_RULE, KERNEL_RULE, RULES } from '../../devices/vfio/check/rules.ts';
import type { LabHost } from '../../lab/host.ts';
import { type Lab, startLab } from '../../lab/lab.ts';
import { labUnavailable } from '../../lab/packages.ts';
import { repoRoot } from '../../lab/root.ts';
import { BringupDevices, uuidOf } from './bringup-devices.ts';
import { MTTY, makeMtty, removeMtty } from './mtty.ts';
import { MTTY_FINDINGS, NOT_OF_MTTY } from './mtty-expected.ts';

const bundle = join(repoRoot(), 'dist/ferry.cjs');
const unavailable = labUnavailable() ?? (existsSync(bundle) ? null : 'dist/ferry.cjs is missing: npm run build');
if (unavailable !== null) console.log(`skipped: vfio-check: ${unavailable}`);

const TIMEOUT_MS = 600_000; // measured: 70 s

/** Without the 12 s of migrations that look for leaks, unless FERRY_BUGS=all. */
const QUICK =
  process.env['FERRY_BUGS'] === 'all' ? [] : RULES.map(({ name }) => name).filter((name) => name !== 'leaks.loops');

describe.skipIf(unavailable !== null)('ferry vfio check', () => {
  let lab: Lab;
  let host: LabHost;
  let bdf: string;
  const ferry = (...args: string[]) => [join(repoRoot(), 'bin/ferry'), ...args];

  beforeAll(async () => {
    lab = await startLab({ devices: ['edu'] });
    host = lab.host(0);
    bdf = host.bdf('edu');
  });
  afterAll(() => lab?.close());

  it('cites what stands in linux/vfio.h of the lab kernel, word for word', () => {
    const plain = (text: string) => text.replace(/[\s*]+/g, ' ').trim();
    const header = plain(readFileSync(join(lab.image.uapi, 'linux/vfio.h'), 'utf8'));
    const missing = [...RULES, KERNEL_RULE, HANG_RULE].filter(({ cites }) => !header.includes(plain(cites)));
    expect(missing.map(({ name, cites }) => `${name}: ${cites}`)).toEqual([]);
  });

  it('says in one line that no VFIO driver has the device', async () => {
    const { code, stderr } = await host.exec(ferry('vfio', 'check', bdf));
    expect(code).toBe(2);
    expect(stderr).toMatch(/^ferry: \S+ is bound to no driver, not to a VFIO one.*\n$/);
  });

  it(
    'has no finding in our edu driver',
    async () => {
      await host.run(ferry('vfio', 'bind', bdf, '--driver', 'edu-vfio-pci'));
      const { code, stdout, stderr } = await host.exec(ferry('vfio', 'check', bdf, '--json'), {
        timeoutMs: TIMEOUT_MS,
      });
      expect(stderr).toBe('');
      const report = JSON.parse(stdout) as CheckReport;
      expect(report.results.flatMap(({ findings }) => findings)).toEqual([]);
      const slow = report.results.filter(({ ms }) => ms > 2000).map(({ rule, ms }) => `${rule} ${Math.round(ms)} ms`);
      console.log(`vfio-check: ${slow.join(', ')}`);
      expect(report.exerciser).toBe('edu');
      const left = report.results.filter(({ outcome }) => outcome !== 'ok' && outcome !== 'note');
      // Nobody named a second device.
      const beside = ['stream.into-second', 'stream.other-size', 'quiet.peer'];
      expect(left.map(({ rule }) => rule)).toEqual(['error.recovery', 'quiet.unmapped', ...beside]);
      expect(code).toBe(0);
    },
    TIMEOUT_MS,
  );

  it(
    "keeps edu off a peer's BAR in the P2P states: that of a vfio-bringup, into which nothing of edu is loaded",
    async () => {
      const devices = new BringupDevices(lab);
      await devices.load(1, 'abi=d');
      const options = ['--second', `/sys/bus/mdev/devices/${uuidOf(0)}`, '--only', 'quiet.peer', '--json'];
      options.push('--only', 'stream.into-second');
      const { stdout, stderr } = await host.exec(ferry('vfio', 'check', bdf, ...options), { timeoutMs: TIMEOUT_MS });
      expect(stderr).toBe('');
      const { results } = JSON.parse(stdout) as CheckReport;
      expect(results.map(({ rule, outcome }) => [rule, outcome])).toEqual([
        ['stream.into-second', 'not exercised'],
        ['quiet.peer', 'ok'],
        ['kernel.log', 'ok'],
        ['calls.end', 'ok'],
      ]);
      expect(results[0]?.reason).toContain('of the same kind');
    },
    TIMEOUT_MS,
  );

  it('leaves a device that can be opened and checked again', async () => {
    const { code, stdout } = await host.exec(ferry('vfio', 'check', bdf, '--tap', '--only', 'states.first'));
    expect(stdout).toContain('ok 1 - states.first\n');
    expect(code).toBe(0);
  });

  it(
    'finds in mtty what is wrong with it, and nothing else',
    async () => {
      await makeMtty(host);
      const argv = ferry('vfio', 'check', MTTY, '--json', ...QUICK.flatMap((rule) => ['--only', rule]));
      const { code, stdout, stderr } = await host.exec(argv, { timeoutMs: TIMEOUT_MS });
      expect(stderr).toBe('');
      const report = JSON.parse(stdout) as CheckReport;
      const found = report.results.flatMap(({ findings }) => findings);
      expect(found.map(({ rule, did, seen }) => ({ rule, did, seen }))).toEqual(
        MTTY_FINDINGS.map(({ rule, did, seen }) => ({ rule, did, seen: expect.stringMatching(seen) })),
      );
      expect(code).toBe(1);
      expect(report.exerciser).toBe('mtty');
      // It does no DMA and says of no reset; everything else is reached.
      const left = report.results.filter(({ outcome }) => outcome.startsWith('not '));
      expect(left.map(({ rule, outcome }) => `${outcome}: ${rule}`)).toEqual(NOT_OF_MTTY);
    },
    TIMEOUT_MS,
  );

  it('finds in mtty the same again: what it keeps over a close does not lead a rule astray', async () => {
    const only = ['states.first', 'close', 'stream.state'].flatMap((rule) => ['--only', rule]);
    const { stdout } = await host.exec(ferry('vfio', 'check', MTTY, '--json', ...only), { timeoutMs: TIMEOUT_MS });
    const { results } = JSON.parse(stdout) as CheckReport;
    const outcomes = results.map(({ rule, outcome }) => [rule, outcome]).slice(0, 4);
    expect(Object.fromEntries(outcomes)).toEqual({
      'states.first': 'ok',
      'stream.state': 'ok',
      'close.states': 'finding',
      'close.private': 'finding',
    });
    await removeMtty(host);
  });
});
