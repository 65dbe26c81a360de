// The guest's driver of vfio-bringup (images/guest/bringup-guest, workload/bringup.c) under a VMM that is not ours: QEMU in a lab host gives
// the mdev to a Linux guest. 64 MiB by DMA, an MSI a command, device memory and registers.
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { buildGuest, type GuestImage } from '../../images/guest/build.ts';
import { faultsOf, type GuestVerdict, judge } from '../../images/guest/verdict.ts';
import { type Lab, startLab } from '../../lab/lab.ts';
import { labUnavailable } from '../../lab/packages.ts';
import { cacheRoot } from '../../lab/root.ts';
import { BringupDevices, uuidOf } from './bringup-devices.ts';

const unavailable = labUnavailable();
if (unavailable !== null) console.log(`skipped: bringup-guest: ${unavailable}`);

const LIMIT_MS = 240_000; // measured: 25 s
const WANTED_BYTES = 64 << 20;

describe.skipIf(unavailable !== null)('the guest of vfio-bringup', () => {
  let lab: Lab;
  let guest: GuestImage;
  let devices: BringupDevices;

  beforeAll(async () => {
    guest = await buildGuest(cacheRoot(), 'cloud', () => {}, { bringup: true });
    lab = await startLab({ devices: [] });
    devices = new BringupDevices(lab);
    await devices.load(1, 'abi=d');
    await devices.complaints();
  });
  afterAll(() => lab?.close());

  /** Runs the workload until `enough` says so, then asks for its verdict. */
  async function run(withDevice: boolean, enough: (verdict: GuestVerdict) => boolean): Promise<GuestVerdict> {
    const append = 'console=ttyS0 quiet panic=-1 mode=workload edu=0 bringup=1 writer=4M rate=1M';
    const device = withDevice ? ['-device', `vfio-pci,sysfsdev=/sys/bus/mdev/devices/${uuidOf(0)}`] : [];
    const machine = ['-accel', 'kvm', '-cpu', 'host', '-M', 'q35', '-m', '256', '-nodefaults', '-nographic'];
    const kernel = ['-no-reboot', '-kernel', guest.vmlinuz, '-initrd', guest.initrd, '-append', append];
    const argv = ['qemu-system-x86_64', ...machine, ...kernel, '-serial', 'stdio', ...device];
    const qemu = lab.host(0).spawn(argv);
    let text = '';
    let asked = false;
    qemu.stdout.on('data', (chunk: Buffer) => {
      text += chunk.toString();
      if (asked || !enough(judge([text]))) return;
      asked = true;
      qemu.stdin.write('end\n');
    });
    const timer = setTimeout(() => qemu.kill('SIGKILL'), LIMIT_MS - 10_000);
    const { code } = await qemu.done;
    clearTimeout(timer);
    expect(code, text).toBe(0);
    return judge([text]);
  }

  it(
    'moves 64 MiB both ways with an MSI a command, and finds nothing wrong',
    async () => {
      const verdict = await run(true, ({ dmaBytes }) => dmaBytes >= WANTED_BYTES);
      expect(verdict.errors).toEqual([]);
      expect(faultsOf(verdict, { edu: false, bringup: true })).toEqual([]);
      expect(verdict).toMatchObject({ ok: true, dmaErrors: 0, irqErrors: 0, regErrors: 0 });
      expect(verdict.irqs).toBe(verdict.dmas);
      expect(verdict.regChecks).toBeGreaterThan(500);
      expect(verdict.dmaChecks).toBeGreaterThan(150);
      expect(await devices.complaints()).toEqual([]);
    },
    LIMIT_MS,
  );

  it(
    'says so when there is no such device',
    async () => {
      const verdict = await run(false, ({ errors, ticks }) => errors.length > 0 || ticks > 100);
      expect(verdict.errors).toEqual(['error kind=start text=no-vfio-bringup-or-no-driver-for-it']);
      expect(faultsOf(verdict, { edu: false, bringup: true })).toContain('dmaBytes stayed 0 on console 1');
    },
    LIMIT_MS,
  );
});
