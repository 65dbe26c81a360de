// The MSI or MSI-X vectors of a passed-through function: what the guest asked for against what VFIO and KVM were told.
// Called by interrupts.ts on the JS thread when the guest changed something; in steady state nothing here is visited (device -> VFIO
// eventfd -> irqfd -> guest). Masked means: the irqfd is off and the eventfd's count is the pending bit. PCI 3.0, 6.8.3.4-5
import { SysError } from '../../native/errno.ts';
import type { DeviceLog, IrqPort, MsiVector } from '../contract.ts';
import type { GuestVectors } from '../pci/guest-vectors.ts';
import type { VfioIrqs } from './transport.ts';

export interface MessageVectorParts {
  readonly irq: IrqPort;
  readonly vfio: VfioIrqs;
  /** VFIO_PCI_MSI_IRQ_INDEX or VFIO_PCI_MSIX_IRQ_INDEX. */
  readonly index: number;
  readonly guest: GuestVectors;
  /** How many vectors the host must enable together with the first one. */
  firstCount(): number;
  /** More vectors may be enabled later without taking all down (no VFIO_IRQ_INFO_NORESIZE). */
  readonly dynamic: boolean;
  readonly log: DeviceLog;
}

export class MessageVectors {
  readonly #parts: MessageVectorParts;
  readonly #bound: (MsiVector | null)[];
  /** Vectors whose eventfd VFIO knows. */
  readonly #armed: boolean[];
  /** Host vectors that VFIO has enabled; 0: the index is down. */
  #hostCount = 0;
  #requesterId = 0;
  #open = true;

  constructor(parts: MessageVectorParts) {
    this.#parts = parts;
    this.#bound = new Array<MsiVector | null>(parts.guest.count).fill(null);
    this.#armed = new Array<boolean>(parts.guest.count).fill(false);
  }

  attachedAs(requesterId: number): void {
    this.#requesterId = requesterId;
  }

  /** What this vector sends may have changed. */
  changed(vector: number): void {
    if (!this.#parts.guest.enabled) return;
    this.#apply(vector);
    if (this.#bound[vector] !== null && !this.#armed[vector]) this.#arm(vector);
    this.#parts.irq.commit();
    this.#sendHeld(vector);
  }

  /** All of them: after a load, or when the guest has switched the capability on. */
  applyAll(): void {
    if (!this.#parts.guest.enabled) return;
    for (let v = 0; v < this.#bound.length; v++) this.#apply(v);
    this.#armAll();
    this.#parts.irq.commit();
    for (let v = 0; v < this.#bound.length; v++) this.#sendHeld(v);
  }

  /** The guest switched the capability off, or the machine was reset: nothing is kept. */
  down(): void {
    if (this.#hostCount > 0) this.#vfio(() => this.#parts.vfio.disable(this.#parts.index));
    this.#hostCount = 0;
    this.#armed.fill(false);
    let released = false;
    for (let v = 0; v < this.#bound.length; v++) {
      this.#bound[v]?.release();
      released ||= this.#bound[v] !== null;
      this.#bound[v] = null;
    }
    if (released) this.#parts.irq.commit();
  }

  /** After a device reset: VFIO is told everything anew, the guest's and KVM's side stay. */
  rearm(): void {
    if (this.#hostCount > 0) this.#vfio(() => this.#parts.vfio.disable(this.#parts.index));
    this.#hostCount = 0;
    this.#armed.fill(false);
    if (this.#parts.guest.enabled)
      this.#hostCount = this.#enable(Math.min(this.#parts.firstCount(), this.#bound.length));
    for (let v = 0; v < this.#bound.length; v++) if (this.#bound[v] !== null && !this.#armed[v]) this.#arm(v);
  }

  /** De-assigns the irqfds, which flushes them; what arrives from now on, or was masked, becomes a pending bit. */
  detach(): void {
    this.#open = false;
    for (const bound of this.#bound) bound?.mask();
    this.#parts.irq.commit();
    this.notePending();
  }

  attach(): void {
    this.#open = true;
    this.applyAll();
  }

  /** Masked vectors' eventfd counts become pending bits. Before a PBA read and before a save. */
  notePending(): void {
    const { guest } = this.#parts;
    for (let v = 0; v < this.#bound.length; v++) {
      const bound = this.#bound[v] ?? null;
      if (bound === null || (this.#open && guest.message(v) !== null)) continue;
      if (bound.takePending()) guest.setPending(v, true);
    }
  }

  #apply(vector: number): void {
    const { guest, irq } = this.#parts;
    const message = guest.message(vector);
    const bound = this.#bound[vector] ?? null;
    if (message === null) {
      bound?.mask();
      return;
    }
    const target = bound ?? irq.msi(this.#requesterId);
    this.#bound[vector] = target;
    target.route(message.address, message.data);
    if (this.#open) target.unmask();
    else target.mask();
  }

  /** Raised while masked, unmasked now: it is sent. PCI 3.0, 6.8.3.5. */
  #sendHeld(vector: number): void {
    const { guest } = this.#parts;
    const bound = this.#bound[vector] ?? null;
    if (!this.#open || bound === null || !guest.pending(vector) || guest.message(vector) === null) return;
    guest.setPending(vector, false);
    bound.trigger();
  }

  /** Enables the index even when no vector is in use yet: a device may look at its own enable bit long before it raises one (QEMU's
   *  nvme does when a queue is made). */
  #armAll(): void {
    const highest = this.#bound.findLastIndex((bound) => bound !== null);
    const wanted = Math.min(Math.max(highest + 1, this.#parts.firstCount()), this.#bound.length);
    if (this.#hostCount === 0) this.#hostCount = this.#enable(wanted);
    for (let v = 0; v < this.#bound.length; v++) if (this.#bound[v] !== null && !this.#armed[v]) this.#arm(v);
  }

  /** Gives VFIO the vector's eventfd; enables the index with the first one, and again with more where it cannot grow. */
  #arm(vector: number): void {
    const { dynamic } = this.#parts;
    if (this.#hostCount > 0 && (vector < this.#hostCount || dynamic)) {
      this.#trigger(vector, [this.#eventFd(vector)]);
      this.#hostCount = Math.max(this.#hostCount, vector + 1);
      return;
    }
    if (this.#hostCount > 0) {
      this.#vfio(() => this.#parts.vfio.disable(this.#parts.index));
      this.#armed.fill(false);
    }
    const wanted = Math.min(Math.max(vector + 1, this.#parts.firstCount()), this.#bound.length);
    this.#hostCount = this.#enable(wanted);
  }

  /** How many were enabled: the host may have fewer vectors than the device. */
  #enable(wanted: number): number {
    const fds = Array.from({ length: wanted }, (_, v) => this.#eventFd(v));
    const had = this.#trigger(0, fds);
    if (had === 0) return wanted;
    if (had >= wanted || had < 0) return 0;
    this.#parts.log.warn({ wanted, had }, 'the host has fewer interrupt vectors free than the guest uses');
    return this.#trigger(0, fds.slice(0, had)) === 0 ? had : 0;
  }

  #eventFd(vector: number): number | null {
    return this.#bound[vector]?.eventFd ?? null;
  }

  /** 0: done. Else what VFIO_DEVICE_SET_IRQS answered; -1: it failed. */
  #trigger(start: number, fds: readonly (number | null)[]): number {
    let result = -1;
    this.#vfio(() => {
      result = this.#parts.vfio.trigger(this.#parts.index, start, fds);
    });
    if (result === 0) {
      for (let i = 0; i < fds.length; i++) this.#armed[start + i] = fds[i] !== null;
    }
    return result;
  }

  /** What the host refuses here the guest cannot mend: it is logged, the vector stays silent. */
  #vfio(call: () => void): void {
    try {
      call();
    } catch (error) {
      if (!(error instanceof SysError)) throw error;
      this.#parts.log.warn({ err: error, index: this.#parts.index }, 'VFIO refused an interrupt change');
    }
  }
}
