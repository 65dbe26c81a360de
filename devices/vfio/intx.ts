// The legacy interrupt of a passed-through function: VFIO masks the line when it fires, KVM's resample irqfd unmasks it at the guest's
// EOI. Called by vectors.ts. The level itself lives in the device: whatever was lost on the way down comes again on unmask.
// Where the kernel cannot unmask by eventfd (mdev samples), this thread does: when it hears of the EOI, or before the guest's next access.
// KVM api.rst, KVM_IRQFD_FLAG_RESAMPLE; linux/vfio.h, VFIO_IRQ_INFO_AUTOMASKED; PCI 3.0, 2.2.6
import { SysError } from '../../native/errno.ts';
import type { DeviceHost, LevelIrqFd } from '../contract.ts';
import type { VfioIrqs } from './transport.ts';

const INTX_INDEX = 0;

export type IntxHost = Pick<DeviceHost, 'irq' | 'watch' | 'log'>;

export class Intx {
  readonly #host: IntxHost;
  readonly #vfio: VfioIrqs;
  readonly #gsi: number;
  #line: LevelIrqFd | null = null;
  /** Of the EOI, where the kernel cannot unmask by eventfd. */
  #watch: { close(): void } | null = null;
  #open = true;

  constructor(host: IntxHost, vfio: VfioIrqs, gsi: number) {
    this.#host = host;
    this.#vfio = vfio;
    this.#gsi = gsi;
  }

  get isUp(): boolean {
    return this.#line !== null;
  }

  up(): void {
    if (this.#line !== null) return;
    const line = this.#host.irq.levelIrqFd(this.#gsi);
    this.#line = line;
    if (this.#open) line.unmask();
    this.#arm(line);
  }

  down(): void {
    const line = this.#line;
    if (line === null) return;
    this.#line = null;
    this.#watch?.close();
    this.#watch = null;
    this.#quietly(() => this.#vfio.disable(INTX_INDEX));
    line.mask();
    line.release();
  }

  rearm(): void {
    const line = this.#line;
    if (line === null) return;
    this.#watch?.close();
    this.#watch = null;
    this.#quietly(() => this.#vfio.disable(INTX_INDEX));
    this.#arm(line);
  }

  detach(): void {
    this.#open = false;
    this.#line?.mask();
  }

  /** The irqfd's level went with it, and VFIO may still hold the line masked: unmasked, it fires again if the device asserts. */
  attach(): void {
    this.#open = true;
    if (this.#line === null) return;
    this.#line.unmask();
    this.#unmask();
  }

  /**
   * What to do before an access of the guest reaches the device; null: nothing. Where this thread unmasks, an EOI may be on its way to it, and what
   * the access makes the device raise would meet the mask of the last time: a real line is still high when that goes, mtty forgets it.
   */
  get beforeAccess(): (() => void) | null {
    return this.#watch === null ? null : this.#takeEoi;
  }

  readonly #takeEoi = () => {
    if (this.#line?.takeResample()) this.#unmask();
  };

  #unmask(): void {
    this.#quietly(() => this.#vfio.unmask(INTX_INDEX, 0));
  }

  #arm(line: LevelIrqFd): void {
    this.#quietly(() => {
      this.#vfio.trigger(INTX_INDEX, 0, [line.eventFd]);
    });
    try {
      this.#vfio.unmaskBy(INTX_INDEX, 0, line.resampleFd);
    } catch (error) {
      if (!(error instanceof SysError)) throw error;
      this.#watch = this.#host.watch(line.resampleFd, () => this.#unmask());
    }
  }

  #quietly(call: () => void): void {
    try {
      call();
    } catch (error) {
      if (!(error instanceof SysError)) throw error;
      this.#host.log.warn({ err: error }, 'VFIO refused an INTx change');
    }
  }
}
