// A Machine that is nothing but RAM (the addon's memfd and bitmaps) and a run state: what a migration of RAM alone needs. For tests against
// a real QEMU and for measuring; no KVM.
import type { DirtySourceKind } from '../../devices/contract.ts';
import { type GuestRam, kvmNode, type PageBitmap } from '../../native/addon.ts';
import type { DirtyTracker, Machine, RunState } from '../../vmm/api.ts';
import { diaryConfig } from './migration-pair.ts';

class FullOnce implements DirtyTracker {
  readonly #pages: number;
  #bitmap: PageBitmap | null = null;
  readonly coarseBytes = 0;
  readonly sources: readonly DirtySourceKind[] = [];
  constructor(pages: number) {
    this.#pages = pages;
  }
  async start(): Promise<void> {
    this.#bitmap = kvmNode().createBitmap(this.#pages);
    this.#bitmap.fill();
  }
  async collect(): ReturnType<DirtyTracker['collect']> {
    const pages = {
      kvm: null,
      vmm: null,
      deviceLog: null,
      region: null,
      container: null,
      iommufd: null,
      allOfRam: null,
    };
    return { bitmap: this.#bitmap!, pages, failed: [] };
  }
  async stop(): Promise<void> {
    this.#bitmap?.close();
    this.#bitmap = null;
  }
}

export function ramMachine(size: number, state: RunState): Machine & { readonly ram: GuestRam } {
  const ram = kvmNode().createRam(size, { hugePages: false, populate: false });
  let now = state;
  return {
    config: diaryConfig([], size / 4096),
    get state() {
      return now;
    },
    ram,
    ramRanges: [{ gpa: 0, size, slice: { ram, offset: 0, size } }],
    devices: [],
    cpuContract: { cpuid: [], xcr0: 7n, xsaveSize: 832, msrs: [], tscKhz: 1 },
    dirty: new FullOnce(size / 4096),
    ended: new Promise(() => undefined),
    start: async () => {
      now = 'running';
    },
    pause: async (into) => {
      now = into;
    },
    detachInterrupts: () => undefined,
    attachInterrupts: () => undefined,
    saveCore: () => ({}),
    loadCore: () => undefined,
    clockAfterPause: () => undefined,
    setState: (next) => {
      now = next;
    },
    reset: async () => undefined,
    powerdown: () => undefined,
    end: () => undefined,
    close: async () => ram.close(),
    on: () => ({ remove: () => undefined }),
  };
}
