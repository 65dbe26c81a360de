// All interrupts of one passed-through function: which of INTx, MSI and MSI-X the guest has switched on, and the gate of a pause.
// Called by pci-function.ts after configuration and table writes, and by the machine through InterruptGate.
// PCI 3.0, 6.8.1.3 and 6.8.2.3: while MSI or MSI-X is on the function must not use INTx; MSI and MSI-X are never on together.
import type { InterruptGate } from '../contract.ts';
import type { MsiCapability } from '../pci/msi.ts';
import type { Msix } from '../pci/msix.ts';
import { Intx, type IntxHost } from './intx.ts';
import { MessageVectors } from './message-vectors.ts';
import type { VfioInfo, VfioIrqs } from './transport.ts';

const INTX_INDEX = 0;
const MSI_INDEX = 1;
const MSIX_INDEX = 2;

export type InterruptMode = 'none' | 'intx' | 'msi' | 'msix';

export interface VectorsParts {
  readonly host: IntxHost;
  readonly vfio: VfioIrqs;
  readonly info: VfioInfo;
  readonly msi: MsiCapability | null;
  readonly msix: Msix | null;
}

export class Vectors implements InterruptGate {
  readonly #parts: VectorsParts;
  readonly #msi: MessageVectors | null;
  readonly #msix: MessageVectors | null;
  #intx: Intx | null = null;
  #mode: InterruptMode = 'none';
  /** While a state is put in place single changes are not acted upon: applyAll() comes. */
  #quiet = false;
  #open = true;

  constructor(parts: VectorsParts) {
    this.#parts = parts;
    const { host, vfio, msi, msix } = parts;
    const common = { irq: host.irq, vfio, log: host.log };
    this.#msi =
      msi === null
        ? null
        : new MessageVectors({
            ...common,
            index: MSI_INDEX,
            guest: msi,
            firstCount: () => msi.allowed,
            dynamic: false,
          });
    const dynamic = !(parts.info.irqs.find((irq) => irq.index === MSIX_INDEX)?.noResize ?? true);
    this.#msix =
      msix === null
        ? null
        : new MessageVectors({
            ...common,
            index: MSIX_INDEX,
            guest: msix,
            // What cannot grow later is enabled whole: growing would take all vectors down for a moment and lose what comes then.
            firstCount: () => (dynamic ? 1 : msix.count),
            dynamic,
          });
  }

  get mode(): InterruptMode {
    return this.#mode;
  }

  /** `gsi`: where INTA# of the slot goes. */
  attachedAs(requesterId: number, gsi: number): void {
    this.#msi?.attachedAs(requesterId);
    this.#msix?.attachedAs(requesterId);
    const lines = this.#parts.info.irqs.find((irq) => irq.index === INTX_INDEX)?.count ?? 0;
    if (lines > 0) {
      this.#intx = new Intx(this.#parts.host, this.#parts.vfio, gsi);
      if (!this.#open) this.#intx.detach();
    }
    this.update();
  }

  changed(mode: 'msi' | 'msix', vector: number): void {
    if (this.#quiet) return;
    if (mode === this.#mode) this.#active?.changed(vector);
  }

  /** After a configuration write: the guest may have switched from one kind to another. */
  update(): void {
    const mode = this.#wanted();
    if (mode === this.#mode || this.#quiet) return;
    this.#takeDown();
    this.#mode = mode;
    if (mode === 'intx') this.#intx?.up();
    else this.#active?.applyAll();
  }

  notePending(): void {
    this.#active?.notePending();
  }

  /** What to do before an access of the guest reaches the device; null: nothing. */
  get beforeAccess(): (() => void) | null {
    return this.#mode === 'intx' ? (this.#intx?.beforeAccess ?? null) : null;
  }

  detach(): void {
    this.#open = false;
    this.#intx?.detach();
    this.#msi?.detach();
    this.#msix?.detach();
  }

  attach(): void {
    this.#open = true;
    this.#intx?.attach();
    this.#msi?.attach();
    this.#msix?.attach();
  }

  rearm(): void {
    if (this.#mode === 'intx') this.#intx?.rearm();
    else this.#active?.rearm();
  }

  /** Runs `change`, which may touch every vector, and acts on the outcome once. The gate stays shut until attach(). */
  load(change: () => void): void {
    this.#takeDown();
    this.detach();
    this.#quiet = true;
    try {
      change();
    } finally {
      this.#quiet = false;
    }
    this.update();
  }

  /** Everything off at VFIO and KVM: machine reset, close. */
  down(): void {
    this.#takeDown();
  }

  get #active(): MessageVectors | null {
    if (this.#mode === 'msi') return this.#msi;
    return this.#mode === 'msix' ? this.#msix : null;
  }

  #takeDown(): void {
    if (this.#mode === 'intx') this.#intx?.down();
    else this.#active?.down();
    this.#mode = 'none';
  }

  #wanted(): InterruptMode {
    if (this.#parts.msix?.enabled) return 'msix';
    if (this.#parts.msi?.enabled) return 'msi';
    return this.#intx === null ? 'none' : 'intx';
  }
}
