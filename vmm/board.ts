// The board of a machine: bus, platform devices, PCI bus 0 and what --device put on it. Built once by machine.ts; JS thread. The order
// of `devices` is the order in which states are saved and loaded: platform first, then PCI functions by slot.
import type { Device, DeviceHost, PciFunction } from '../devices/contract.ts';
import { isPciFunction } from '../devices/pci/function.ts';
import { HostBridge } from '../devices/pci/host-bridge.ts';
import { DebugExit } from '../devices/platform/debug-exit.ts';
import { KeyboardController } from '../devices/platform/i8042.ts';
import { PowerManagement } from '../devices/platform/pm.ts';
import { Pvpanic } from '../devices/platform/pvpanic.ts';
import { ResetControl } from '../devices/platform/reset-control.ts';
import { Rtc } from '../devices/platform/rtc.ts';
import { Serial } from '../devices/platform/serial.ts';
import { VmmError } from '../native/errno.ts';
import type { DeviceRegistryView, MachineConfig } from './api.ts';
import type { Reserved } from './bus.ts';
import {
  ECAM,
  GSI,
  HIGH_RAM_BASE,
  IDENTITY_MAP_ADDR,
  IOAPIC_BASE,
  LOW_RAM_END,
  MSI_WINDOW,
  PORT,
  pciGsi,
  ramSpans,
} from './layout.ts';

const PAGE = 4096;
/** The identity map page and KVM's three TSS pages. */
const KVM_PAGES = 4;

export interface BoardOptions {
  readonly host: DeviceHost;
  readonly config: MachineConfig;
  readonly registry: DeviceRegistryView;
  readonly consoleOut: (bytes: Uint8Array) => void;
}

/** Where no device may be placed by the guest. */
export function reservedRanges(memory: number): Reserved[] {
  return [
    ...ramSpans(memory).map((span) => ({ name: 'guest RAM', start: span.gpa, end: span.gpa + span.size })),
    { name: 'the IOAPIC', start: IOAPIC_BASE, end: IOAPIC_BASE + PAGE },
    { name: 'the local APICs', ...MSI_WINDOW },
    { name: "KVM's own pages", start: IDENTITY_MAP_ADDR, end: IDENTITY_MAP_ADDR + KVM_PAGES * PAGE },
  ];
}

export class Board {
  readonly devices: readonly Device[];
  readonly serial: Serial;
  readonly #pm: PowerManagement;

  private constructor(devices: readonly Device[], serial: Serial, pm: PowerManagement) {
    this.devices = devices;
    this.serial = serial;
    this.#pm = pm;
  }

  /** Devices may open host resources, so this may fail half-way: then everything made so far is closed again. */
  static async build(options: BoardOptions): Promise<Board> {
    const made: Device[] = [];
    try {
      return await Board.#assemble(options, made);
    } catch (error) {
      for (const device of made.reverse()) await device.close();
      throw error;
    }
  }

  static async #assemble(options: BoardOptions, made: Device[]): Promise<Board> {
    const { host, config } = options;
    const keep = <T extends Device>(device: T): T => {
      made.push(device);
      for (const claim of device.claims) host.bus.claim(claim);
      return device;
    };
    const serial = keep(
      new Serial({
        id: 'serial0',
        bus: host.bus,
        base: PORT.com1,
        line: host.irq.line(GSI.com1),
        out: options.consoleOut,
        log: host.log,
      }),
    );
    keep(
      new Rtc({
        base: PORT.rtc,
        line: host.irq.line(GSI.rtc),
        lowMemory: Math.min(config.memory, LOW_RAM_END),
        highMemory: memoryAbove4G(config.memory),
        now: Date.now,
      }),
    );
    keep(new KeyboardController(host, PORT.i8042Data, PORT.i8042Command));
    const resetControl = keep(new ResetControl(host, PORT.systemControlA));
    const pm = keep(
      new PowerManagement({
        host,
        eventPort: PORT.pm1Event,
        controlPort: PORT.pm1Control,
        sci: host.irq.line(GSI.sci),
      }),
    );
    keep(new Pvpanic(host, PORT.pvpanic));
    if (config.debugExit) keep(new DebugExit(host, PORT.debugExit));
    const bridge = keep(
      new HostBridge({
        configPort: PORT.pciConfigAddress,
        ecam: { base: ECAM.base, size: ECAM.size },
        gsi: (slot) => pciGsi(slot, 0),
        resetControl,
      }),
    );
    const platform = [...made];
    const others = await plug(options, keep, bridge);
    return new Board([...platform, ...others, ...bridge.functions], serial, pm);
  }

  powerButton(): void {
    this.#pm.powerButton();
  }

  /** From the last made to the first: functions before the bridge that they sit on. */
  async close(): Promise<void> {
    for (const device of [...this.devices].reverse()) await device.close();
  }
}

/** Makes what --device names; PCI functions get their slots, the others are returned. */
async function plug(
  options: BoardOptions,
  keep: <T extends Device>(device: T) => T,
  bridge: HostBridge,
): Promise<Device[]> {
  const functions: { function: PciFunction; slot: number | null }[] = [];
  const others: Device[] = [];
  for (const wanted of options.config.devices) {
    const type = options.registry.get(wanted.type);
    if (type === null) {
      throw new VmmError('no-such-device', `'${wanted.type}' is not a valid device model name; load its --plugin`);
    }
    const device = keep(await type.create(options.host, wanted.id, wanted.properties));
    if (isPciFunction(device)) functions.push({ function: device, slot: wanted.slot });
    else others.push(device);
  }
  bridge.attach(functions);
  return others;
}

function memoryAbove4G(memory: number): number {
  return ramSpans(memory)
    .filter((span) => span.gpa >= HIGH_RAM_BASE)
    .reduce((sum, span) => sum + span.size, 0);
}
