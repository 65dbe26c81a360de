// The guest-visible vfio-pci device over the scripted fake: what configuration space shows, where BARs are mapped and trapped, how the
// guest's interrupts become VFIO's and KVM's, and what a save and a load carry. PCI 3.0, 6.1-6.8.
import { beforeEach, describe, expect, it } from 'vitest';
import { AllOfRam } from '../../../devices/vfio/migration/container-dirty.ts';
import { Immovable } from '../../../devices/vfio/migration/device-state.ts';
import { VfioPciFunction } from '../../../devices/vfio/pci-function.ts';
import { StateError } from '../../../native/errno.ts';
import { fakeConfig } from '../../fakes/vfio-config.ts';
import { FakeHost, sizedRam } from '../../fakes/vfio-host.ts';
import { bar, type FakeOptions, FakeVfio, irq } from '../../fakes/vfio-transport.ts';

const NVME: FakeOptions = {
  config: fakeConfig({ bars: [4, 0], msix: { count: 65, bar: 0, table: 0x2000, pba: 0x3000 } }),
  regions: [bar(0, 0x4000, [{ start: 0, length: 0x4000 }])],
  irqs: [irq(0, 1), irq(1, 1), irq(2, 65)],
};
const BASE = 0xc0000000;
const MSIX = 0xb0;
const MSI = 0xa0;
const TABLE = 0x2000;

function made(options: FakeOptions = {}, { refuseUnmaskBy } = { refuseUnmaskBy: false }) {
  const fake = new FakeVfio(options);
  fake.irqs.refuseUnmaskBy = refuseUnmaskBy;
  const host = new FakeHost(sizedRam(1 << 20));
  let closed = 0;
  const device = new VfioPciFunction({
    host,
    id: 'dev0',
    transport: fake,
    mmap: true,
    vcpuAccess: true,
    peers: null,
    dirty: new AllOfRam(host.memory.ranges),
    live: () => new Immovable('not in this test'),
    closed: () => {
      closed += 1;
    },
  });
  device.attached({ bus: 0, slot: 3, function: 0, gsi: 19 });
  return { fake, host, device, closed: () => closed };
}

/** As a guest does at boot: BAR 0 at BASE, memory decode and bus mastering on. */
function boot(device: VfioPciFunction): void {
  device.writeConfig(0x10, 4, BASE);
  device.writeConfig(4, 2, 0x0006);
}

function writeEntry(host: FakeHost, vector: number, data: number, masked: boolean): void {
  const region = host.regionAt(BASE)!;
  region.write(TABLE + vector * 16, 4, 0xfee00000);
  region.write(TABLE + vector * 16 + 8, 4, data);
  region.write(TABLE + vector * 16 + 12, 4, masked ? 1 : 0);
}

describe('configuration space', () => {
  const { device, fake } = made({
    config: fakeConfig({
      extended: [
        { id: 0x10, at: 0x100, next: 0x140 },
        { id: 0x03, at: 0x140, next: 0x160 },
        { id: 0x0e, at: 0x160, next: 0 },
      ],
    }),
  });
  const capabilities = () => {
    const found: [number, number][] = [];
    for (let at = device.readConfig(0x34, 1); at !== 0; at = device.readConfig(at + 1, 1)) {
      found.push([device.readConfig(at, 1), at]);
    }
    return found;
  };

  it('shows the real ids and INTA#, whatever pin the host has', () => {
    expect(device.readConfig(0, 4)).toBe(0x11e81234);
    expect(device.readConfig(0x3d, 1)).toBe(1);
    expect(device.readConfig(0x0e, 1)).toBe(0);
  });

  it('keeps known capabilities where they are and hides the others', () => {
    expect(capabilities().sort((a, b) => a[1] - b[1])).toEqual([
      [0x01, 0x40],
      [0x10, 0x60],
      [0x05, 0xa0],
    ]);
  });

  it('hides SR-IOV and ARI from the extended chain, which still begins at 0x100', () => {
    expect(device.readConfig(0x100, 4)).toBe(0x14000000);
    expect(device.readConfig(0x140, 4)).toBe(0x00010003);
  });

  it('sizes BARs by itself and answers nothing for the ROM', () => {
    device.writeConfig(0x10, 4, 0xffffffff);
    expect(device.readConfig(0x10, 4)).toBe(0xffffc000);
    device.writeConfig(0x30, 4, 0xffffffff);
    expect(device.readConfig(0x30, 4)).toBe(0);
    expect(fake.calls.some((call) => call.startsWith('write 7+0x10'))).toBe(false);
  });

  it('makes an endpoint a root complex integrated one without a link', () => {
    expect((device.readConfig(0x62, 2) >> 4) & 0xf).toBe(9);
    expect(device.readConfig(0x6c, 4)).toBe(0);
  });

  it('passes PCI_COMMAND to the device, and a sleep state never', () => {
    device.writeConfig(4, 2, 0x0406);
    expect(fake.config[4]! | (fake.config[5]! << 8)).toBe(0x0406);
    device.writeConfig(0x44, 2, 0x0003);
    expect(device.readConfig(0x44, 2) & 3).toBe(3);
    expect(fake.config[0x44]! & 3).toBe(3);
    expect(fake.calls.some((call) => call.startsWith('write 7+0x44'))).toBe(false);
  });

  it("reads the interrupt status bit from the device, which a shared line's handler asks first", () => {
    fake.config[6] = 0x18;
    expect(device.readConfig(4, 4) & 0x00080000).toBe(0x00080000);
    fake.config[6] = 0x10;
    expect(device.readConfig(6, 2) & 0x18).toBe(0x10);
  });
});

describe('BARs', () => {
  it('map everything but the pages of the MSI-X table and PBA, once decode is on', () => {
    const { device, host, fake } = made(NVME);
    expect(host.mapped).toEqual([]);
    boot(device);
    expect(host.mapped).toEqual([{ gpa: BASE, size: 0x2000 }]);
    device.writeConfig(4, 2, 0x0004);
    expect(host.mapped).toEqual([]);
    // At the device memory decode stays on: its driver must be able to stop, save and load it.
    expect(fake.config[4]).toBe(6);
  });

  it('split around a table in the middle', () => {
    const { device, host } = made({
      config: fakeConfig({ msix: { count: 4, bar: 0, table: 0x1800, pba: 0x1c00 } }),
      regions: [bar(0, 0x4000, [{ start: 0, length: 0x4000 }])],
    });
    boot(device);
    expect(host.mapped).toEqual([
      { gpa: BASE, size: 0x1000 },
      { gpa: BASE + 0x2000, size: 0x2000 },
    ]);
  });

  it('below a page are trapped: the rest of the page is a neighbour on the host', () => {
    const { device, host, fake } = made({ regions: [bar(0, 0x100, [{ start: 0, length: 0x100 }])] });
    boot(device);
    expect(host.mapped).toEqual([]);
    fake.memory.get(0)!.set([0x78, 0x56, 0x34, 0x12, 1, 0, 0, 0], 8);
    const region = host.regionAt(BASE)!;
    expect(region.read(8, 4)).toBe(0x12345678);
    expect(region.wide!.read(8)).toBe(0x112345678n);
    region.wide!.write(16, 0xffeeddccbbaa9988n);
    expect([...fake.memory.get(0)!.subarray(16, 24)]).toEqual([0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff]);
  });

  it('that do not answer read all-ones and never throw', () => {
    const { device, host, fake } = made({ regions: [bar(0, 0x1000, [])] });
    boot(device);
    fake.memory.delete(0);
    const region = host.regionAt(BASE)!;
    expect(region.read(0, 4)).toBe(0xffffffff);
    expect(region.read(0, 1)).toBe(0xff);
    expect(region.wide!.read(0)).toBe(0xffffffffffffffffn);
    region.write(0, 4, 1);
  });

  it('in I/O space are trapped ports', () => {
    const { device, host } = made({ config: fakeConfig({ bars: [1] }), regions: [bar(0, 0x20, [])] });
    device.writeConfig(0x10, 4, 0x1000);
    device.writeConfig(4, 2, 1);
    expect(host.claims[0]).toMatchObject({ space: 'pio', base: 0x1000 });
  });
});

describe('MSI-X', () => {
  let kit: ReturnType<typeof made>;
  beforeEach(() => {
    kit = made(NVME);
    boot(kit.device);
    kit.device.writeConfig(MSIX + 2, 2, 0x8000);
  });

  it('is enabled at the device as soon as the guest enables it, whole where the host cannot add vectors later', () => {
    expect(kit.fake.calls.filter((call) => call.startsWith('irq 2'))).toEqual(['irq 2 trigger 0+65']);
    expect(kit.fake.irqs.armed.size).toBe(0);
    writeEntry(kit.host, 64, 0x42, false);
    expect(kit.fake.calls.filter((call) => call.startsWith('irq 2')).at(-1)).toBe('irq 2 trigger 64+1');
    kit.host.irq.signal(kit.fake.irqs.armed.get('2:64')!);
    expect(kit.host.irq.injected).toEqual([{ address: 0xfee00000n, data: 0x42 }]);
  });

  it('takes what the host has when it has fewer', () => {
    kit.device.writeConfig(MSIX + 2, 2, 0);
    kit.fake.irqs.limits.set(2, 8);
    kit.device.writeConfig(MSIX + 2, 2, 0x8000);
    writeEntry(kit.host, 3, 0x43, false);
    expect(kit.fake.irqs.armed.has('2:3')).toBe(true);
    expect(kit.host.warnings.join()).toMatch(/fewer interrupt vectors/);
  });

  it('keeps what comes while masked as the pending bit, and sends it when unmasked', () => {
    writeEntry(kit.host, 1, 0x44, false);
    const fd = kit.fake.irqs.armed.get('2:1')!;
    const region = kit.host.regionAt(BASE)!;
    region.write(TABLE + 16 + 12, 4, 1);
    kit.host.irq.signal(fd);
    expect(kit.host.irq.injected).toEqual([]);
    expect(region.read(0x3000, 4)).toBe(2);
    region.write(TABLE + 16 + 12, 4, 0);
    expect(kit.host.irq.injected).toEqual([{ address: 0xfee00000n, data: 0x44 }]);
    expect(region.read(0x3000, 4)).toBe(0);
  });

  it('goes down when the guest switches it off, and INTx comes back', () => {
    writeEntry(kit.host, 0, 0x41, false);
    expect([...kit.fake.irqs.armed.keys()]).toEqual(['2:0']);
    kit.device.writeConfig(MSIX + 2, 2, 0);
    expect(kit.fake.irqs.armed.has('2:0')).toBe(false);
    expect(kit.fake.irqs.armed.has('0:0')).toBe(true);
    expect(kit.host.irq.vectors).toEqual([]);
  });

  it('holds everything between detach and attach, and loses nothing', () => {
    writeEntry(kit.host, 0, 0x41, false);
    writeEntry(kit.host, 1, 0x42, true);
    const fd = kit.fake.irqs.armed.get('2:0')!;
    kit.device.interrupts.detach();
    kit.host.irq.signal(fd);
    expect(kit.host.irq.injected).toEqual([]);
    kit.device.interrupts.attach();
    expect(kit.host.irq.injected).toEqual([{ address: 0xfee00000n, data: 0x41 }]);
  });

  it('moves: the pending bit of a masked vector and an interrupt from between stop and save arrive', () => {
    writeEntry(kit.host, 0, 0x41, false);
    writeEntry(kit.host, 1, 0x42, false);
    const [fd0, fd1] = [kit.fake.irqs.armed.get('2:0')!, kit.fake.irqs.armed.get('2:1')!];
    kit.host.regionAt(BASE)!.write(TABLE + 16 + 12, 4, 1);
    kit.host.irq.signal(fd1);
    kit.device.interrupts.detach();
    kit.host.irq.signal(fd0);
    const state = kit.device.state.save();

    const target = made(NVME);
    target.device.state.load(state, kit.device.state.version);
    // While RESUMING: PCI_COMMAND first, then the vectors; irqfds only when the machine says so.
    const order = target.fake.calls.filter((call) => call.startsWith('write 7+0x4=0600') || call.startsWith('irq 2'));
    expect(order).toEqual(['write 7+0x4=0600', 'irq 2 trigger 0+65']);
    expect(target.host.mapped).toEqual([{ gpa: BASE, size: 0x2000 }]);
    expect(target.host.irq.injected).toEqual([]);
    target.device.interrupts.attach();
    expect(target.host.irq.injected).toEqual([{ address: 0xfee00000n, data: 0x41 }]);
    target.host.regionAt(BASE)!.write(TABLE + 16 + 12, 4, 0);
    expect(target.host.irq.injected.at(-1)).toEqual({ address: 0xfee00000n, data: 0x42 });
  });

  it('is armed anew after a device reset, with PCI_COMMAND before it', () => {
    writeEntry(kit.host, 0, 0x41, false);
    const fd = kit.fake.irqs.armed.get('2:0');
    kit.fake.config[4] = 0;
    kit.fake.calls.length = 0;
    kit.device.rearm();
    expect(kit.fake.calls).toEqual(['write 7+0x4=0600', 'irq 2 disable', 'irq 2 trigger 0+65']);
    expect(kit.fake.irqs.armed.get('2:0')).toBe(fd);
  });
});

describe('MSI and INTx', () => {
  it('INTx is up from the start, with the resample eventfd unmasking it', () => {
    const { fake, host } = made();
    expect(host.irq.levels).toMatchObject([{ gsi: 19, on: true }]);
    expect(fake.irqs.armed.get('0:0')).toBe(host.irq.levels[0]!.fd);
    expect(fake.irqs.unmaskEventFd).toBe(host.irq.levels[0]!.resampleFd);
  });

  it('unmasks on this thread where the kernel cannot by eventfd', () => {
    const { fake, host } = made({}, { refuseUnmaskBy: true });
    expect(host.watched[0]?.fd).toBe(host.irq.levels[0]!.resampleFd);
    host.watched[0]!.callback(1n);
    expect(fake.calls.at(-1)).toBe('irq 0 unmask 0');
  });

  it("there, what the guest has acknowledged is unmasked before its next access to the device's ports, and only once", () => {
    const ports8 = { config: fakeConfig({ bars: [1] }), regions: [bar(0, 8, [])], irqs: [irq(0, 1)] };
    const { fake, host, device } = made(ports8, { refuseUnmaskBy: true });
    device.writeConfig(0x10, 4, 0x1000);
    device.writeConfig(4, 2, 0x0001);
    const ports = host.regionAt(0x1000)!;
    fake.calls.length = 0;
    ports.write(1, 1, 2);
    host.irq.levels[0]!.acknowledged = true;
    ports.write(1, 1, 3);
    ports.write(1, 1, 4);
    expect(fake.calls).toEqual(['write 0+0x1=02', 'irq 0 unmask 0', 'write 0+0x1=03', 'write 0+0x1=04']);
  });

  it('after a pause INTx is unmasked: what the line lost on the way comes again from the device', () => {
    const { fake, host, device } = made();
    device.interrupts.detach();
    expect(host.irq.levels[0]!.on).toBe(false);
    fake.calls.length = 0;
    device.interrupts.attach();
    expect(host.irq.levels[0]!.on).toBe(true);
    expect(fake.calls).toEqual(['irq 0 unmask 0']);
  });

  it('MSI takes over from INTx and gives back to it', () => {
    const { fake, host, device } = made();
    device.writeConfig(MSI + 4, 4, 0xfee01000);
    device.writeConfig(MSI + 12, 2, 0x51);
    device.writeConfig(MSI + 2, 2, 1);
    expect(fake.irqs.armed.has('0:0')).toBe(false);
    host.irq.signal(fake.irqs.armed.get('1:0')!);
    expect(host.irq.injected).toEqual([{ address: 0xfee01000n, data: 0x51 }]);
    device.writeConfig(MSI + 2, 2, 0);
    expect([...fake.irqs.armed.keys()]).toEqual(['0:0']);
  });
});

describe('save and load', () => {
  it('is equal after save, change, load, save', () => {
    const { device, host } = made(NVME);
    boot(device);
    device.writeConfig(MSIX + 2, 2, 0x8000);
    writeEntry(host, 2, 0x33, false);
    device.interrupts.detach();
    const state = device.state.save();
    const other = made(NVME);
    other.device.state.load(state, 1);
    expect(other.device.state.save()).toEqual(state);
  });

  it("refuses another device's state, garbage and unknown versions, and changes nothing", () => {
    const { device } = made(NVME);
    boot(device);
    const mine = device.state.save() as { config: Uint8Array };
    const foreign = { ...mine, config: mine.config.slice() };
    foreign.config[2]! ^= 1;
    const before = device.state.save();
    for (const garbage of [null, {}, { config: 'x' }, { ...mine, msix: null }, { ...mine, msi: 7 }, foreign]) {
      expect(() => device.state.load(garbage, 1)).toThrow(StateError);
    }
    expect(() => device.state.load(mine, 9)).toThrow(StateError);
    expect(device.state.save()).toEqual(before);
  });
});

describe('reset and close', () => {
  it('a machine reset ends DMA first, resets the device, and starts it as at power-on', async () => {
    const { device, fake, host } = made(NVME);
    boot(device);
    device.writeConfig(MSIX + 2, 2, 0x8000);
    writeEntry(host, 0, 0x41, false);
    fake.calls.length = 0;
    await device.reset();
    expect(fake.calls.indexOf('write 7+0x4=0200')).toBeLessThan(fake.calls.indexOf('reset'));
    expect(host.mapped).toEqual([]);
    expect(device.readConfig(0x10, 4)).toBe(4);
    expect([...fake.irqs.armed.keys()]).toEqual(['0:0']);
    expect(host.irq.vectors).toEqual([]);
  });

  it('close gives everything back, once', async () => {
    const { device, fake, host, closed } = made(NVME);
    boot(device);
    await device.close();
    await device.close();
    expect(fake.isOpen).toBe(false);
    expect(fake.mapped).toEqual([]);
    expect(host.claims).toEqual([]);
    expect(host.mapped).toEqual([]);
    expect(host.irq.levels).toEqual([]);
    expect(fake.irqs.armed.size).toBe(0);
    expect(closed()).toBe(1);
  });
});
