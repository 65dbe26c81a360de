// The configuration space of a passed-through function as the guest should see it: which bytes are the device's own, which are ours.
// Ours: BARs, command, interrupt line, MSI and MSI-X control, power state, next pointers; the rest of a known capability is the
// device's. Unknown and harmful capabilities are left out. Called by pci-function.ts. PCI 3.0, 6.1-6.8; PCIe 5.0, 7.5-7.9
import { SysError } from '../../native/errno.ts';
import type { Width } from '../contract.ts';
import { COMMAND, CONFIG_SIZE, ConfigSpace, HEADER, STATUS } from '../pci/config-space.ts';
import { CAPABILITY_MSI, type MsiShape } from '../pci/msi.ts';
import { CAPABILITY_MSIX, type MsixShape } from '../pci/msix.ts';
import type { VfioTransport } from './transport.ts';

/** linux/vfio.h, VFIO_PCI_CONFIG_REGION_INDEX */
const CONFIG_REGION = 7;
const LEGACY_SIZE = 0x100;
const HEADER_TYPE_MASK = 0x7f;

const CAP_POWER = 0x01;
const CAP_VPD = 0x03;
const CAP_PCIX = 0x07;
const CAP_VENDOR = 0x09;
const CAP_EXPRESS = 0x10;
const CAP_SATA = 0x12;
const CAP_AF = 0x13;
/** Capabilities whose contents the device itself answers. What is missing here the guest does not see. */
const DEVICE_OWNED = new Set([CAP_VPD, CAP_PCIX, CAP_VENDOR, CAP_EXPRESS, CAP_SATA, CAP_AF]);
/** AER, VC, DSN, power budgeting, vendor-specific, DVSEC. Not: SR-IOV, ARI, ACS, ATS, PRI, PASID, resizable BAR, L1 substates:
 *  they speak of a bus or an IOMMU that the guest does not have. PCIe 5.0, 7.9 */
const EXTENDED_OWNED = new Set([0x01, 0x02, 0x03, 0x04, 0x0b, 0x23]);

const PMCSR_STATE = 0x0003;
const PMCSR_PME_ENABLE = 0x0100;
const PMCSR_PME_STATUS = 0x8000;

const TYPE_ENDPOINT = 0;
const TYPE_LEGACY_ENDPOINT = 1;
const TYPE_ROOT_COMPLEX_ENDPOINT = 9;

interface RawCapability {
  readonly id: number;
  readonly offset: number;
  readonly size: number;
}

export class FunctionConfig {
  readonly space = new ConfigSpace();
  /** What MsiCapability and Msix are to be made of; null: the device has none. */
  readonly msi: MsiShape | null;
  readonly msix: MsixShape | null;
  /** As the device gave it at the start: types and sizes of BARs are read from it. */
  readonly raw: DataView;
  readonly #transport: VfioTransport;
  /** 1: reads and writes of this byte go to the device. */
  readonly #owned = new Uint8Array(CONFIG_SIZE);
  readonly #scratch = { 1: new Uint8Array(1), 2: new Uint8Array(2), 4: new Uint8Array(4) } as const;
  readonly #command = new Uint8Array(2);

  constructor(transport: VfioTransport) {
    this.#transport = transport;
    const size = transport.info.regions.find((region) => region.index === CONFIG_REGION)?.size ?? LEGACY_SIZE;
    const bytes = new Uint8Array(Math.min(size, CONFIG_SIZE));
    for (let at = 0; at < bytes.length; at += LEGACY_SIZE) {
      transport.readRegion(CONFIG_REGION, at, bytes.subarray(at, at + LEGACY_SIZE));
    }
    this.raw = new DataView(bytes.buffer);
    this.#header();
    const capabilities = this.#rawCapabilities();
    // Linked newest first: from the last to the first keeps the device's order.
    for (const capability of [...capabilities].reverse()) this.#addCapability(capability);
    this.#extended();
    this.msi = this.#msiShape(capabilities);
    this.msix = this.#msixShape(capabilities);
  }

  read(offset: number, width: Width): number {
    if (this.#ownsAny(offset, width)) this.#refresh(offset, width);
    return this.space.read(offset, width);
  }

  /** Our own bits only change here; command goes to the device by pushCommand(). */
  write(offset: number, width: Width, value: number): void {
    this.space.write(offset, width, value);
    if (!this.#ownsAny(offset, width)) return;
    if (this.#ownsAll(offset, width)) {
      this.#toDevice(offset, width, value);
      return;
    }
    for (let i = 0; i < width; i++) {
      if (this.#owned[offset + i] === 1) this.#toDevice(offset + i, 1, (value >>> (8 * i)) & 0xff);
    }
  }

  /**
   * What the guest has in PCI_COMMAND becomes the device's: bus mastering, INTx disable, I/O decode. Memory decode stays on at the
   * device whatever the guest says: its BARs lie where this host put them, the guest's own decode is whether slots and claims are
   * there, and variant drivers can neither stop, save nor load a device that does not decode (a guest may be moved before its driver
   * has switched it on, and a destination begins with everything off).
   */
  pushCommand(): void {
    const command = this.space.read(HEADER.command, 2) | COMMAND.memory;
    this.#command[0] = command & 0xff;
    this.#command[1] = command >> 8;
    this.#transport.writeRegion(CONFIG_REGION, HEADER.command, this.#command);
  }

  #header(): void {
    const { raw, space } = this;
    space.setIdentity({
      vendorId: raw.getUint16(HEADER.vendorId, true),
      deviceId: raw.getUint16(HEADER.deviceId, true),
      classCode: raw.getUint16(HEADER.classCode, true) + raw.getUint8(HEADER.classCode + 2) * 0x10000,
      revision: raw.getUint8(HEADER.revision),
      subsystemVendorId: raw.getUint16(HEADER.subsystemVendorId, true),
      subsystemId: raw.getUint16(HEADER.subsystemId, true),
    });
    space.allow(
      HEADER.command,
      2,
      COMMAND.io | COMMAND.memory | COMMAND.busMaster | COMMAND.serr | COMMAND.intxDisable | 0x50,
    );
    // A single function, whatever its neighbours on the host are. PCI 3.0, 6.2.1
    space.set(HEADER.headerType, 1, raw.getUint8(HEADER.headerType) & HEADER_TYPE_MASK);
    space.set(HEADER.status, 2, raw.getUint16(HEADER.status, true) & ~STATUS.capabilities);
    // The interrupt status bit is what a guest's shared-line handler asks first.
    this.#own(HEADER.status, 1);
    // INTA# always: the host may have another pin, the guest's slot has one function.
    space.setInterruptPin(raw.getUint8(HEADER.interruptPin) === 0 ? 0 : 1);
  }

  #rawCapabilities(): RawCapability[] {
    const { raw } = this;
    if ((raw.getUint16(HEADER.status, true) & STATUS.capabilities) === 0) return [];
    const offsets: number[] = [];
    for (let at = raw.getUint8(HEADER.capabilities) & 0xfc; at >= 0x40 && !offsets.includes(at); ) {
      offsets.push(at);
      at = raw.getUint8(at + 1) & 0xfc;
    }
    return offsets.map((offset) => {
      const next = Math.min(LEGACY_SIZE, ...offsets.filter((other) => other > offset));
      return { id: raw.getUint8(offset), offset, size: Math.min(next - offset, this.#knownSize(offset)) };
    });
  }

  #knownSize(offset: number): number {
    const id = this.raw.getUint8(offset);
    if (id === CAP_POWER || id === CAP_VPD) return 8;
    if (id === CAP_AF) return 6;
    if (id === CAP_EXPRESS) return 0x3c;
    return id === CAP_VENDOR ? Math.max(3, this.raw.getUint8(offset + 2)) : LEGACY_SIZE;
  }

  #addCapability({ id, offset, size }: RawCapability): void {
    if (id !== CAP_POWER && !DEVICE_OWNED.has(id)) return;
    const { raw, space } = this;
    space.addCapability(id, size, offset);
    for (let at = offset + 2; at < offset + size; at++) space.set(at, 1, raw.getUint8(at));
    if (id === CAP_POWER) this.#power(offset);
    else this.#own(offset + 2, size - 2);
    if (id === CAP_EXPRESS) this.#express(offset, size);
  }

  /** The guest may believe that it sends the device to sleep: a device in D3 would fault the vCPU that touches a mapped BAR. */
  #power(offset: number): void {
    // No PME: nothing here wakes a machine. PCI PM 1.2, 3.2.3
    this.space.set(offset + 2, 2, this.raw.getUint16(offset + 2, true) & 0x07ff);
    this.space.set(offset + 4, 2, this.raw.getUint16(offset + 4, true) & ~(PMCSR_STATE | PMCSR_PME_ENABLE));
    this.space.allow(offset + 4, 2, PMCSR_STATE, PMCSR_PME_STATUS);
  }

  /** On bus 0 without a port above it an endpoint is a root complex integrated one, which has no link. PCIe 5.0, 7.5.3.2 */
  #express(offset: number, size: number): void {
    const flags = this.raw.getUint16(offset + 2, true);
    const type = (flags >> 4) & 0xf;
    this.#disown(offset + 2, 2);
    if (type !== TYPE_ENDPOINT && type !== TYPE_LEGACY_ENDPOINT) return;
    this.space.set(offset + 2, 2, (flags & ~0xf0) | (TYPE_ROOT_COMPLEX_ENDPOINT << 4));
    for (const [at, length] of [
      [0x0c, 8],
      [0x2c, 8],
    ] as const) {
      if (at + length > size) continue;
      this.#disown(offset + at, length);
      for (let i = 0; i < length; i++) this.space.set(offset + at + i, 1, 0);
    }
  }

  #extended(): void {
    const { raw, space } = this;
    if (raw.byteLength < CONFIG_SIZE) return;
    const offsets: number[] = [];
    for (let at = LEGACY_SIZE; at >= LEGACY_SIZE && at <= CONFIG_SIZE - 4 && !offsets.includes(at); ) {
      const header = raw.getUint32(at, true);
      if (header === 0 || header === 0xffffffff) break;
      offsets.push(at);
      at = (header >>> 20) & 0xffc;
    }
    offsets.sort((a, b) => a - b);
    const kept = offsets.filter((at) => EXTENDED_OWNED.has(raw.getUint16(at, true)));
    if (kept.length === 0) return;
    // The chain begins at 0x100 in any case: an empty entry there leads to the first that is kept. PCIe 5.0, 7.6.3
    if (kept[0] !== LEGACY_SIZE) space.addExtendedCapability(0, 0, 4);
    for (const at of kept) {
      const end = Math.min(CONFIG_SIZE, ...offsets.filter((other) => other > at));
      const header = raw.getUint32(at, true);
      space.addExtendedCapability(header & 0xffff, (header >>> 16) & 0xf, end - at, at);
      for (let i = at + 4; i < end; i++) space.set(i, 1, raw.getUint8(i));
      this.#own(at + 4, end - at - 4);
    }
  }

  #msiShape(capabilities: readonly RawCapability[]): MsiShape | null {
    const found = capabilities.find(({ id }) => id === CAPABILITY_MSI);
    const host = this.#irqCount(1);
    if (found === undefined || host === 0) return null;
    const control = this.raw.getUint16(found.offset + 2, true);
    const count = 2 ** Math.floor(Math.log2(Math.min(host, 1 << ((control >> 1) & 7))));
    // VFIO has no mask bits for MSI, but we have: a masked vector's irqfd is off.
    return { count, address64: (control & 0x80) !== 0, perVectorMask: (control & 0x100) !== 0, at: found.offset };
  }

  #msixShape(capabilities: readonly RawCapability[]): MsixShape | null {
    const found = capabilities.find(({ id }) => id === CAPABILITY_MSIX);
    if (found === undefined || this.#irqCount(2) === 0) return null;
    const { raw } = this;
    const table = raw.getUint32(found.offset + 4, true);
    const pba = raw.getUint32(found.offset + 8, true);
    return {
      count: Math.min((raw.getUint16(found.offset + 2, true) & 0x7ff) + 1, this.#irqCount(2)),
      tableBar: table & 7,
      tableOffset: (table & ~7) >>> 0,
      pbaBar: pba & 7,
      pbaOffset: (pba & ~7) >>> 0,
      at: found.offset,
    };
  }

  #irqCount(index: number): number {
    return this.#transport.info.irqs.find((irq) => irq.index === index)?.count ?? 0;
  }

  #own(offset: number, length: number): void {
    for (let at = offset; at < offset + length; at++) {
      this.#owned[at] = 1;
      // Another host's device of the same kind may differ there.
      this.space.allowDevice(at, 1, at === HEADER.status ? 0xff & ~STATUS.capabilities : 0xff);
    }
  }

  #disown(offset: number, length: number): void {
    for (let at = offset; at < offset + length; at++) {
      this.#owned[at] = 0;
      this.space.allowDevice(at, 1, 0);
    }
  }

  #ownsAny(offset: number, width: Width): boolean {
    for (let i = 0; i < width; i++) if (this.#owned[offset + i] === 1) return true;
    return false;
  }

  #ownsAll(offset: number, width: Width): boolean {
    for (let i = 0; i < width; i++) if (this.#owned[offset + i] !== 1) return false;
    return true;
  }

  /** A device that does not answer leaves what was known. */
  #refresh(offset: number, width: Width): void {
    const bytes = this.#scratch[width];
    try {
      this.#transport.readRegion(CONFIG_REGION, offset, bytes);
    } catch (error) {
      if (error instanceof SysError) return;
      throw error;
    }
    for (let i = 0; i < width; i++) {
      const at = offset + i;
      if (this.#owned[at] !== 1) continue;
      // Bit 4 of the status register says whether *we* show capabilities.
      const kept = at === HEADER.status ? this.space.bytes[at]! & STATUS.capabilities : 0;
      const byte = at === HEADER.status ? bytes[i]! & ~STATUS.capabilities : bytes[i]!;
      this.space.bytes[at] = byte | kept;
    }
  }

  #toDevice(offset: number, width: Width, value: number): void {
    const bytes = this.#scratch[width];
    for (let i = 0; i < width; i++) bytes[i] = (value >>> (8 * i)) & 0xff;
    try {
      this.#transport.writeRegion(CONFIG_REGION, offset, bytes);
    } catch (error) {
      if (!(error instanceof SysError)) throw error;
    }
  }
}
