// The differentiated definition block: what the guest cannot find by probing. Sleep state S5, the PCI root with its windows and
// interrupt lines, COM1, the RTC and pvpanic. Called by tables.ts; addresses come from vmm/layout.ts. Spec: ACPI 6.4, 5.2.11.1, 6 and 7.
import { S5_SLEEP_TYPE } from '../../devices/platform/pm.ts';
import { ECAM, GSI, MMIO32, mmio64, PCI_IO, PORT, pciGsi } from '../layout.ts';
import {
  type Aml,
  busNumbers,
  device,
  eisaId,
  integer,
  ioPorts,
  ioWindow,
  isaIrq,
  list,
  memoryWindow32,
  memoryWindow64,
  name,
  resources,
  scope,
  string,
} from './aml.ts';

const SLOTS = 32;
const PINS = [0, 1, 2, 3] as const;

/** `memory`: bytes of guest RAM, on which the 64-bit window depends. */
export function dsdtBody(memory: number): Uint8Array {
  return Uint8Array.from([
    ...name('\\_S5', list(integer(S5_SLEEP_TYPE), integer(0), integer(0), integer(0))),
    ...scope('\\_SB', pciRoot(memory)),
    ...scope('\\_SB.PCI0', comPort(), realTimeClock(), panicDevice()),
  ]);
}

function pciRoot(memory: number): Aml {
  const high = mmio64(memory);
  return device(
    'PCI0',
    name('_HID', eisaId('PNP0A08')),
    name('_CID', eisaId('PNP0A03')),
    name('_SEG', integer(0)),
    name('_BBN', integer(ECAM.startBus)),
    name('_UID', integer(0)),
    name(
      '_CRS',
      resources(
        busNumbers({ start: ECAM.startBus, end: ECAM.endBus + 1 }),
        ioPorts(PORT.pciConfigAddress, 8),
        ioWindow(PCI_IO),
        memoryWindow32(MMIO32),
        ...(high.end > high.start ? [memoryWindow64(high)] : []),
      ),
    ),
    name('_PRT', list(...routes())),
  );
}

/** Address, pin, no link device, GSI: wired for good. _PRT, 6.2.13. */
function routes(): Aml[] {
  return Array.from({ length: SLOTS }, (_, slot) =>
    PINS.map((pin) => list(integer(slot * 0x1_0000 + 0xffff), integer(pin), integer(0), integer(pciGsi(slot, pin)))),
  ).flat();
}

function comPort(): Aml {
  return device(
    'COM1',
    name('_HID', eisaId('PNP0501')),
    name('_UID', integer(1)),
    name('_STA', integer(0xf)),
    name('_CRS', resources(ioPorts(PORT.com1, 8), isaIrq(GSI.com1))),
  );
}

function realTimeClock(): Aml {
  return device('RTC', name('_HID', eisaId('PNP0B00')), name('_CRS', resources(ioPorts(PORT.rtc, 2), isaIrq(GSI.rtc))));
}

/** Linux's pvpanic-mmio binds to this name; "QEMU" is the device's inventor, QEMU docs/specs/pvpanic. */
function panicDevice(): Aml {
  return device(
    'PEVT',
    name('_HID', string('QEMU0001')),
    name('_STA', integer(0xf)),
    name('_CRS', resources(ioPorts(PORT.pvpanic, 1))),
  );
}
