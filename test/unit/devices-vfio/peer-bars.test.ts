// Rule: the BARs of the devices that share an IOMMU space are mapped into it where the guest has them, as long as there are at least two
// devices; never two at one place, never one that is no longer mmapped. What the kernel refuses is said once and costs nothing else.
import { describe, expect, it } from 'vitest';
import type { HostMapping } from '../../../devices/contract.ts';
import { AllOfRam } from '../../../devices/vfio/migration/container-dirty.ts';
import { Immovable } from '../../../devices/vfio/migration/device-state.ts';
import { VfioPciFunction } from '../../../devices/vfio/pci-function.ts';
import { PeerBars } from '../../../devices/vfio/peer-bars.ts';
import type { PeerDmaPort } from '../../../devices/vfio/transport.ts';
import { SysError } from '../../../native/errno.ts';
import { FakeHost, sizedRam } from '../../fakes/vfio-host.ts';
import { bar, FakeVfio, irq } from '../../fakes/vfio-transport.ts';

const MIB = 2 ** 20;

/** An IOMMU that refuses what overlaps, as type1 does. */
class Space implements PeerDmaPort {
  readonly calls: string[] = [];
  readonly at = new Map<number, HostMapping>();
  refuses: number | null = null;
  /** While MAP is under way. */
  during: (gpa: number) => void = () => undefined;

  async map(gpa: number, target: HostMapping): Promise<void> {
    this.calls.push(`map ${gpa / MIB}`);
    await Promise.resolve();
    this.during(gpa);
    if (gpa === this.refuses) throw new SysError('VFIO_IOMMU_MAP_DMA', 22);
    for (const [start, { size }] of this.at) expect(gpa + target.size <= start || start + size <= gpa).toBe(true);
    this.at.set(gpa, target);
  }

  async unmap({ gpa, size }: { readonly gpa: number; readonly size: number }): Promise<void> {
    this.calls.push(`unmap ${gpa / MIB}`);
    await Promise.resolve();
    expect(this.at.get(gpa)?.size).toBe(size);
    this.at.delete(gpa);
  }

  get places(): number[] {
    return [...this.at.keys()].map((gpa) => gpa / MIB).sort((a, b) => a - b);
  }
}

function made(devices = 2) {
  const space = new Space();
  const warnings: string[] = [];
  const warn = (_fields: object, message: string) => warnings.push(message);
  const peers = new PeerBars({ port: space, log: { debug: () => {}, info: () => {}, warn } });
  for (let n = 0; n < devices; n++) peers.joined();
  return { space, warnings, peers };
}
const mapping = (size = MIB): HostMapping => ({ size, view: new ArrayBuffer(0), unmap: () => undefined });

describe('the BARs of devices with one IOMMU space', () => {
  it('are mapped from the second device on, and no longer when one alone is left', async () => {
    const { space, peers } = made(1);
    peers.place(10 * MIB, mapping());
    await peers.settled();
    expect(space.calls).toEqual([]);
    peers.joined();
    peers.place(20 * MIB, mapping());
    await peers.settled();
    expect(space.places).toEqual([10, 20]);
    expect(peers.ranges).toEqual([10, 20].map((at) => ({ start: at * MIB, length: MIB })));
    peers.left();
    await peers.settled();
    expect([space.places, peers.ranges]).toEqual([[], []]);
  });

  it('swap places: what goes is unmapped first', async () => {
    const { space, peers } = made();
    const [a, b] = [mapping(), mapping()];
    peers.place(10 * MIB, a);
    peers.place(20 * MIB, b);
    await peers.settled();
    peers.remove(a);
    peers.remove(b);
    peers.place(20 * MIB, a);
    peers.place(10 * MIB, b);
    await peers.settled();
    expect([space.at.get(10 * MIB), space.at.get(20 * MIB)]).toEqual([b, a]);
    expect(space.calls).toEqual(['map 10', 'map 20', 'unmap 10', 'unmap 20', 'map 20', 'map 10']);
  });

  it('that move again and again while one is being mapped end where they are', async () => {
    const { space, warnings, peers } = made();
    const target = mapping();
    let moves = 0;
    space.during = (gpa) => {
      if (moves++ < 5) {
        peers.remove(target);
        peers.place(gpa + MIB, target);
      }
    };
    peers.place(10 * MIB, target);
    await peers.settled();
    expect([space.places, warnings]).toEqual([[15], []]);
    peers.remove(target);
    await peers.settled();
    expect(space.places).toEqual([]);
  });

  it('are back at once where they were taken away for a moment: nothing is asked of the kernel', async () => {
    const { space, peers } = made();
    const target = mapping();
    peers.place(10 * MIB, target);
    await peers.settled();
    const other = mapping();
    space.during = () => {
      peers.remove(target);
      peers.place(10 * MIB, target);
    };
    peers.place(30 * MIB, other);
    await peers.settled();
    expect(space.calls).toEqual(['map 10', 'map 30']);
  });

  it('that the kernel refuses are named once, and tried again only elsewhere', async () => {
    const { space, warnings, peers } = made();
    const target = mapping();
    space.refuses = 10 * MIB;
    peers.place(10 * MIB, target);
    peers.place(20 * MIB, mapping());
    await peers.settled();
    peers.place(30 * MIB, mapping());
    await peers.settled();
    expect(space.places).toEqual([20, 30]);
    expect(warnings).toEqual([expect.stringContaining('a BAR at 0xa00000 (1048576 bytes) cannot be mapped')]);
    peers.remove(target);
    peers.place(40 * MIB, target);
    await peers.settled();
    expect(space.places).toEqual([20, 30, 40]);
  });

  it('and are gone again when they could not be mapped are no news', async () => {
    const { space, warnings, peers } = made();
    const target = mapping();
    space.refuses = 10 * MIB;
    space.during = () => peers.remove(target);
    peers.place(10 * MIB, target);
    await peers.settled();
    expect([space.places, warnings]).toEqual([[], []]);
  });

  it('tell who follows them of every change', async () => {
    const { peers } = made();
    const seen: number[] = [];
    peers.onChange(() => seen.push(peers.ranges.length));
    const target = mapping();
    peers.place(10 * MIB, target);
    await peers.settled();
    peers.remove(target);
    await peers.settled();
    expect(seen).toEqual([1, 0]);
  });
});

describe('a passed-through function', () => {
  const BASE = 0xc0000000;
  function functionOf(peers: PeerBars) {
    const fake = new FakeVfio({ regions: [bar(0, 0x2000, [{ start: 0x1000, length: 0x1000 }])], irqs: [irq(0, 1)] });
    const device = new VfioPciFunction({
      ...{ host: new FakeHost(sizedRam(MIB)), id: 'dev0', transport: fake, mmap: true, vcpuAccess: true, peers },
      ...{ dirty: new AllOfRam([]), live: () => new Immovable(''), closed: () => {} },
    });
    device.attached({ bus: 0, slot: 1, function: 0, gsi: 17 });
    return { fake, device };
  }
  const at = ({ at: places }: Space) => [...places.keys()];

  it('is reached where PCI_COMMAND and BAR say, in the windows that are mmapped', async () => {
    const { space, peers } = made(1);
    const { device } = functionOf(peers);
    device.writeConfig(0x10, 4, BASE);
    await peers.settled();
    expect(at(space)).toEqual([]);
    device.writeConfig(4, 2, 0x0006);
    await peers.settled();
    expect(at(space)).toEqual([BASE + 0x1000]);
    device.writeConfig(4, 2, 0x0004);
    await peers.settled();
    expect(at(space)).toEqual([]);
  });

  it('is unmapped before its windows are given back', async () => {
    const { space, peers } = made(2);
    const { device, fake } = functionOf(peers);
    device.writeConfig(0x10, 4, BASE);
    device.writeConfig(4, 2, 0x0006);
    await peers.settled();
    const mmapped: number[] = [];
    const unmap = space.unmap.bind(space);
    space.unmap = (range) => {
      mmapped.push(fake.mapped.length);
      return unmap(range);
    };
    await device.close();
    expect([mmapped, at(space), fake.mapped.length]).toEqual([[1], [], 0]);
  });
});
