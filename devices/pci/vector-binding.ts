// Ties the guest's view of an emulated function's vectors (guest-vectors.ts) to the machine's (MsiVector). Used by simple-function.ts;
// passed-through devices have their own (vfio's vectors.ts), because there the device raises them.
// Holds the gate of a pause: from detach() on a raised vector is only noted as pending, so that a save takes it along.
import type { InterruptGate, IrqPort, MsiVector } from '../contract.ts';
import type { GuestVectors } from './guest-vectors.ts';

export class VectorBinding implements InterruptGate {
  readonly #irq: IrqPort;
  readonly #guest: GuestVectors;
  readonly #vectors: (MsiVector | null)[];
  #requesterId = 0;
  #open = true;

  constructor(irq: IrqPort, guest: GuestVectors) {
    this.#irq = irq;
    this.#guest = guest;
    this.#vectors = new Array<MsiVector | null>(guest.count).fill(null);
  }

  attachedAs(requesterId: number): void {
    this.#requesterId = requesterId;
  }

  /** The guest changed what this vector sends. Routes it; what was held back is sent. */
  changed(vector: number): void {
    const unused = (this.#vectors[vector] ?? null) === null && this.#guest.message(vector) === null;
    if (!this.#open || unused) return;
    this.#apply(vector);
    this.#irq.commit();
    this.#sendHeld(vector);
  }

  /** Sends the vector's message, or keeps it pending while it is masked. */
  raise(vector: number): void {
    const guest = this.#guest;
    if (vector < 0 || vector >= guest.count || !guest.enabled) return;
    const bound = this.#vectors[vector] ?? null;
    if (this.#open && bound !== null && guest.message(vector) !== null) bound.trigger();
    else guest.setPending(vector, true);
  }

  detach(): void {
    if (!this.#open) return;
    this.#open = false;
    for (let v = 0; v < this.#vectors.length; v++) {
      const bound = this.#vectors[v] ?? null;
      if (bound === null) continue;
      bound.mask();
    }
    this.#irq.commit();
    // De-assigned now, so what the eventfds still hold was never injected.
    for (let v = 0; v < this.#vectors.length; v++) {
      if (this.#vectors[v]?.takePending()) this.#guest.setPending(v, true);
    }
  }

  attach(): void {
    this.#open = true;
    for (let v = 0; v < this.#vectors.length; v++) this.#apply(v);
    this.#irq.commit();
    for (let v = 0; v < this.#vectors.length; v++) this.#sendHeld(v);
  }

  /** Host resources go back; the guest's view stays. */
  release(): void {
    for (let v = 0; v < this.#vectors.length; v++) {
      this.#vectors[v]?.release();
      this.#vectors[v] = null;
    }
    this.#irq.commit();
  }

  #apply(vector: number): void {
    const message = this.#guest.message(vector);
    const bound = this.#vectors[vector] ?? null;
    if (message === null) {
      bound?.mask();
      return;
    }
    const target = bound ?? this.#irq.msi(this.#requesterId);
    this.#vectors[vector] = target;
    target.route(message.address, message.data);
    target.unmask();
  }

  #sendHeld(vector: number): void {
    const bound = this.#vectors[vector] ?? null;
    if (bound === null || !this.#guest.pending(vector) || this.#guest.message(vector) === null) return;
    this.#guest.setPending(vector, false);
    bound.trigger();
  }
}
