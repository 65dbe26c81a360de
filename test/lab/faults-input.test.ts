// Rules (issue 2, "Bad input and faults") that need a real VFIO: a device in another driver's hands and a group that is not viable are
// refused in one line that names them and the remedy, exit code 2; no binding changes, nothing is left behind.
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { buildGuest, type GuestImage } from '../../images/guest/build.ts';
import type { LabHost } from '../../lab/host.ts';
import { type Lab, startLab } from '../../lab/lab.ts';
import { cacheRoot, repoRoot } from '../../lab/root.ts';
import { pairUnavailable } from './pair.ts';

const unavailable = pairUnavailable();
if (unavailable !== null) console.log(`skipped: faults-input: ${unavailable}`);

/** Measured: 3 s. */
const LIMIT_MS = 60_000;
/** QEMU's q35: ISA bridge, SATA and SMBus are functions of one device without ACS, so they share a group. */
const [BRIDGE, SATA, SMBUS] = ['0000:00:1f.0', '0000:00:1f.2', '0000:00:1f.3'];

describe.skipIf(unavailable !== null)('ferry run refuses in one line, and changes nothing', () => {
  let lab: Lab;
  let host: LabHost;
  let image: GuestImage;
  const ferry = (...args: string[]) => [join(repoRoot(), 'bin/ferry'), ...args];

  beforeAll(async () => {
    image = await buildGuest(cacheRoot());
    lab = await startLab({ devices: ['edu'] });
    host = lab.host(0);
    // Two drivers of Debian's kernel for two functions of the group; the third gets vfio-pci.
    const root = `${cacheRoot()}/lab-kernel-$(uname -r)-*/root`;
    await host.run(`for m in lpc_ich i2c_i801; do modprobe -d "$(ls -d ${root} | head -n 1)" $m || exit 1; done`);
  });
  afterAll(() => lab?.close());

  const bindings = () =>
    host.run(
      'cd /sys/bus/pci/devices; for d in *; do echo $d $(readlink $d/driver) $(cat $d/driver_override); done; ls -R /run/ferry 2>/dev/null || true',
    );

  /** As `nobody`, for whom everything but VFIO's own file is open. */
  const NOBODY = ['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups'];

  async function refusal(devices: readonly string[], wrap: readonly string[] = []): Promise<string> {
    const before = await bindings();
    const { code, stdout, stderr } = await host.exec(
      [
        ...wrap,
        ...ferry('run', '--kernel', image.vmlinuz, '--initrd', image.initrd, '--append', 'console=ttyS0 mode=poweroff'),
        ...['--control', 'unix:/tmp/refused.sock', ...devices.flatMap((device) => ['--device', device])],
      ],
      { timeoutMs: LIMIT_MS, env: { XDG_CACHE_HOME: '/tmp/cache' } },
    );
    expect(code, stderr).toBe(2);
    expect(stdout).toBe('');
    expect(stderr.trimEnd().split('\n'), stderr).toHaveLength(1);
    expect(await bindings()).toBe(before);
    expect(await host.run('ls /tmp/refused.sock 2>/dev/null; pgrep -f [b]in/ferry || true')).toBe('');
    return stderr;
  }

  it('a device that is bound to another driver', async () => {
    expect(await refusal([`vfio-pci,host=${SMBUS}`])).toContain(
      `${SMBUS} is bound to driver i801_smbus, not to a VFIO one: run \`ferry vfio bind ${SMBUS}\` first`,
    );
  });

  it('a group that is not viable: the others are named with their drivers', async () => {
    await host.run(ferry('vfio', 'bind', SATA));
    const said = await refusal([`vfio-pci,host=${SATA}`]);
    expect(said).toMatch(/group \d+ is not viable/);
    expect(said).toContain(`${BRIDGE} (lpc_ich)`);
    expect(said).toContain(`${SMBUS} (i801_smbus)`);
    expect(said).toContain(`\`ferry vfio bind ${SMBUS}\``);
    await host.run(ferry('vfio', 'unbind', SATA));
  });

  it('a device that is given twice, that another process has, that this user may not open', async () => {
    const bdf = host.bdf('edu');
    await host.run(ferry('vfio', 'bind', bdf, '--driver', 'edu-vfio-pci'));
    const device = `vfio-pci,host=${bdf}`;
    expect(await refusal([device, device])).toMatch(/twice/);
    const group = `/dev/vfio/$(basename $(readlink /sys/bus/pci/devices/${bdf}/iommu_group))`;
    const holder = host.spawn(`exec 9<>${group}; echo held; exec sleep 1000`);
    await new Promise((resolve) => holder.stdout.once('data', resolve));
    expect(await refusal([device])).toMatch(/in use by another process \(`fuser -v \/dev\/vfio\/\d+` names it\)/);
    holder.disconnect();
    await host.run('chmod 666 /dev/kvm && chmod 1777 /tmp');
    expect(await refusal([device], NOBODY)).toMatch(
      /no permission for \/dev\/vfio\/\d+: run as root, or give your user/,
    );
    await host.run('chmod 600 /dev/kvm');
    await host.run(ferry('vfio', 'unbind', bdf));
  });
});
