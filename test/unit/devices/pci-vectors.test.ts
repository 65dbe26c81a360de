// devices/pci/msi.ts, msix.ts and vector-binding.ts by PCI 3.0, 6.8: what the guest programs, and what is sent, kept or dropped.
import { describe, expect, it } from 'vitest';
import { ConfigSpace } from '../../../devices/pci/config-space.ts';
import { MsiCapability } from '../../../devices/pci/msi.ts';
import { Msix } from '../../../devices/pci/msix.ts';
import { VectorBinding } from '../../../devices/pci/vector-binding.ts';
import { StateError } from '../../../native/errno.ts';
import { FakeIrq } from '../../fakes/device-host.ts';

const ADDRESS = 0xfee01000;

function makeMsix(count = 4) {
  const config = new ConfigSpace();
  const irq = new FakeIrq();
  const changes: number[] = [];
  let binding: VectorBinding | null = null;
  const shape = { count, tableBar: 1, tableOffset: 0, pbaBar: 1, pbaOffset: 0x800, at: null };
  const msix = new Msix(config, shape, (vector) => {
    changes.push(vector);
    binding?.changed(vector);
  });
  binding = new VectorBinding(irq, msix);
  binding.attachedAs(0x18);
  const control = (value: number) => {
    config.write(msix.offset + 2, 2, value);
    msix.afterWrite(msix.offset + 2, 2);
  };
  const entry = (vector: number, data: number, masked: boolean) => {
    msix.writeTable(vector * 16, 4, ADDRESS);
    msix.writeTable(vector * 16 + 4, 4, 0);
    msix.writeTable(vector * 16 + 8, 4, data);
    msix.writeTable(vector * 16 + 12, 4, masked ? 1 : 0);
  };
  return { config, irq, msix, binding, control, entry, changes };
}

function makeMsi(count: number, perVectorMask = true) {
  const config = new ConfigSpace();
  const irq = new FakeIrq();
  let binding: VectorBinding | null = null;
  const shape = { count, address64: true, perVectorMask, at: null };
  const msi = new MsiCapability(config, shape, (vector) => binding?.changed(vector));
  binding = new VectorBinding(irq, msi);
  const write = (at: number, value: number, width: 2 | 4) => {
    config.write(msi.offset + at, width, value);
    msi.afterWrite(msi.offset + at, width);
  };
  const program = (data: number, control: number) => {
    write(4, ADDRESS, 4);
    write(8, 0, 4);
    write(12, data, 2);
    write(2, control, 2);
  };
  return { config, irq, msi, binding, write, program };
}

describe('MSI-X', () => {
  it('says its size and places; only enable and function mask can be written', () => {
    const { config, msix } = makeMsix(65);
    config.write(msix.offset, 4, 0xffffffff);
    config.write(msix.offset + 4, 4, 0xffffffff);
    expect(config.read(msix.offset, 4)).toBe(0xc0400011);
    expect(config.read(msix.offset + 4, 4)).toBe(1);
    expect(config.read(msix.offset + 8, 4)).toBe(0x801);
    expect([msix.tableSize, msix.pbaSize]).toEqual([65 * 16, 16]);
  });

  it('starts with every vector masked (6.8.2.6)', () => {
    const { msix } = makeMsix();
    expect([0, 1, 2, 3].map((vector) => msix.readTable(vector * 16 + 12, 4))).toEqual([1, 1, 1, 1]);
  });

  it('sends a vector as the table says, once enabled and unmasked', () => {
    const { irq, binding, control, entry } = makeMsix();
    entry(2, 0x4042, false);
    binding.raise(2);
    expect(irq.vectors.length).toBe(0);
    control(0x8000);
    binding.raise(2);
    expect(irq.sent).toEqual([{ address: BigInt(ADDRESS), data: 0x4042 }]);
    expect(irq.vectors[0]!.requesterId).toBe(0x18);
  });

  it('drops what is raised while MSI-X is off: nothing is pending then', () => {
    const { irq, msix, binding, control, entry } = makeMsix();
    entry(0, 1, false);
    binding.raise(0);
    expect(msix.readPba(0, 4)).toBe(0);
    control(0x8000);
    expect(irq.sent).toEqual([]);
  });

  it('keeps a masked vector pending, sends it once on unmask (6.8.3.4)', () => {
    const { irq, msix, binding, control, entry } = makeMsix();
    control(0x8000);
    entry(1, 7, true);
    binding.raise(1);
    binding.raise(1);
    expect(msix.readPba(0, 4)).toBe(0b10);
    msix.writeTable(16 + 12, 4, 0);
    expect(irq.sent.map((m) => m.data)).toEqual([7]);
    expect(msix.readPba(0, 4)).toBe(0);
  });

  it('the function mask masks all, and lets all go', () => {
    const { irq, binding, control, entry } = makeMsix();
    control(0x8000);
    entry(0, 10, false);
    entry(3, 13, false);
    control(0xc000);
    binding.raise(3);
    binding.raise(0);
    expect(irq.sent).toEqual([]);
    control(0x8000);
    expect(irq.sent.map((m) => m.data)).toEqual([10, 13]);
  });

  it('tells nothing while a masked entry is rewritten, and everything at its unmask', () => {
    const { changes, control, entry } = makeMsix();
    control(0x8000);
    changes.length = 0;
    entry(0, 5, true);
    expect(changes).toEqual([]);
    entry(0, 6, false);
    expect(changes).toEqual([0]);
  });

  it('an unmasked entry that is rewritten takes effect at once', () => {
    const { irq, msix, binding, control, entry } = makeMsix();
    control(0x8000);
    entry(0, 5, false);
    msix.writeTable(8, 4, 6);
    binding.raise(0);
    expect(irq.sent.map((m) => m.data)).toEqual([6]);
  });

  it('ignores narrow, crooked and outlying table accesses', () => {
    const { msix } = makeMsix();
    msix.writeTable(0, 1, 0xff);
    msix.writeTable(2, 4, 0xffffffff);
    msix.writeTable(64, 4, 0xffffffff);
    expect([msix.readTable(0, 4), msix.readTable(64, 4), msix.readPba(100, 4)]).toEqual([0, 0, 0]);
  });
});

describe('MSI', () => {
  it('cannot be made to claim more messages than it has', () => {
    const { config, msi, program } = makeMsi(4);
    config.write(msi.offset + 2, 2, 0xffff);
    expect(config.read(msi.offset + 2, 2)).toBe(0x1f5);
    program(0x40, 0x71);
    expect(msi.allowed).toBe(4);
  });

  it('changes only the low bits of the data (6.8.1.6); more than allowed is silent', () => {
    const { irq, binding, program, msi } = makeMsi(4);
    program(0x4043, 0x11);
    binding.raise(1);
    binding.raise(0);
    expect(irq.sent.map((m) => m.data)).toEqual([0x4043, 0x4042]);
    expect(msi.message(2)).toBe(null);
  });

  it('masks vector by vector and shows what is pending', () => {
    const { irq, config, msi, binding, program, write } = makeMsi(2);
    program(0x30, 0x11);
    write(16, 0b10, 4);
    binding.raise(1);
    expect(config.read(msi.offset + 20, 4)).toBe(0b10);
    write(16, 0, 4);
    expect(irq.sent.map((m) => m.data)).toEqual([0x31]);
    expect(config.read(msi.offset + 20, 4)).toBe(0);
  });

  it('drops what is raised while it is off', () => {
    const { irq, msi, binding, program } = makeMsi(1);
    program(0x30, 0);
    binding.raise(0);
    expect(msi.pending(0)).toBe(false);
    program(0x30, 1);
    expect(irq.sent).toEqual([]);
  });

  it('is 24 bytes with masks and 14 without', () => {
    expect([makeMsi(1).msi.size, makeMsi(1, false).msi.size]).toEqual([24, 14]);
  });
});

describe('the gate of a pause', () => {
  it('what is raised, or not yet taken, while it is shut is pending, and sent when it opens', () => {
    const { irq, msix, binding, control, entry } = makeMsix();
    control(0x8000);
    entry(0, 5, false);
    entry(1, 6, false);
    irq.vectors[1]!.count = 1;
    binding.detach();
    expect(irq.vectors.map((vector) => vector.attached)).toEqual([false, false]);
    binding.raise(0);
    expect(msix.readPba(0, 4)).toBe(0b11);
    expect(irq.sent).toEqual([]);
    binding.attach();
    expect(irq.sent.map((m) => m.data).sort()).toEqual([5, 6]);
    expect(msix.readPba(0, 4)).toBe(0);
  });

  it('a pending vector moves: sent at the destination when its gate opens, not by the load', () => {
    const a = makeMsix();
    a.control(0x8000);
    a.entry(2, 9, false);
    a.binding.detach();
    a.binding.raise(2);
    const b = makeMsix();
    b.config.bytes.set(a.config.bytes);
    b.msix.restore(b.msix.check(a.msix.save()));
    expect(b.irq.sent).toEqual([]);
    b.binding.attach();
    expect(b.irq.sent.map((m) => m.data)).toEqual([9]);
  });

  it('state of another shape is refused', () => {
    const { msix } = makeMsix(4);
    expect(() => msix.check(makeMsix(5).msix.save())).toThrow(StateError);
    expect(() => makeMsi(2).msi.check({ pending: 4 })).toThrow(StateError);
    expect(() => msix.check(null)).toThrow(StateError);
  });

  it('release gives every vector back', () => {
    const { irq, binding, control, entry } = makeMsix();
    control(0x8000);
    entry(0, 5, false);
    binding.release();
    expect(irq.vectors.every((vector) => vector.released)).toBe(true);
  });
});
