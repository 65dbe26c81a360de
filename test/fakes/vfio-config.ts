// Configuration spaces as a VFIO device shows them, made to order, for tests with vfio-transport.ts.

export interface FakeConfigOptions {
  /** Registers of the six BARs as the device shows them: type bits only. */
  readonly bars?: readonly number[];
  /** MSI-X in a BAR: vectors and where table and PBA lie. */
  readonly msix?: { readonly count: number; readonly bar: number; readonly table: number; readonly pba: number };
  readonly msi?: boolean;
  readonly extended?: readonly { readonly id: number; readonly at: number; readonly next: number }[];
}

/** A type 0 header as QEMU's edu has it (1234:11e8), with power management, PCI Express and what is asked for. */
export function fakeConfig(options: FakeConfigOptions = {}): Uint8Array {
  const bytes = new Uint8Array(options.extended === undefined ? 256 : 4096);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, 0x11e81234, true);
  view.setUint16(4, 0x0002, true);
  view.setUint16(6, 0x0010, true);
  view.setUint32(8, 0x00ff0010, true);
  (options.bars ?? [0]).forEach((register, i) => {
    view.setUint32(0x10 + 4 * i, register, true);
  });
  view.setUint32(0x2c, 0x11001af4, true);
  bytes[0x34] = 0x40;
  bytes[0x3d] = 3;
  // Power management, vendor-unknown (0x0c, CompactPCI: to be hidden), PCI Express, MSI, MSI-X.
  bytes.set([0x01, 0x50, 0xc3, 0xff, 0x0b, 0x01], 0x40);
  bytes.set([0x0c, 0x60], 0x50);
  bytes.set([0x10, options.msi === false ? 0xb0 : 0xa0, 0x02, 0x00, 0x01, 0x80], 0x60);
  view.setUint32(0x6c, 0x00400001, true);
  bytes.set([0x05, 0xb0, 0x80, 0x00], 0xa0);
  if (options.msix !== undefined) {
    bytes.set([0x11, 0], 0xb0);
    view.setUint16(0xb2, options.msix.count - 1, true);
    view.setUint32(0xb4, options.msix.table | options.msix.bar, true);
    view.setUint32(0xb8, options.msix.pba | options.msix.bar, true);
  } else bytes[options.msi === false ? 0x61 : 0xa1] = 0;
  for (const { id, at, next } of options.extended ?? []) view.setUint32(at, (id | 0x10000 | (next << 20)) >>> 0, true);
  return bytes;
}
