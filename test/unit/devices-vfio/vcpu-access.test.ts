// Which accesses of a guest to a passed-through device's BARs the vCPU thread passes on to the device fd by itself, and which this thread must
// see: the MSI-X structures, everything while INTx is unmasked from here, everything while a trace is written.
import { describe, expect, it } from 'vitest';
import { AllOfRam } from '../../../devices/vfio/migration/container-dirty.ts';
import { Immovable } from '../../../devices/vfio/migration/device-state.ts';
import { VfioPciFunction } from '../../../devices/vfio/pci-function.ts';
import { fakeConfig } from '../../fakes/vfio-config.ts';
import { FakeHost, sizedRam } from '../../fakes/vfio-host.ts';
import { bar, type FakeOptions, FakeVfio, irq } from '../../fakes/vfio-transport.ts';

const BASE = 0xc0000000;
const FD = 77;
const MSI = 0xa0;
const AT_FD = { shadow: null, reads: [], posts: [], file: { fd: FD, offset: 0, except: [] } };

function made(options: FakeOptions, given: { readonly vcpuAccess?: boolean; readonly refuseUnmaskBy?: boolean } = {}) {
  const fake = new FakeVfio(options);
  fake.irqs.refuseUnmaskBy = given.refuseUnmaskBy ?? false;
  const host = new FakeHost(sizedRam(1 << 20));
  const device = new VfioPciFunction({
    ...{ host, id: 'dev0', transport: fake, mmap: true, vcpuAccess: given.vcpuAccess ?? true },
    peers: null,
    ...{ dirty: new AllOfRam([]), live: () => new Immovable(''), closed: () => {} },
  });
  device.attached({ bus: 0, slot: 1, function: 0, gsi: 17 });
  device.writeConfig(0x10, 4, BASE);
  device.writeConfig(4, 2, 0x0006);
  return { fake, host, device };
}

const TRAPPED: FakeOptions = { fd: FD, regions: [bar(0, 0x1000, [])], irqs: [irq(0, 1), irq(1, 1)] };

function msi(device: VfioPciFunction, on: boolean): void {
  device.writeConfig(MSI + 4, 4, 0xfee01000);
  device.writeConfig(MSI + 12, 2, 0x51);
  device.writeConfig(MSI + 2, 2, on ? 1 : 0);
}

describe('accesses of a guest to a BAR', () => {
  it('go to the device fd, at the place of the region', () => {
    const { host } = made(TRAPPED);
    expect(host.fastAt(BASE)).toEqual(AT_FD);
  });

  it('but those to the MSI-X table and the pending bits, which are the guest’s view', () => {
    const { host } = made({
      fd: FD,
      config: fakeConfig({ bars: [4, 0], msix: { count: 65, bar: 0, table: 0x2000, pba: 0x3000 } }),
      regions: [bar(0, 0x4000, [])],
      irqs: [irq(0, 1), irq(1, 1), irq(2, 65)],
    });
    const except = [
      { start: 0x2000, length: 65 * 16 },
      { start: 0x3000, length: 16 },
    ];
    expect(host.fastAt(BASE)).toEqual({ ...AT_FD, file: { ...AT_FD.file, except } });
  });

  it('come here where the device lies in no file, or a trace is written', () => {
    const { fd: _fd, ...nowhere } = TRAPPED;
    expect(made(nowhere).host.fastAt(BASE)).toBeNull();
    expect(made(TRAPPED, { vcpuAccess: false }).host.fastAt(BASE)).toBeNull();
  });

  it('come here as long as INTx is on and unmasked from here, and no longer', () => {
    const { host, device } = made(TRAPPED, { refuseUnmaskBy: true });
    expect(host.fastAt(BASE)).toBeNull();
    msi(device, true);
    expect(host.fastAt(BASE)).toEqual(AT_FD);
    msi(device, false);
    expect(host.fastAt(BASE)).toBeNull();
  });

  it('come here when INTx came with a state to where it is unmasked from here', () => {
    const source = made(TRAPPED);
    const here = made(TRAPPED, { refuseUnmaskBy: true });
    here.device.state.load(source.device.state.save(), 1);
    expect(here.host.fastAt(BASE)).toBeNull();
  });

  it('come here too when that came with a state, and after a reset', async () => {
    const source = made(TRAPPED);
    msi(source.device, true);
    const here = made(TRAPPED, { refuseUnmaskBy: true });
    here.device.state.load(source.device.state.save(), 1);
    expect(here.host.fastAt(BASE)).toEqual(AT_FD);
    await here.device.reset();
    here.device.writeConfig(0x10, 4, BASE);
    here.device.writeConfig(4, 2, 0x0006);
    expect(here.host.fastAt(BASE)).toBeNull();
  });
});
