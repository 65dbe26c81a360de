// The rules of edu-vfio-pci (main-job.md, "The variant driver for edu", a-h, and the states), each by images/kmod/edu-vfio-pci/test in a
// lab host. At the end the module has to unload: every data fd, device and page that it gave out must have come back.
import { execFileSync } from 'node:child_process';
import { cpSync, mkdirSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { LabHost } from '../../lab/host.ts';
import { type Lab, startLab } from '../../lab/lab.ts';
import { labUnavailable } from '../../lab/packages.ts';
import { repoRoot } from '../../lab/root.ts';

const unavailable = labUnavailable();
if (unavailable !== null) console.log(`skipped: kmod-edu: ${unavailable}`);

const TIMEOUT_MS = 120_000; // measured: at most 8 s

/** Compiles the checks on the outer host into the lab host's /hw, against the lab kernel's vfio.h (Debian's own is too old). */
function compileChecks(lab: Lab): void {
  const source = join(repoRoot(), 'images/kmod/edu-vfio-pci/test');
  const share = lab.host(0).share;
  mkdirSync(join(share, 'include/linux'), { recursive: true });
  cpSync(join(lab.image.uapi, 'linux/vfio.h'), join(share, 'include/linux/vfio.h'));
  const files = readdirSync(source).filter((each) => each.endsWith('.c'));
  const flags = ['-O2', '-Wall', '-Wextra', '-Werror', '-D__user=', `-I${join(share, 'include')}`];
  execFileSync('gcc-12', [...flags, '-o', join(share, 'check'), ...files.map((each) => join(source, each))]);
}

describe.skipIf(unavailable !== null)('edu-vfio-pci', () => {
  let lab: Lab;
  let host: LabHost;
  let bdf: string;
  let group: string;
  let bootLog: string;

  /** Binds edu to the driver and finds its group. */
  async function bind(): Promise<void> {
    const device = `/sys/bus/pci/devices/${bdf}`;
    await host.run(`echo edu-vfio-pci > ${device}/driver_override; echo ${bdf} > /sys/bus/pci/drivers_probe`);
    group = (await host.run(`basename $(readlink ${device}/iommu_group)`)).trim();
    expect(await host.run(`basename $(readlink ${device}/driver)`)).toBe('edu-vfio-pci\n');
  }
  async function check(rule: string): Promise<void> {
    const { stdout, stderr } = await host.exec(['/hw/check', group, bdf, rule], { timeoutMs: TIMEOUT_MS });
    expect(`${stdout}${stderr}`.trim().split('\n').at(-1)).toBe(`ok ${rule}`);
  }
  /** Loads the module anew with another reach. */
  async function reload(mask: string): Promise<void> {
    await host.run(`echo ${bdf} > /sys/bus/pci/drivers/edu-vfio-pci/unbind; rmmod edu_vfio_pci`);
    await host.insmod(join(lab.image.modules, 'edu-vfio-pci.ko'), `dma_mask=${mask}`);
    await bind();
  }

  beforeAll(async () => {
    lab = await startLab({ devices: ['edu'] });
    host = lab.host(0);
    bdf = host.bdf('edu');
    bootLog = await host.run('dmesg');
    compileChecks(lab);
    await bind();
  });
  afterAll(() => lab?.close());

  it.each([
    ['log', 'a. a transfer in flight is dirty from its command until it was seen to have ended; our own never are'],
    ['registers', 'b. a save gives the DMA registers back, and a load restores them'],
    ['factorial', 'c. the factorial comes back with its result, and without an interrupt'],
    ['intx', 'c. a pending INTx is asserted again, none is invented, none of a running factorial is lost'],
    ['msi', 'c. an MSI that was sent is not sent again'],
    ['command', 'd. bus mastering is on for our transfers alone; with memory decode off it fails, the state tells'],
    ['scratch', "e. no byte of the user's memory changes, wherever it is mapped"],
    ['reset', 'f. VFIO_DEVICE_RESET is offered and makes all as after power-on'],
    ['mark', 'f. a user who leaves with a transfer in flight'],
    ['clean', 'f. leaves nothing to the next'],
    ['ranges', 'g. every byte but the last is moved; a range that would abort QEMU does not reach it'],
    ['precopy', 'h. initial bytes, then deltas; a cancelled migration goes on'],
    ['identity', 'h. another device or version is refused by the write itself'],
    ['refusals', 'short, damaged and random data is refused when leaving RESUMING, and a reset helps'],
    ['arcs', 'every arc of the table works, and every other is EINVAL'],
    ['bar', 'the registers are trapped, the rest of BAR0 is mapped, odd accesses end well'],
    ['stopped', 'a stopped device starts nothing'],
  ])('%s: %s', check, TIMEOUT_MS);

  it('h. another DMA mask at the destination is refused by the write; e. no free address is a clean refusal', async () => {
    await check('write');
    await reload('0xfffffff');
    await check('other-mask');
    await check('scratch-full');
  });

  it('gives everything back: the module unloads, and the kernel has complained about nothing', async () => {
    await reload('0xffffffffffffffff');
    await check('registers');
    await host.run(`echo ${bdf} > /sys/bus/pci/drivers/edu-vfio-pci/unbind; rmmod edu_vfio_pci`);
    const log = (await host.run('dmesg')).slice(bootLog.length);
    const complaint = /BUG|WARNING|Oops|Call Trace|DMAR:.*fault|recursive locking/;
    expect(log.split('\n').filter((line) => complaint.test(line))).toEqual([]);
  });
});
