// Takes a bzImage apart: setup header, and where the compressed vmlinux in it lies (unpack.ts takes it out). Called by load.ts.
// Spec: Documentation/arch/x86/boot.rst (setup_header; payload_offset, payload_length since protocol 2.08).

const BOOT_FLAG = 0xaa55;
const HDRS = 0x5372_6448;
const XLF_KERNEL_64 = 1;
/** Protocol 2.12: xloadflags and the 64-bit entry. */
const PROTOCOL_MIN = 0x20c;
const SECTOR = 512;

export interface BzImageHeader {
  /** Bytes from 0x1f1 on, as they go into boot_params. */
  readonly setup: Uint8Array;
  /** File offset of the protected-mode part. */
  readonly payloadStart: number;
  readonly compressed: { readonly offset: number; readonly length: number };
  readonly preferredAddress: number;
  readonly initSize: number;
  readonly initrdMax: number;
}

export function isBzImage(head: Uint8Array): boolean {
  if (head.length < 0x268) return false;
  const view = new DataView(head.buffer, head.byteOffset, head.byteLength);
  return view.getUint16(0x1fe, true) === BOOT_FLAG && view.getUint32(0x202, true) === HDRS;
}

/** A string says why this bzImage cannot be started. */
export function parseBzImage(head: Uint8Array, fileSize: number): BzImageHeader | string {
  const view = new DataView(head.buffer, head.byteOffset, head.byteLength);
  const protocol = view.getUint16(0x206, true);
  if (protocol < PROTOCOL_MIN) {
    return `is a bzImage of boot protocol ${protocol >> 8}.${protocol & 0xff}; 2.12 or later is needed`;
  }
  if ((view.getUint16(0x236, true) & XLF_KERNEL_64) === 0) return 'is a 32-bit kernel; a 64-bit one is needed';
  // "For backwards compatibility, if the setup_sects field contains 0, the real value is 4."
  const payloadStart = ((view.getUint8(0x1f1) || 4) + 1) * SECTOR;
  const compressed = { offset: payloadStart + view.getUint32(0x248, true), length: view.getUint32(0x24c, true) };
  if (compressed.length < 16 || compressed.offset + compressed.length > fileSize) return 'was cut short; copy it again';
  // The header ends at 0x202 + the byte at 0x201 (the jump's operand).
  const end = Math.min(0x202 + view.getUint8(0x201), 0x290);
  return {
    setup: head.slice(0x1f1, end),
    payloadStart,
    compressed,
    preferredAddress: Number(view.getBigUint64(0x258, true)),
    initSize: view.getUint32(0x260, true),
    initrdMax: view.getUint32(0x22c, true),
  };
}
