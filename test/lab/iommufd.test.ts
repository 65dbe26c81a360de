// The character device and iommufd in a lab host, with QEMU's edu behind its VT-d: page tables of our own, what the hardware does not track
// and that Ferry says so, a guest under the same workload as by the group, and one whose parent gave it the fds and no privilege.
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { buildGuest } from '../../images/guest/build.ts';
import { faultsOf, judge } from '../../images/guest/verdict.ts';
import { type Lab, startLab } from '../../lab/lab.ts';
import { labUnavailable } from '../../lab/packages.ts';
import { cacheRoot, repoRoot } from '../../lab/root.ts';
import { bundleProgram } from './programs/bundle.ts';

const bundle = join(repoRoot(), 'dist/ferry.cjs');
const unavailable = labUnavailable() ?? (existsSync(bundle) ? null : 'dist/ferry.cjs is missing: npm run build');
if (unavailable !== null) console.log(`skipped: iommufd: ${unavailable}`);

/** Measured 25 s: pinning 256 MiB and booting take most of it. */
const LIMIT_MS = 280_000;
const MEMORY_MIB = 256;
const NO_TRACKING = "this host's IOMMU tracks no dirty pages";

describe.skipIf(unavailable !== null)('VFIO by character device and iommufd', () => {
  let lab: Lab;
  let guest: { vmlinuz: string; initrd: string };
  let bdf: string;

  beforeAll(async () => {
    guest = await buildGuest(cacheRoot(), 'cloud');
    lab = await startLab({ devices: ['edu', 'nvme'] });
    bdf = lab.host(0).bdf('edu');
    await lab.host(0).run(ferry('vfio', 'bind', bdf));
  });
  afterAll(() => lab?.close());

  const ferry = (...args: string[]) => [join(repoRoot(), 'bin/ferry'), ...args];
  const run = (append: string, ...options: string[]) => [
    ...ferry('run', '--kernel', guest.vmlinuz, '--initrd', guest.initrd, '--memory', `${MEMORY_MIB}M`, '--cpus', '1'),
    ...['--append', `console=ttyS0 quiet panic=-1 ${append}`, ...options],
  ];
  /** Opens what is the parent's to open as root, then runs the command as nobody, with this much locked memory. */
  const asNobody = (lockKib: number, command: readonly string[]) => {
    const opened = `exec 7<>/dev/vfio/devices/vfio0 8<>/dev/iommu; ulimit -l ${lockKib}`;
    return [
      ...[
        'bash',
        '-c',
        `${opened}; exec "$@"`,
        'parent',
        'setpriv',
        '--reuid=65534',
        '--regid=65534',
        '--clear-groups',
      ],
      ...command,
    ];
  };
  const noFaults = async () => expect(await lab.host(0).run("dmesg | grep -c 'DMAR.*fault' || true")).toBe('0\n');

  /** Runs the workload for so many ticks; `meanwhile` while it goes on. Gives what stderr said. */
  async function workload(command: readonly string[], ticks: number, meanwhile = async () => {}): Promise<string> {
    const ferryRun = lab.host(0).spawn([...command], { env: { XDG_CACHE_HOME: '/tmp/cache' } });
    let text = '';
    let said = '';
    ferryRun.stdout.on('data', (chunk: Buffer) => {
      text += chunk.toString();
    });
    ferryRun.stderr.on('data', (chunk: Buffer) => {
      said += chunk.toString();
    });
    const limit = Date.now() + LIMIT_MS;
    let over = false;
    void ferryRun.done.then(() => {
      over = true;
    });
    while (!new RegExp(`^tick n=${ticks} `, 'm').test(text) && !over && Date.now() < limit) await sleep(200);
    await meanwhile();
    ferryRun.stdin.write('end\n');
    expect((await ferryRun.done).code, said).toBe(0);
    const verdict = judge([text]);
    expect(faultsOf(verdict, { edu: true })).toEqual([]);
    expect(verdict).toMatchObject({ ok: true, lostTicks: 0, dmaErrors: 0, irqErrors: 0, regErrors: 0 });
    expect(verdict.irqs).toBeGreaterThan(0);
    expect(verdict.dmaChecks).toBeGreaterThan(0);
    await noFaults();
    return said;
  }

  async function refused(command: readonly string[]): Promise<string> {
    const result = await lab.host(0).exec([...command], { timeoutMs: LIMIT_MS, env: { XDG_CACHE_HOME: '/tmp/cache' } });
    expect(result.code, result.stderr).toBe(2);
    expect(result.stderr.trim().split('\n'), result.stderr).toHaveLength(1);
    return result.stderr;
  }

  it('has page tables of our own; this VT-d tracks no dirty pages (EOPNOTSUPP), and Ferry falls back and says so', async () => {
    const program = await bundleProgram('iommufd-edu', lab.host(0).share);
    const env = { FERRY_ADDON: join(repoRoot(), 'build/Release/kvm_node.node') };
    const seen = JSON.parse(await lab.host(0).run(['node', program, bdf], { env, timeoutMs: 120_000 })) as object;
    const says = expect.stringContaining(`${bdf}: ${NO_TRACKING}`);
    expect(seen).toEqual({
      hwTracking: 'no',
      hwpt: 'works',
      hwptDirty: 'EOPNOTSUPP',
      kind: 'cdev',
      id: 0x010000ed,
      dmaEqual: true,
      iovaRanges: [
        { start: 0, length: 0xfee00000 },
        { start: 0xfef00000, length: 2 ** 39 - 0xfef00000 },
      ],
      pageSizes: 4096,
      tracker: null,
      // Once for each life.
      said: [says, says],
      left: [],
    });
    await noFaults();
  });

  it('is shown by ferry vfio info', async () => {
    const text = await lab.host(0).run(ferry('vfio', 'info', bdf));
    expect(text).toContain('iommufd: /dev/vfio/devices/vfio0, /dev/iommu; dirty pages by the IOMMU: no');
  });

  it('runs a guest whose DMA and interrupts are as by the group; meanwhile nobody else gets the device', async () => {
    const device = `vfio-pci,host=${bdf},iommufd=iommufd0`;
    const options = ['--object', 'iommufd,id=iommufd0', '--device', device, '--log-level', 'info'];
    const said = await workload(run('memmap=2M$0xe000000 mode=workload', ...options), 60, async () => {
      const again = (iommufd: string) =>
        refused(run('mode=poweroff', '--device', `vfio-pci,host=${bdf},iommufd=${iommufd}`));
      expect(await again('on')).toContain(`${bdf}: it is in use by another process`);
      expect(await again('off')).toContain(`${bdf}: /dev/vfio/`);
    });
    expect(said.split(NO_TRACKING)).toHaveLength(2);
  });

  it('runs a guest without any privilege, by fds that a parent opened', async () => {
    // What membership in the group kvm gives elsewhere; VFIO's and iommufd's files stay root's.
    await lab.host(0).run('chmod 666 /dev/kvm');
    const options = ['--object', 'iommufd,id=iommufd0,fd=8', '--device', 'vfio-pci,fd=7,iommufd=iommufd0'];
    const command = (append: string) => run(append, ...options);
    const said = await refused(asNobody(8192, command('mode=poweroff')));
    expect(said).toContain(`${MEMORY_MIB} MiB of locked memory, but the limit is 8 MiB`);
    expect(said).toContain(`\`ulimit -l ${MEMORY_MIB * 1024}\``);
    // What the message says is enough.
    const kib = MEMORY_MIB * 1024;
    await workload(asNobody(kib, command('memmap=2M$0xe000000 mode=workload')), 20);
  });

  it('runs a guest with two devices that share an iommufd and its page table: NVMe reads back what it wrote', async () => {
    const host = lab.host(0);
    const nvme = host.bdf('nvme');
    await host.run(ferry('vfio', 'bind', nvme));
    const devices = [bdf, nvme].flatMap((each) => ['--device', `vfio-pci,host=${each},iommufd=iommufd0`]);
    const command = run('mode=nvme blocks=128 seed=3', '--object', 'iommufd,id=iommufd0', ...devices);
    const result = await host.exec(command, { timeoutMs: LIMIT_MS });
    expect(result.code, result.stderr).toBe(0);
    expect(result.stdout).toMatch(/^nvme read=\d+ written=(\d+) back=\1 bytes=524288 ok=1/m);
    await noFaults();
    await host.run(ferry('vfio', 'unbind', nvme));
  });

  it('gives the device back', async () => {
    await lab.host(0).run(ferry('vfio', 'unbind', bdf));
    expect(await lab.host(0).run('ls /run/ferry/bind')).toBe('');
    expect(await lab.host(0).run(`readlink /sys/bus/pci/devices/${bdf}/driver || echo none`)).toBe('none\n');
  });
});
