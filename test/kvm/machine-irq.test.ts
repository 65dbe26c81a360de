// Interrupts from eventfds to a LAPIC, and memory slots, on a VM without a running guest: what is delivered shows in the LAPIC's IRR.
// Rules: architecture.md flow (b), devices/contract.ts IrqPort and SlotPort, KVM api.rst KVM_IRQFD, KVM_SET_GSI_ROUTING.
import { afterEach, describe, expect, it } from 'vitest';
import {
  KVM_CREATE_VCPU,
  KVM_GET_IRQCHIP,
  KVM_GET_LAPIC,
  KVM_IRQCHIP_IOAPIC,
  KVM_SET_IRQCHIP,
  KVM_SET_LAPIC,
  kvm_irqchip,
} from '../../native/abi/kvm.ts';
import { kvmNode } from '../../native/addon.ts';
import { VmmError } from '../../native/errno.ts';
import { Interrupts } from '../../vmm/irq.ts';
import { HIGH_RAM_BASE, LOW_RAM_END } from '../../vmm/layout.ts';
import { Memory } from '../../vmm/memory.ts';
import { Vm } from '../../vmm/vm.ts';

const addon = kvmNode();
const undo: (() => void)[] = [];
afterEach(() => {
  for (const step of undo.splice(0).reverse()) step();
});

// Intel SDM 3, figure 11-4: spurious-interrupt register, IRR; SDM 3, 11.11: MSI address and data.
const SVR = 0xf0;
const IRR = 0x200;
const MSI_ADDRESS = 0xfee00000n;

function setup() {
  const vm = new Vm(addon);
  undo.push(() => vm.close());
  const vcpu = addon.ioctl('KVM_CREATE_VCPU', vm.fd, KVM_CREATE_VCPU, 0);
  undo.push(() => addon.closeFd(vcpu));
  const irq = new Interrupts(addon, vm.fd, vm.abilities.gsis);
  irq.commit();
  const lapic = new Uint8Array(1024);
  const view = new DataView(lapic.buffer);
  const get = () => addon.ioctl('KVM_GET_LAPIC', vcpu, KVM_GET_LAPIC, lapic);
  get();
  view.setUint32(SVR, 0x1ff, true);
  addon.ioctl('KVM_SET_LAPIC', vcpu, KVM_SET_LAPIC, lapic);
  /** An eventfd's work is done by a kernel thread: looked for until it is there, or until a while has passed. */
  const pending = async (vector: number, wanted: boolean) => {
    for (let i = 0; i < (wanted ? 500 : 10); i++) {
      get();
      const bit = (view.getUint32(IRR + (vector >> 5) * 0x10, true) >>> (vector & 31)) & 1;
      if (bit === 1) return true;
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    return false;
  };
  /** Pin `pin` of the IOAPIC to `vector`, level-triggered, unmasked (82093AA datasheet, 3.2.4). */
  const openPin = (pin: number, vector: number) => {
    const chip = new Uint8Array(kvm_irqchip.size);
    const words = new DataView(chip.buffer);
    words.setUint32(kvm_irqchip.chip_id, KVM_IRQCHIP_IOAPIC, true);
    addon.ioctl('KVM_GET_IRQCHIP', vm.fd, KVM_GET_IRQCHIP, chip);
    words.setBigUint64(kvm_irqchip.chip.ioapic + 24 + 8 * pin, BigInt(vector) | (1n << 15n), true);
    addon.ioctl('KVM_SET_IRQCHIP', vm.fd, KVM_SET_IRQCHIP, chip);
  };
  return { vm, irq, pending, openPin };
}

describe('MSI vectors', () => {
  it('an eventfd becomes the routed message; many vectors, each its own', async () => {
    const { irq, pending } = setup();
    const vectors = Array.from({ length: 40 }, (_, i) => {
      const vector = irq.msi(8);
      vector.route(MSI_ADDRESS, 0x40 + i);
      vector.unmask();
      return vector;
    });
    irq.commit();
    vectors[0]!.trigger();
    vectors[39]!.trigger();
    expect([await pending(0x40, true), await pending(0x40 + 39, true), await pending(0x41, false)]).toEqual([
      true,
      true,
      false,
    ]);
    for (const vector of vectors) vector.release();
  });

  it('masked: nothing arrives, the count is the pending bit, and unmasking delivers it', async () => {
    const { irq, pending } = setup();
    const vector = irq.msi(8);
    vector.route(MSI_ADDRESS, 0x50);
    vector.trigger();
    expect(await pending(0x50, false)).toBe(false);
    vector.unmask();
    irq.commit();
    expect(await pending(0x50, true), 'raised before it was unmasked').toBe(true);
    vector.mask();
    vector.trigger();
    expect([vector.takePending(), vector.takePending()]).toEqual([true, false]);
    vector.release();
    vector.release();
  });

  it('a new route counts for the next message', async () => {
    const { irq, pending } = setup();
    const vector = irq.msi(8);
    vector.route(MSI_ADDRESS, 0x60);
    vector.unmask();
    irq.commit();
    vector.route(MSI_ADDRESS, 0x61);
    irq.commit();
    vector.trigger();
    expect([await pending(0x61, true), await pending(0x60, false)]).toEqual([true, false]);
    vector.release();
  });

  it('a released GSI is given again, without its old route', async () => {
    const { irq, pending } = setup();
    const first = irq.msi(8);
    first.route(MSI_ADDRESS, 0x70);
    first.unmask();
    irq.commit();
    first.release();
    const second = irq.msi(8);
    second.unmask();
    irq.commit();
    second.trigger();
    expect(await pending(0x70, false)).toBe(false);
    second.route(MSI_ADDRESS, 0x71);
    irq.commit();
    expect(await pending(0x71, true)).toBe(true);
  });
});

describe('lines', () => {
  it('a shared line is the OR of those who pull it', async () => {
    const { irq, pending, openPin } = setup();
    openPin(20, 0x80);
    const [one, two] = [irq.line(20), irq.line(20)];
    one.set(true);
    two.set(true);
    expect(await pending(0x80, true)).toBe(true);
    one.set(false);
    one.set(false);
    // Opening the pin afresh delivers again only while the line is high.
    openPin(20, 0x81);
    two.set(false);
    openPin(20, 0x82);
    expect(await pending(0x82, false)).toBe(false);
  });

  it('a level irqfd raises its pin; masked it lets go of it', async () => {
    const { irq, pending, openPin } = setup();
    openPin(21, 0x90);
    const level = irq.levelIrqFd(21);
    level.unmask();
    addon.eventSignal(level.eventFd);
    expect(await pending(0x90, true)).toBe(true);
    level.mask();
    addon.eventSignal(level.eventFd);
    expect(addon.eventTake(level.eventFd), 'kept while masked').toBe(1n);
    expect(level.takeResample(), 'nothing was acknowledged').toBe(false);
    addon.eventSignal(level.resampleFd);
    expect([level.takeResample(), level.takeResample()]).toEqual([true, false]);
    level.release();
  });
});

describe('memory', () => {
  function memory(size: number) {
    const { vm } = setup();
    const ram = addon.createRam(size, { hugePages: false, populate: false });
    const made = new Memory(addon, vm.slots, ram, vm.abilities.memorySlots);
    undo.push(() => made.close());
    return { vm, made };
  }

  it('goes on at 4 GiB where low RAM ended, and nothing lies between', () => {
    const { made } = memory(LOW_RAM_END + 64 * 2 ** 20);
    const bytes = Uint8Array.from([1, 2, 3, 4]);
    const back = new Uint8Array(4);
    expect(made.write(HIGH_RAM_BASE + 4096, bytes)).toBe(true);
    made.ram.copyOut(LOW_RAM_END + 4096, back);
    expect(back).toEqual(bytes);
    expect(made.read(HIGH_RAM_BASE + 4096, back)).toBe(true);
    expect([
      made.read(LOW_RAM_END - 2, back),
      made.write(LOW_RAM_END, bytes),
      made.read(HIGH_RAM_BASE - 2, back),
    ]).toEqual([false, false, false]);
    expect(made.read(HIGH_RAM_BASE + 64 * 2 ** 20 - 3, back)).toBe(false);
  });

  it('a BAR is a slot; over RAM, over another, or in broken pages it is refused; unmapped it is free again', () => {
    const { made } = memory(16 * 2 ** 20);
    const bar = addon.createRam(0x4000, { hugePages: false, populate: false });
    undo.push(() => bar.close());
    const mapping = addon.mapFd(bar.fd, 0, 0x4000, true);
    undo.push(() => mapping.unmap());
    const handle = made.map(0xc0000000, mapping, 0, 0x2000, false);
    expect(() => made.map(0xc0001000, mapping, 0, 0x1000, false)).toThrow(VmmError);
    expect(() => made.map(0x1000, mapping, 0, 0x1000, false)).toThrow(VmmError);
    expect(() => made.map(0xd0000000, mapping, 0, 0x800, false)).toThrow(VmmError);
    handle.unmap();
    handle.unmap();
    made.map(0xc0001000, mapping, 0x1000, 0x1000, true).unmap();
  });
});
