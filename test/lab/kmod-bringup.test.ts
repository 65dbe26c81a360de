// The rules of vfio-bringup, the VFIO device with no hardware (images/kmod/vfio-bringup/README.md), each by that folder's test/ in a lab
// host, for every generation of the migration interface. At the end the module has to unload: every data fd, device, thread and page that
// it gave out must have come back.
import { execFileSync } from 'node:child_process';
import { cpSync, mkdirSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { LabHost } from '../../lab/host.ts';
import { type Lab, startLab } from '../../lab/lab.ts';
import { labUnavailable } from '../../lab/packages.ts';
import { repoRoot } from '../../lab/root.ts';

const unavailable = labUnavailable();
if (unavailable !== null) console.log(`skipped: kmod-bringup: ${unavailable}`);

const TIMEOUT_MS = 120_000; // measured: at most 6 s
const PARENT = '/sys/class/vfio_bringup/vfio_bringup';

/** Compiles the checks on the outer host into the lab host's /hw, against the lab kernel's vfio.h (Debian's own is too old). */
function compileChecks(lab: Lab): void {
  const source = join(repoRoot(), 'images/kmod/vfio-bringup/test');
  const share = lab.host(0).share;
  mkdirSync(join(share, 'include/linux'), { recursive: true });
  cpSync(join(lab.image.uapi, 'linux/vfio.h'), join(share, 'include/linux/vfio.h'));
  const files = readdirSync(source).filter((each) => each.endsWith('.c'));
  const flags = ['-O2', '-Wall', '-Wextra', '-Werror', '-D__user=', `-I${join(share, 'include')}`];
  execFileSync('gcc-12', [...flags, '-o', join(share, 'check'), ...files.map((each) => join(source, each))]);
}

const uuid = (n: number) => `00000000-0000-4000-8000-00000000000${n}`;

describe.skipIf(unavailable !== null)('vfio-bringup', () => {
  let lab: Lab;
  let host: LabHost;
  let bootLog: string;
  let groups: readonly string[] = [];

  /** Loads the module anew and makes its devices; the first two are alike. */
  async function load(count: number, ...parameters: string[]): Promise<void> {
    await unload();
    await host.insmod(join(lab.image.modules, 'vfio-bringup.ko'), ...parameters);
    const made: string[] = [];
    for (let n = 0; n < count; n++) {
      await host.run(`echo ${uuid(n)} > ${PARENT}/mdev_supported_types/vfio_bringup-pci/create`);
      made.push((await host.run(`basename $(readlink /sys/bus/mdev/devices/${uuid(n)}/iommu_group)`)).trim());
    }
    groups = made;
  }
  /** Fails when anything still holds a device or the module. */
  async function unload(): Promise<void> {
    for (const n of groups.keys()) await host.run(`echo 1 > /sys/bus/mdev/devices/${uuid(n)}/remove`);
    groups = [];
    await host.run('rmmod vfio_bringup');
  }
  async function check(rule: string, ...devices: number[]): Promise<void> {
    const where = devices.flatMap((n) => [groups[n] ?? '', uuid(n)]);
    const { stdout, stderr } = await host.exec(['/hw/check', rule, ...where], { timeoutMs: TIMEOUT_MS });
    expect(`${stdout}${stderr}`.trim().split('\n').at(-1)).toBe(`ok ${rule}`);
  }

  beforeAll(async () => {
    lab = await startLab({ devices: [] });
    host = lab.host(0);
    bootLog = await host.run('dmesg');
    compileChecks(lab);
  });
  afterAll(() => lab?.close());

  describe('the device and abi d', () => {
    beforeAll(() => load(3, 'abi=d', 'memory=1048576,1048576,2097152'));

    it.each([
      ['config', 'config space as PCI has it, BARs can be sized'],
      ['bar', 'registers at any width, the window, the mailbox, a hash that tells changes'],
      ['dma', 'fill, check, read and write reach mapped memory to the byte, and nothing else'],
      ['msi', 'an interrupt an MSI, pending ones are kept and sent once'],
      ['reset', 'VFIO_DEVICE_RESET makes all as after power-on'],
      ['clean', 'the next user finds nothing of the one before'],
      ['container', "type1's own tracking sees each written page and no other"],
      ['reads', 'reads of any size and into bad memory lose no byte'],
      ['refusals', 'short, long, damaged and reordered data is refused, and stays refused'],
      ['quiet', 'a stopped device does nothing and goes on later; P2P leaves peers alone'],
      ['log', 'DMA logging is precise to the page, and sees the last write before a stop'],
      ['arcs', 'every pair of states ends as vfio.h says, with a file or without'],
      ['fail-arc', 'an arc made to fail stays there or leads into ERROR'],
      ['reset-session', 'a reset ends the session and not the logging'],
      ['reopened', 'the next user begins in RUNNING, not logging'],
    ])('%s: %s', (rule) => check(rule, 0), TIMEOUT_MS);

    it.each([
      ['move', 'memory, registers, DMA in its middle and a pending interrupt come over'],
      ['precopy', 'initial bytes, then what has changed; ENOMSG, poll, and the end'],
      ['cancel', 'a session given up does not spoil the next'],
    ])('%s: %s', (rule) => check(rule, 0, 1), TIMEOUT_MS);

    it('other-size: a device with other memory is refused', () => check('other-size', 0, 2), TIMEOUT_MS);
  });

  it('gives everything back: the module unloads, and the kernel has complained about nothing', async () => {
    await unload();
    expect(await host.run('ls -d /sys/class/vfio_bringup /sys/bus/mdev/devices/* 2>/dev/null || true')).toBe('');
    expect(await host.run("grep -l '^bringup-' /proc/[0-9]*/comm || true")).toBe('');
    const log = (await host.run('dmesg')).slice(bootLog.length);
    const complaint = /BUG|WARNING|Oops|Call Trace|DMAR:.*fault|recursive locking/;
    expect(log.split('\n').filter((line) => complaint.test(line))).toEqual([]);
  });
});
