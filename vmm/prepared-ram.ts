// Guest RAM that is allocated before its machine is known: `ferry receive --memory SIZE --preallocate` does it while it waits, so that the
// guest does not wait for it in the move (2 GiB take a second and more). Made by cli/receive.ts, taken by machine.ts, once. JS thread.
import { type GuestRam, kvmNode } from '../native/addon.ts';

export class PreparedRam {
  #ram: GuestRam | null;

  private constructor(ram: GuestRam) {
    this.#ram = ram;
  }

  static async of(size: number): Promise<PreparedRam> {
    const ram = kvmNode().createRam(size, { hugePages: true, populate: false });
    try {
      await ram.populate(0, size);
    } catch (error) {
      ram.close();
      throw error;
    }
    return new PreparedRam(ram);
  }

  /** The caller closes it from now on. null: it was taken before, or the machine has another size. */
  take(size: number): GuestRam | null {
    const ram = this.#ram;
    if (ram === null || ram.size !== size) return null;
    this.#ram = null;
    return ram;
  }

  close(): void {
    this.#ram?.close();
    this.#ram = null;
  }
}
