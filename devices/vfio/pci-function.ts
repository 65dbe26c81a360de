// The guest-visible device of a passed-through PCI function. Built by pci-type.ts over a VfioTransport; called by the host bridge
// (configuration), the bus (trapped BAR bytes) and the machine (reset, gate, state). JS thread.
// Order of what a load puts back: configuration bytes, MSI-X table, PCI_COMMAND, VFIO interrupts - all while the device is RESUMING.
import { StateError, SysError } from '../../native/errno.ts';
import type {
  DeviceHost,
  DirtySource,
  InterruptGate,
  Migratable,
  PciAddress,
  PciFunction,
  Stateful,
  Width,
} from '../contract.ts';
import { Bars } from '../pci/bars.ts';
import { HEADER } from '../pci/config-space.ts';
import { MsiCapability } from '../pci/msi.ts';
import { Msix } from '../pci/msix.ts';
import { FunctionConfig } from './function-config.ts';
import type { PeerBars } from './peer-bars.ts';
import { barsOf, type DeviceBar, type MsixWindow } from './regions.ts';
import { type ResetHost, resetDevice } from './reset.ts';
import type { VfioTransport } from './transport.ts';
import { Vectors } from './vectors.ts';

const STATE_VERSION = 1;

export interface VfioPciParts {
  readonly host: DeviceHost;
  readonly id: string;
  readonly transport: VfioTransport;
  /** false: x-no-mmap. */
  readonly mmap: boolean;
  /** false: every access goes through `transport` (a trace). */
  readonly vcpuAccess: boolean;
  /** Null: no other device reaches its BARs. */
  readonly peers: PeerBars | null;
  readonly dirty: DirtySource;
  /** Made over this function, because the ladder needs its rearm(). */
  live(device: VfioPciFunction): Migratable;
  /** Called once, after the device was closed. */
  closed(): void;
}

export class VfioPciFunction implements PciFunction {
  readonly id: string;
  readonly type = 'vfio-pci';
  readonly claims = [];
  readonly live: Migratable;
  readonly dirty: DirtySource;
  readonly interrupts: InterruptGate;
  readonly state: Stateful = {
    version: STATE_VERSION,
    save: () => this.#save(),
    load: (state, version) => this.#load(state, version),
  };
  readonly #host: DeviceHost;
  readonly #transport: VfioTransport;
  readonly #config: FunctionConfig;
  readonly #bars: Bars;
  readonly #deviceBars: readonly DeviceBar[];
  readonly #msi: MsiCapability | null;
  readonly #msix: Msix | null;
  readonly #vectors: Vectors;
  readonly #powerOn: Uint8Array;
  readonly #peers: PeerBars | null;
  readonly #closed: () => void;
  /** Whether this thread must see the guest's accesses: as long as the line is unmasked by it. */
  #hooked = false;
  #isOpen = true;

  constructor(parts: VfioPciParts) {
    const { host, id, transport } = parts;
    this.id = id;
    this.dirty = parts.dirty;
    this.#closed = () => parts.closed();
    this.#host = host;
    this.#transport = transport;
    this.#peers = parts.peers;
    const config = new FunctionConfig(transport);
    this.#config = config;
    const changed = (mode: 'msi' | 'msix') => (vector: number) => this.#vectors.changed(mode, vector);
    this.#msi = config.msi === null ? null : new MsiCapability(config.space, config.msi, changed('msi'));
    this.#msix = config.msix === null ? null : new Msix(config.space, config.msix, changed('msix'));
    this.#vectors = new Vectors({ host, vfio: transport.irqs, info: transport.info, msi: this.#msi, msix: this.#msix });
    this.interrupts = this.#vectors;
    const window = this.#window();
    this.#bars = new Bars(config.space, host.bus, host.log);
    const vectors = this.#vectors;
    const barHost = {
      ...{ id, transport, slots: host.slots, window, mmap: parts.mmap, vcpuAccess: parts.vcpuAccess },
      peers: parts.peers,
      get beforeAccess() {
        return vectors.beforeAccess;
      },
    };
    this.#deviceBars = barsOf(barHost, config.raw);
    for (const bar of this.#deviceBars) this.#bars.add(bar.spec);
    this.#powerOn = config.space.save();
    this.live = parts.live(this);
    // The guest starts with bus mastering and interrupts off, whatever the host left.
    this.#pushCommand();
    this.#peers?.joined();
  }

  attached(address: PciAddress): void {
    this.#vectors.attachedAs((address.bus << 8) | (address.slot << 3) | address.function, address.gsi);
    this.#followLine();
  }

  readConfig(offset: number, width: Width): number {
    return this.#config.read(offset, width);
  }

  writeConfig(offset: number, width: Width, value: number): void {
    const command = offset < HEADER.command + 2 && offset + width > HEADER.command;
    const before = command ? this.#config.space.read(HEADER.command, 2) : 0;
    this.#config.write(offset, width, value);
    if (command && this.#config.space.read(HEADER.command, 2) !== before) {
      this.#pushCommand();
      this.#bars.update();
    } else if (this.#bars.touches(offset, width)) this.#bars.update();
    this.#msi?.afterWrite(offset, width);
    this.#msix?.afterWrite(offset, width);
    this.#vectors.update();
    this.#followLine();
  }

  /** What VFIO_DEVICE_RESET took away, put back: PCI_COMMAND and the interrupts, as the guest has them. */
  rearm(): void {
    this.#pushCommand();
    this.#vectors.rearm();
    this.#followLine();
  }

  /** Machine reset: the device as after power-on. */
  async reset(): Promise<void> {
    this.#vectors.down();
    this.#bars.close();
    this.#config.space.restore(this.#powerOn);
    // Ends DMA at once, whatever the reset below can do.
    this.#pushCommand();
    this.#msi?.refresh();
    this.#msix?.reset();
    await resetDevice(this.resetHost);
    this.#pushCommand();
    this.#vectors.update();
    this.#followLine();
  }

  get resetHost(): ResetHost {
    return { transport: this.#transport, log: this.#host.log };
  }

  async close(): Promise<void> {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    this.#vectors.down();
    this.#bars.close();
    this.#peers?.left();
    await this.#peers?.settled();
    for (const bar of this.#deviceBars) bar.close();
    await this.#transport.close();
    this.#closed();
  }

  #followLine(): void {
    const hooked = this.#vectors.beforeAccess !== null;
    if (hooked === this.#hooked) return;
    this.#hooked = hooked;
    this.#bars.refreshFast();
  }

  #pushCommand(): void {
    try {
      this.#config.pushCommand();
    } catch (error) {
      if (!(error instanceof SysError)) throw error;
      this.#host.log.warn({ err: error, device: this.id }, 'PCI_COMMAND cannot be written');
    }
  }

  #window(): MsixWindow | null {
    const shape = this.#config.msix;
    const msix = this.#msix;
    if (shape === null || msix === null) return null;
    return { shape, msix, beforePbaRead: () => this.#vectors.notePending() };
  }

  #save(): unknown {
    this.#vectors.notePending();
    return {
      config: this.#config.space.save(),
      msi: this.#msi?.save() ?? null,
      msix: this.#msix?.save() ?? null,
      interrupts: this.#vectors.mode,
    };
  }

  /** All is judged before anything is changed. */
  #load(state: unknown, version: number): void {
    if (version !== STATE_VERSION) {
      throw new StateError(`${this.id}: version ${version} of its state is unknown, ${STATE_VERSION} is known`);
    }
    const { config, msi, msix } = (state ?? {}) as Record<string, unknown>;
    const bytes = this.#config.space.check(config);
    if ((msi === null) !== (this.#msi === null) || (msix === null) !== (this.#msix === null)) {
      throw new StateError(`${this.id}: its MSI capabilities are not those of this device`);
    }
    const msiState = this.#msi?.check(msi) ?? null;
    const msixState = this.#msix?.check(msix) ?? null;
    this.#bars.close();
    this.#vectors.load(() => {
      this.#config.space.restore(bytes);
      if (msiState !== null) this.#msi?.restore(msiState);
      if (msixState !== null) this.#msix?.restore(msixState);
      // PCI_COMMAND before the interrupts, as it is after a boot.
      this.#pushCommand();
    });
    // After the interrupts: who reaches the BARs depends on them.
    this.#bars.update();
    this.#followLine();
  }
}
