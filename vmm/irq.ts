// Interrupts: GSI allocation, the routing table, irqfds. Implements IrqPort for devices (devices/contract.ts); machine.ts makes one per
// machine. JS thread. In steady state nothing here is visited: eventfd -> irqfd -> guest. Spec: KVM api.rst, KVM_SET_GSI_ROUTING, KVM_IRQFD.
import type { IrqPort, LevelIrqFd, MsiVector } from '../devices/contract.ts';
import {
  KVM_IRQ_LINE,
  KVM_IRQ_ROUTING_IRQCHIP,
  KVM_IRQ_ROUTING_MSI,
  KVM_IRQCHIP_IOAPIC,
  KVM_IRQCHIP_PIC_MASTER,
  KVM_IRQCHIP_PIC_SLAVE,
  KVM_IRQFD,
  KVM_IRQFD_FLAG_DEASSIGN,
  KVM_IRQFD_FLAG_RESAMPLE,
  KVM_SET_GSI_ROUTING,
  kvm_irq_level,
  kvm_irq_routing,
  kvm_irq_routing_entry,
  kvm_irq_routing_irqchip,
  kvm_irq_routing_msi,
  kvm_irqfd,
} from '../native/abi/kvm.ts';
import type { KvmNode } from '../native/addon.ts';
import { VmmError } from '../native/errno.ts';
import { GSI } from './layout.ts';

/** The union in a routing entry. */
const ROUTE = kvm_irq_routing_entry.u.at;

type IrqAddon = Pick<KvmNode, 'ioctl' | 'eventFd' | 'eventSignal' | 'eventTake' | 'closeFd'>;

/** One source that pulls a GSI; several may share it (PCI INTx), the line is their OR. */
interface Line {
  asserted: number;
}

export class Interrupts implements IrqPort {
  readonly #addon: IrqAddon;
  readonly #vm: number;
  readonly #maxGsi: number;
  readonly #lines = new Map<number, Line>();
  readonly #level = new DataView(new ArrayBuffer(kvm_irq_level.size));
  readonly #levelBytes = new Uint8Array(this.#level.buffer);
  readonly #vectors = new Map<number, Vector>();
  #routesChanged = true;

  /** `maxGsi`: what KVM_CAP_IRQ_ROUTING answered. */
  constructor(addon: IrqAddon, vm: number, maxGsi: number) {
    this.#addon = addon;
    this.#vm = vm;
    this.#maxGsi = maxGsi;
  }

  line(gsi: number): { set(level: boolean): void } {
    let line = this.#lines.get(gsi);
    if (line === undefined) {
      line = { asserted: 0 };
      this.#lines.set(gsi, line);
    }
    const shared = line;
    let mine = false;
    return {
      set: (level) => {
        if (level === mine) return;
        mine = level;
        const before = shared.asserted;
        shared.asserted += level ? 1 : -1;
        if ((before === 0) !== (shared.asserted === 0)) this.#pull(gsi, shared.asserted !== 0);
      },
    };
  }

  levelIrqFd(gsi: number): LevelIrqFd {
    const eventFd = this.#addon.eventFd();
    const resampleFd = this.#addon.eventFd();
    let armed = false;
    const arm = (on: boolean) => {
      if (on === armed) return;
      this.irqfd(eventFd, gsi, on ? KVM_IRQFD_FLAG_RESAMPLE : KVM_IRQFD_FLAG_DEASSIGN, resampleFd);
      armed = on;
    };
    return {
      eventFd,
      resampleFd,
      takeResample: () => this.#addon.eventTake(resampleFd) !== 0n,
      mask: () => arm(false),
      unmask: () => arm(true),
      release: () => {
        arm(false);
        this.#addon.closeFd(eventFd);
        this.#addon.closeFd(resampleFd);
      },
    };
  }

  /** x86 KVM needs no requester id (KVM_MSI_VALID_DEVID is for ARM's ITS). */
  msi(_requesterId: number): MsiVector {
    let gsi: number = GSI.msiFirst;
    while (this.#vectors.has(gsi)) gsi++;
    if (gsi >= this.#maxGsi) {
      throw new VmmError(
        'no-gsi',
        `cannot allocate one more MSI vector: all ${this.#maxGsi} GSIs of this KVM are taken; pass fewer devices`,
      );
    }
    const vector = new Vector(this, this.#addon, gsi);
    this.#vectors.set(gsi, vector);
    return vector;
  }

  /** Routes first: an irqfd that is assigned with a pending count fires at once, and must find its message. */
  commit(): void {
    if (this.#routesChanged) this.#setRouting();
    for (const vector of this.#vectors.values()) vector.arm();
  }

  routeChanged(): void {
    this.#routesChanged = true;
  }

  forget(gsi: number): void {
    this.#vectors.delete(gsi);
    this.#routesChanged = true;
  }

  irqfd(eventFd: number, gsi: number, flags: number, resampleFd: number): void {
    const bytes = new Uint8Array(kvm_irqfd.size);
    const view = new DataView(bytes.buffer);
    view.setUint32(kvm_irqfd.fd, eventFd, true);
    view.setUint32(kvm_irqfd.gsi, gsi, true);
    view.setUint32(kvm_irqfd.flags, flags, true);
    if ((flags & KVM_IRQFD_FLAG_RESAMPLE) !== 0) view.setUint32(kvm_irqfd.resamplefd, resampleFd, true);
    this.#addon.ioctl('KVM_IRQFD', this.#vm, KVM_IRQFD, bytes);
  }

  #pull(gsi: number, level: boolean): void {
    this.#level.setUint32(kvm_irq_level.irq, gsi, true);
    this.#level.setUint32(kvm_irq_level.level, level ? 1 : 0, true);
    this.#addon.ioctl('KVM_IRQ_LINE', this.#vm, KVM_IRQ_LINE, this.#levelBytes);
  }

  #setRouting(): void {
    const routed = [...this.#vectors.values()].filter((vector) => vector.routed);
    const pins = boardRoutes();
    const count = pins.length + routed.length;
    const bytes = new Uint8Array(kvm_irq_routing.size + count * kvm_irq_routing_entry.size);
    const view = new DataView(bytes.buffer);
    view.setUint32(kvm_irq_routing.nr, count, true);
    let at: number = kvm_irq_routing.size;
    for (const pin of pins) {
      view.setUint32(at + kvm_irq_routing_entry.gsi, pin.gsi, true);
      view.setUint32(at + kvm_irq_routing_entry.type, KVM_IRQ_ROUTING_IRQCHIP, true);
      view.setUint32(at + ROUTE + kvm_irq_routing_irqchip.irqchip, pin.chip, true);
      view.setUint32(at + ROUTE + kvm_irq_routing_irqchip.pin, pin.pin, true);
      at += kvm_irq_routing_entry.size;
    }
    for (const vector of routed) {
      vector.describe(view, at);
      at += kvm_irq_routing_entry.size;
    }
    this.#addon.ioctl('KVM_SET_GSI_ROUTING', this.#vm, KVM_SET_GSI_ROUTING, bytes);
    this.#routesChanged = false;
  }
}

/** One MSI or MSI-X vector. Made, and its irqfd armed, by Interrupts alone. */
class Vector implements MsiVector {
  readonly eventFd: number;
  readonly #owner: Interrupts;
  readonly #addon: IrqAddon;
  readonly #gsi: number;
  #address = 0n;
  #data = 0;
  #masked = true;
  #armed = false;
  #released = false;
  routed = false;

  constructor(owner: Interrupts, addon: IrqAddon, gsi: number) {
    this.#owner = owner;
    this.#addon = addon;
    this.#gsi = gsi;
    this.eventFd = addon.eventFd();
  }

  route(address: bigint, data: number): void {
    if (this.routed && address === this.#address && data === this.#data) return;
    this.#address = address;
    this.#data = data;
    this.routed = true;
    this.#owner.routeChanged();
  }

  /** At once, not at commit(): KVM_IRQFD's de-assign flushes what is on its way, and after it the count is the pending bit. */
  mask(): void {
    this.#masked = true;
    if (!this.#armed) return;
    this.#owner.irqfd(this.eventFd, this.#gsi, KVM_IRQFD_FLAG_DEASSIGN, 0);
    this.#armed = false;
  }

  unmask(): void {
    this.#masked = false;
  }

  takePending(): boolean {
    return this.#addon.eventTake(this.eventFd) !== 0n;
  }

  trigger(): void {
    this.#addon.eventSignal(this.eventFd);
  }

  release(): void {
    if (this.#released) return;
    this.#released = true;
    this.mask();
    this.#owner.forget(this.#gsi);
    this.#addon.closeFd(this.eventFd);
  }

  arm(): void {
    if (this.#armed || this.#masked || !this.routed) return;
    this.#owner.irqfd(this.eventFd, this.#gsi, 0, 0);
    this.#armed = true;
  }

  describe(view: DataView, at: number): void {
    view.setUint32(at + kvm_irq_routing_entry.gsi, this.#gsi, true);
    view.setUint32(at + kvm_irq_routing_entry.type, KVM_IRQ_ROUTING_MSI, true);
    view.setUint32(at + ROUTE + kvm_irq_routing_msi.address_lo, Number(this.#address & 0xffffffffn), true);
    view.setUint32(at + ROUTE + kvm_irq_routing_msi.address_hi, Number((this.#address >> 32n) & 0xffffffffn), true);
    view.setUint32(at + ROUTE + kvm_irq_routing_msi.data, this.#data >>> 0, true);
  }
}

interface PinRoute {
  readonly gsi: number;
  readonly chip: number;
  readonly pin: number;
}

/** GSIs 0-23 as the board wires them. The PIT's IRQ 0 is IOAPIC pin 2 (the MADT's interrupt source override says so), and pin 2 of the
 *  PIC is its cascade, so GSI 2 leads nowhere. */
function boardRoutes(): PinRoute[] {
  const routes: PinRoute[] = [];
  for (let gsi = 0; gsi < GSI.ioapicPins; gsi++) {
    if (gsi === 2) continue;
    if (gsi < 16) {
      const chip = gsi < 8 ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE;
      routes.push({ gsi, chip, pin: gsi & 7 });
    }
    routes.push({ gsi, chip: KVM_IRQCHIP_IOAPIC, pin: gsi === 0 ? 2 : gsi });
  }
  return routes;
}
