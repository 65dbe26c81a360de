// `ferry vfio bind` and `unbind` against a sysfs tree of our own: the driver is restored, a killed command is undone, nothing is left.
import { mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { bindDevice, listRecords, unbindDevice, undoStale } from '../../../devices/vfio/bind.ts';
import { listDevices } from '../../../devices/vfio/probe.ts';
import { HostTree } from '../../fakes/host-tree.ts';

const BDF = '0000:65:00.0';
let tree: HostTree;

beforeEach(() => {
  tree = new HostTree();
  tree.process(process.pid, '77');
});
afterEach(() => tree.close());

describe('bind', () => {
  it('overrides before it unbinds, so that no other driver slips in between', () => {
    tree.device(BDF, 4, 'nvme');
    expect(bindDevice(tree, '65:00.0').driver).toBe('vfio-pci');
    expect(tree.writes.map((line) => line.replace(/.*\//, ''))).toEqual([
      'driver_override <- vfio-pci',
      `unbind <- ${BDF}`,
      `drivers_probe <- ${BDF}`,
    ]);
    expect(listRecords(tree.paths)).toEqual([
      { bdf: BDF, driver: 'nvme', driverOverride: null, given: 'vfio-pci', owner: null },
    ]);
    expect(listDevices(tree.paths)[0]).toMatchObject({ bdf: BDF, driver: 'vfio-pci', takenFrom: 'nvme' });
  });

  it('and unbind give the driver back, with no override and no record left', () => {
    tree.device(BDF, 4, 'nvme');
    bindDevice(tree, BDF);
    expect(unbindDevice(tree, BDF).driver).toBe('nvme');
    expect(tree.overrideOf(BDF)).toBe('(null)');
    expect(readdirSync(join(tree.paths.run, 'bind'))).toEqual([]);
  });

  it('remembers the first driver through a second bind to another VFIO driver', () => {
    tree.device(BDF, 4, 'nvme');
    tree.driver('edu-vfio-pci');
    bindDevice(tree, BDF);
    expect(bindDevice(tree, BDF, 'edu-vfio-pci').driver).toBe('edu-vfio-pci');
    expect(unbindDevice(tree, BDF).driver).toBe('nvme');
  });

  it('leaves a device without a driver that had none', () => {
    tree.device(BDF, 4, null);
    tree.driver('nvme');
    bindDevice(tree, BDF);
    expect(unbindDevice(tree, BDF).driver).toBeNull();
  });

  it('twice is once', () => {
    tree.device(BDF, 4, 'nvme');
    bindDevice(tree, BDF);
    const before = tree.writes.length;
    bindDevice(tree, BDF);
    expect(tree.writes.length).toBe(before);
  });

  it('puts everything back when the driver does not take the device', () => {
    tree.device(BDF, 4, 'nvme');
    tree.refusing.add('vfio-pci');
    expect(() => bindDevice(tree, BDF)).toThrow(/did not take 0000:65:00.0/);
    expect(tree.driverOf(BDF)).toBe('nvme');
    expect(tree.overrideOf(BDF)).toBe('(null)');
    expect(listRecords(tree.paths)).toEqual([]);
  });

  it('says in one line what is wrong and what to do', () => {
    tree.device(BDF, null, 'nvme');
    expect(() => bindDevice(tree, 'nonsense')).toThrow(/'nonsense' is not a PCI address/);
    expect(() => bindDevice(tree, '0000:01:00.0')).toThrow(/no PCI device 0000:01:00.0/);
    expect(() => bindDevice(tree, BDF)).toThrow(/intel_iommu=on/);
    tree.device('0000:66:00.0', 5, 'nvme');
    expect(() => bindDevice(tree, '66:00.0', 'other-vfio')).toThrow(/modprobe other-vfio/);
    expect(() => unbindDevice(tree, '66:00.0')).toThrow(/not bound to a VFIO driver/);
    tree.onWrite = () => {
      throw Object.assign(new Error('denied'), { code: 'EACCES' });
    };
    expect(() => bindDevice(tree, '66:00.0')).toThrow(/as root/);
  });
});

describe('a command that was killed', () => {
  const stale = (owner: object | null) => {
    mkdirSync(join(tree.paths.run, 'bind'), { recursive: true });
    const record = { bdf: BDF, driver: 'nvme', driverOverride: null, given: 'vfio-pci', owner };
    writeFileSync(join(tree.paths.run, 'bind', `${BDF}.json`), JSON.stringify(record));
  };

  it('is undone at the next start when its process is gone, or its number belongs to another', () => {
    for (const owner of [
      { pid: 4_000_000, startTime: '1' },
      { pid: process.pid, startTime: 'another' },
    ]) {
      tree.close();
      tree = new HostTree();
      tree.process(process.pid, '77');
      tree.device(BDF, 4, 'vfio-pci');
      tree.driver('nvme');
      stale(owner);
      expect(undoStale(tree)).toEqual([BDF]);
      expect(tree.driverOf(BDF)).toBe('nvme');
      expect(listRecords(tree.paths)).toEqual([]);
    }
  });

  it('is left alone while it runs, and a finished binding always', () => {
    tree.device(BDF, 4, 'vfio-pci');
    stale({ pid: process.pid, startTime: '77' });
    expect(undoStale(tree)).toEqual([]);
    stale(null);
    expect(undoStale(tree)).toEqual([]);
    expect(tree.driverOf(BDF)).toBe('vfio-pci');
  });

  it('with a record that is no record is ignored', () => {
    mkdirSync(join(tree.paths.run, 'bind'), { recursive: true });
    writeFileSync(join(tree.paths.run, 'bind', 'x.json'), '{"bdf": 7}');
    writeFileSync(join(tree.paths.run, 'bind', 'y.json'), 'not json');
    expect(listRecords(tree.paths)).toEqual([]);
  });
});
