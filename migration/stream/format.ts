// The numbers of QEMU's version-3 migration stream and of what Ferry adds to it. Read by reader.ts, writer.ts and return-path.ts; no code.
// All integers are big-endian; sections carry no length. docs/stream.md describes the whole.

export const STREAM_MAGIC = 0x5145564d; // "QEVM"
export const STREAM_VERSION = 3;

export const RECORD = {
  eof: 0x00,
  start: 0x01,
  part: 0x02,
  end: 0x03,
  full: 0x04,
  subsection: 0x05,
  vmDescription: 0x06,
  configuration: 0x07,
  command: 0x08,
  footer: 0x7e,
} as const;

export const COMMAND = {
  openReturnPath: 1,
  ping: 2,
  /** Sent by QEMU 10 and later before the last RAM section; says nothing to us. */
  switchoverStart: 11,
} as const;

/** Flags of a RAM record, in the low bits of its page-aligned offset. */
export const RAM_FLAG = { zero: 0x02n, memSize: 0x04n, page: 0x08n, eos: 0x10n, continue: 0x20n } as const;
export const RAM_SECTION_VERSION = 4;

/** Tags of a VFIO device section (qemu-compat A8), used for every device with bulk state. */
export const BULK_TAG = {
  endOfState: 0xffffffffef100001n,
  setup: 0xffffffffef100003n,
  data: 0xffffffffef100004n,
  initialDataSent: 0xffffffffef100005n,
} as const;
export const BULK_SECTION_VERSION = 1;
/** Longest DATA record of bytes that may be cut anywhere: what a data fd gives, and plug-ins. QEMU sends no more either. */
export const BULK_RECORD_MAX = 1 << 20;
/** Longest DATA record taken from a peer: a chunk of a migration region is one record, whatever its size. */
export const BULK_CHUNK_MAX = 2 ** 30;

/** Types on the return path, destination to source. From 0x4601 on they are Ferry's and never sent to a QEMU. */
export const RETURN = {
  shut: 1,
  pong: 2,
  /** UTF-8: why the destination will not take the machine. */
  refused: 0x4601,
  /** Two u32, microseconds: the destination's load and resume. */
  report: 0x4602,
  /** Empty: the destination is busy building the machine, and alive. */
  alive: 0x4603,
} as const;
export const RETURN_MESSAGE_MAX = 4096;

/** PING values. Those of rounds count from `rounds` up and stay below the others, from which they differ in many bits. */
export const PING = {
  /** After OPEN_RETURN_PATH, as QEMU does. */
  hello: 1,
  /** After ferry/config: answered when the machine is built and fits. */
  built: 2,
  /** After the last RAM section, and after the last byte of device data: dates their arrival on the source's own clock. */
  ramArrived: 3,
  deviceDataArrived: 4,
  /** While the devices change state: the source is busy, and alive. */
  alive: 0x10,
  aliveCount: 0xf0,
  /** After each round. */
  rounds: 0x100,
  /** After the last section: answered only when every device has left RESUMING and every state is loaded. */
  handOver: 0x7e5ac33d,
} as const;

export const SECTION = { ram: 'ram', config: 'ferry/config', core: 'ferry/core', crc: 'ferry/crc' } as const;
export const CONFIG_SECTION_VERSION = 1;
export const CORE_SECTION_VERSION = 1;
export const CRC_SECTION_VERSION = 1;

/** The name of a device's bulk section; its state section is named by its id alone. QEMU's suffix. */
export function bulkSectionName(deviceId: string): string {
  return `${deviceId}/vfio`;
}

/** What the CONFIGURATION record names: our machine type, or the QEMU one that loads our RAM. */
export const MACHINE_NAME = { ferry: 'ferry', qemu: 'none' } as const;
export const RAM_BLOCK = 'ram';
export const PAGE_SIZE = 4096;
