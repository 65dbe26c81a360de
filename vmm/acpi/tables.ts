// Builds the ACPI tables and writes them into the BIOS area, where a guest finds the RSDP by scanning if the boot protocol does not
// name it. Called by vmm/boot/load.ts at power-on and reset. Spec: ACPI 6.4, 5.2; PCI Firmware 3.2, 4.1.2 (MCFG).
import type { RamImage } from '../boot/ram-image.ts';
import { ECAM, GSI, IOAPIC_BASE, LAPIC_BASE, PORT } from '../layout.ts';
import { dsdtBody } from './dsdt.ts';

/** "On 16-byte boundaries in the BIOS read-only memory space between 0E0000h and 0FFFFFh". 5.2.5.1 */
export const RSDP_ADDRESS = 0xe0000;
const TABLES_END = 0x100000;
const HEADER = 36;
const OEM = 'FERRY ';
const OEM_TABLE = 'FERRYPC ';
const CREATOR = 'FERY';

export interface AcpiTable {
  readonly address: number;
  readonly bytes: Uint8Array;
}

/** Writes all tables; returns the RSDP's guest-physical address. */
export function writeAcpi(ram: RamImage, cpus: number): number {
  const memory = ram.memory.ranges.reduce((sum, range) => sum + range.size, 0);
  for (const table of acpiTables(cpus, memory)) ram.write(table.address, table.bytes);
  return RSDP_ADDRESS;
}

/** In ascending order: RSDP, FACS, DSDT, FADT, MADT, MCFG, RSDT, XSDT. */
export function acpiTables(cpus: number, memory: number): AcpiTable[] {
  const tables: AcpiTable[] = [];
  let next = RSDP_ADDRESS + 64;
  const place = (bytes: Uint8Array): number => {
    const address = next;
    tables.push({ address, bytes });
    next = Math.ceil((address + bytes.length) / 64) * 64; // the FACS must lie on 64; the others are content with it
    if (next > TABLES_END) throw new RangeError(`ACPI tables end at 0x${next.toString(16)}`);
    return address;
  };
  const facs = place(facsTable());
  const dsdt = place(table('DSDT', 2, dsdtBody(memory)));
  const roots = [
    place(table('FACP', 6, fadtBody(facs, dsdt))),
    place(table('APIC', 4, madtBody(cpus))),
    place(table('MCFG', 1, mcfgBody())),
  ];
  const rsdt = place(table('RSDT', 1, pointers(roots, 4)));
  const xsdt = place(table('XSDT', 1, pointers(roots, 8)));
  return [{ address: RSDP_ADDRESS, bytes: rsdpTable(rsdt, xsdt) }, ...tables];
}

/** Makes the bytes of the range add up to zero by setting the one at `at`. */
function checksum(bytes: Uint8Array, at: number, length = bytes.length): void {
  bytes[at] = 0;
  bytes[at] = (0x100 - (bytes.subarray(0, length).reduce((sum, b) => sum + b, 0) & 0xff)) & 0xff;
}

function ascii(bytes: Uint8Array, at: number, text: string): void {
  bytes.set(new TextEncoder().encode(text), at);
}

function table(signature: string, revision: number, body: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(HEADER + body.length);
  const view = new DataView(bytes.buffer);
  ascii(bytes, 0, signature);
  view.setUint32(4, bytes.length, true);
  view.setUint8(8, revision);
  ascii(bytes, 10, OEM);
  ascii(bytes, 16, OEM_TABLE);
  view.setUint32(24, 1, true);
  ascii(bytes, 28, CREATOR);
  view.setUint32(32, 1, true);
  bytes.set(body, HEADER);
  checksum(bytes, 9);
  return bytes;
}

function rsdpTable(rsdt: number, xsdt: number): Uint8Array {
  const bytes = new Uint8Array(36);
  const view = new DataView(bytes.buffer);
  ascii(bytes, 0, 'RSD PTR ');
  ascii(bytes, 9, OEM);
  view.setUint8(15, 2);
  view.setUint32(16, rsdt, true);
  view.setUint32(20, bytes.length, true);
  view.setBigUint64(24, BigInt(xsdt), true);
  checksum(bytes, 8, 20);
  checksum(bytes, 32);
  return bytes;
}

function facsTable(): Uint8Array {
  const bytes = new Uint8Array(64); // no checksum: the guest and firmware share its lock word. 5.2.10
  ascii(bytes, 0, 'FACS');
  new DataView(bytes.buffer).setUint32(4, bytes.length, true);
  bytes[32] = 2;
  return bytes;
}

function pointers(addresses: readonly number[], width: 4 | 8): Uint8Array {
  const bytes = new Uint8Array(addresses.length * width);
  const view = new DataView(bytes.buffer);
  for (const [i, address] of addresses.entries()) view.setUint32(i * width, address, true);
  return bytes;
}

const FADT_SIZE = 276;
const SYSTEM_IO = 1;
const WBINVD = 1 << 0;
const PROC_C1 = 1 << 2;
/** No fixed sleep button; the fixed power button is there because bit 4 is not set. */
const NO_SLEEP_BUTTON = 1 << 5;
const NO_RTC_WAKE_STATUS = 1 << 6;
const RESET_REGISTER = 1 << 10;
/** IA-PC boot architecture: legacy devices (the COM port); no i8042 keyboard; no VGA. 5.2.9.3 */
const BOOT_LEGACY_NO_VGA = 0x5;
const RESET_VALUE = 6;

/** Offsets are those of the whole table, as in the spec's table 5.33, less the header. */
function fadtBody(facs: number, dsdt: number): Uint8Array {
  const bytes = new Uint8Array(FADT_SIZE - HEADER);
  const view = new DataView(bytes.buffer);
  const u8 = (at: number, value: number): void => view.setUint8(at - HEADER, value);
  const u16 = (at: number, value: number): void => view.setUint16(at - HEADER, value, true);
  const u32 = (at: number, value: number): void => view.setUint32(at - HEADER, value, true);
  const port = (at: number, address: number, width: number, access: number): void => {
    u8(at, SYSTEM_IO);
    u8(at + 1, width);
    u8(at + 3, access);
    u32(at + 4, address);
  };
  u32(36, facs);
  u32(40, dsdt);
  u16(46, GSI.sci); // SMI_CMD (48) is 0: always in ACPI mode
  u32(56, PORT.pm1Event);
  u32(64, PORT.pm1Control);
  u8(88, 4);
  u8(89, 2);
  u16(96, 0xfff); // C2 and C3: not supported
  u16(98, 0xfff);
  u16(109, BOOT_LEGACY_NO_VGA);
  u32(112, WBINVD | PROC_C1 | NO_SLEEP_BUTTON | NO_RTC_WAKE_STATUS | RESET_REGISTER);
  port(116, PORT.resetControl, 8, 1);
  u8(128, RESET_VALUE);
  u8(131, 4); // minor version: 6.4
  u32(140, dsdt); // X_FIRMWARE_CTRL stays 0: only one of the two may be given. 5.2.9
  port(148, PORT.pm1Event, 32, 2);
  port(172, PORT.pm1Control, 16, 2);
  return bytes;
}

const PCAT_COMPAT = 1;
const ENABLED = 1;
const ACTIVE_HIGH_LEVEL = 0xd;
const ALL_PROCESSORS = 0xff;

function madtBody(cpus: number): Uint8Array {
  const u32 = (value: number): number[] => [value & 0xff, (value >>> 8) & 0xff, (value >>> 16) & 0xff, value >>> 24];
  const override = (irq: number, gsi: number, flags: number): number[] => [2, 10, 0, irq, ...u32(gsi), flags, 0];
  return Uint8Array.from([
    ...u32(LAPIC_BASE),
    ...u32(PCAT_COMPAT),
    // One local APIC a vCPU; x2APIC entries are only for ids above 254. 5.2.12.12
    ...Array.from({ length: cpus }, (_, id) => [0, 8, id, id, ...u32(ENABLED)]).flat(),
    ...[1, 12, 0, 0, ...u32(IOAPIC_BASE), ...u32(0)],
    ...override(0, 2, 0), // the PIT's IRQ 0 is wired to pin 2 of the IOAPIC
    ...override(GSI.sci, GSI.sci, ACTIVE_HIGH_LEVEL),
    ...[4, 6, ALL_PROCESSORS, 0, 0, 1], // NMI at LINT1
  ]);
}

function mcfgBody(): Uint8Array {
  const bytes = new Uint8Array(8 + 16);
  const view = new DataView(bytes.buffer);
  view.setUint32(8, ECAM.base, true);
  view.setUint8(18, ECAM.startBus);
  view.setUint8(19, ECAM.endBus);
  return bytes;
}
