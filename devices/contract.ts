// The one vocabulary that the rooms share: what a device is, what it may ask of the machine, and how its state moves.
// Types only. Implemented by devices/*, provided by vmm/machine.ts, driven by migration/*. Everything runs on the one JS thread.
import type { ChunkPiece, GuestRam, HostMapping, MemorySlice, PageBitmap } from '../native/addon.ts';

export type { ChunkPiece, GuestRam, HostMapping, MemorySlice, PageBitmap };

export type Width = 1 | 2 | 4;

/** One trapped window. Told offsets only, never its base. Guest nonsense never throws: reads answer all-ones. */
export interface Region {
  readonly name: string;
  readonly size: number;
  read(offset: number, width: Width): number;
  write(offset: number, width: Width, value: number): void;
  /** null: the bus splits an 8-byte access into two dwords, low one first. */
  readonly wide: { read(offset: number): bigint; write(offset: number, value: bigint): void } | null;
  /** null: every access is answered in TypeScript. */
  readonly fast: FastWindow | null;
}

/**
 * What the vCPU thread may answer by itself, knowing no device: reads from `shadow`, writes posted to the ring and replayed to
 * Region.write later, in order and before any other exit is answered, and what it passes on to `file`. Offsets are relative to the region.
 */
export interface FastWindow {
  /** Bytes the vCPU thread answers reads from; the device keeps them true. Covers the whole region. null: no fast reads. */
  readonly shadow: Uint8Array | null;
  /** Offsets (of one byte each) whose reads may come from the shadow. */
  readonly reads: readonly number[];
  /** Offsets whose writes may be posted. */
  readonly posts: readonly number[];
  /** Where everything else goes; null: it exits to TypeScript. */
  readonly file: FastFile | null;
}

/** A device fd of the host: the vCPU thread reads and writes it by pread(2) and pwrite(2), 1 to 8 bytes as the guest does. What the fd refuses
 *  reads as all-ones, and a refused write is forgotten, as on any bus. */
export interface FastFile {
  readonly fd: number;
  /** Of the region's first byte within the fd. */
  readonly offset: number;
  /** Accesses that touch one of these exit to TypeScript all the same. */
  readonly except: readonly GpaRange[];
}

export type Space = 'pio' | 'mmio';

export interface Claim {
  readonly space: Space;
  readonly base: number;
  readonly region: Region;
}

/** The guest's port and physical address space: overlap is refused by throwing VmmError (a host error, never the guest's). */
export interface AddressSpace {
  claim(claim: Claim): ClaimHandle;
}

export interface ClaimHandle {
  readonly base: number;
  move(base: number): void;
  /** To be called after Region.fast has changed (a UART whose divisor latch came or went, for example). */
  refreshFast(fast: FastWindow | null): void;
  release(): void;
}

/** Memory that the guest reaches without an exit: a KVM memory slot over a host mapping (a BAR, for instance). */
export interface SlotPort {
  map(gpa: number, mapping: HostMapping, offset: number, size: number, readOnly: boolean): SlotHandle;
}
export interface SlotHandle {
  unmap(): void;
}

/** Guest RAM as a device model sees it: by guest-physical address. Writes are entered into the VMM's own dirty source. */
export interface GuestMemory {
  readonly ranges: readonly RamRange[];
  /** Copies; false when any byte of the range is not RAM. */
  read(gpa: number, into: Uint8Array): boolean;
  write(gpa: number, from: Uint8Array): boolean;
}
/** A run of guest-physical RAM and where it lies in the one memfd. Bytes. */
export interface RamRange {
  readonly gpa: number;
  readonly size: number;
  readonly slice: MemorySlice;
}

export interface GpaRange {
  readonly start: number;
  readonly length: number;
}

/** Plain data only (null, booleans, numbers, bigints, strings, Uint8Array, arrays, records). load() validates and throws StateError. */
export interface Stateful {
  readonly version: number;
  save(): unknown;
  load(state: unknown, version: number): void;
}

/** Bulk state. The order of the calls is migration/phases.ts. After any rejection cancel() must reach running. */
export interface Migratable {
  /** Why this device cannot move, or null. One sentence, naming the remedy where there is one. */
  blocker(): string | null;
  /** Fixed time of this device's own at switch-over, milliseconds, beyond what its bytes take. */
  readonly fixedDowntimeMs: number;
  /** RUNNING -> PRE_COPY where offered. */
  saveSetup(): Promise<void>;
  /** Bytes still to come: while running, and only after stop(). */
  pending(): Promise<{ precopyInitial: number; precopy: number; stopCopy: number }>;
  /** Sends at most about `budget` bytes. 'drained': nothing more for now. */
  iterate(sink: ChunkSink, budget: number): Promise<'more' | 'drained'>;
  /** To *_P2P, on the way down and on the way up; every device before any takes the next step. */
  quiesce(): Promise<void>;
  /** To STOP_COPY: DMA has ended, so the final dirty collect is valid once all stop() are through. */
  stop(): Promise<void>;
  /** To the end of the stream. The STOP_COPY -> STOP arc waits until after the hand-over. */
  drain(sink: ChunkSink): Promise<void>;
  /** After the hand-over, at the source: STOP_COPY -> STOP, tracking off. Never RUNNING. */
  handedOver(): Promise<void>;
  loadSetup(): Promise<void>;
  /** `length` bytes of one chunk; the device takes them by one of the two doors of `source`. */
  loadChunk(source: ChunkSource, length: number): Promise<void>;
  /** RESUMING -> STOP. The driver validates here, so it comes before PONG. 'late': it judges only on its way to RUNNING. */
  loadEnd(): Promise<LoadVerdict>;
  /** To RUNNING: at the destination after hand-over, at the source when it goes on. */
  run(): Promise<void>;
  /** From any state back to RUNNING (save side) or to STOP/reset (load side); by the ladder of devices/vfio/migration/recover.ts. */
  cancel(): Promise<void>;
  /** Bytes moved so far, for the report. */
  readonly moved: { readonly preCopyBytes: number; readonly stopCopyBytes: number };
}

export type LoadVerdict = 'validated' | 'late';

export interface ChunkSink {
  /** For plug-ins written in TypeScript. */
  put(chunk: Uint8Array): Promise<void>;
  /** data fd -> channel, in C++; what vfio-pci uses. 'drained' is ENOMSG, 'end' is read() = 0. */
  pump(fd: number, budget: number): Promise<PumpResult>;
  /** One chunk made of these pieces in order, as one record: for devices whose state lies in a region. In C++. */
  pumpPieces(pieces: readonly ChunkPiece[]): Promise<void>;
}
export interface PumpResult {
  readonly bytes: number;
  readonly end: 'more' | 'drained' | 'end';
}
export interface ChunkSource {
  take(length: number): Promise<Uint8Array>;
  /** channel -> data fd, in C++. Rejects with SysError when the driver refuses the bytes. With all that is left of the chunk go the chunks that
   *  have arrived right behind it, which the device is not asked for then: a data fd takes one stream of bytes, however it was cut. */
  pump(fd: number, length: number): Promise<void>;
  /** channel -> pieces, in order, in C++. Rejects with SysError when the device refuses the bytes; they are consumed all the same. */
  pumpPieces(pieces: readonly ChunkPiece[]): Promise<void>;
}

/** Something that knows which pages were written: KVM's log, the VMM's own writes, a device's DMA log, an IOMMU. */
export interface DirtySource {
  readonly name: DirtySourceKind;
  /** True when each collect() reports all mapped memory (type1 on an IOMMU-backed device): it is asked in the last round only. */
  readonly coarse: boolean;
  start(ranges: readonly GpaRange[]): Promise<void>;
  /** ORs what was written since the last collect into `into` (one bit a page of guest RAM by RAM offset) and clears it here.
   *  Rejection: the tracker takes all RAM as dirty. Returns the pages this source alone reported. */
  collect(into: PageBitmap): Promise<number>;
  stop(): Promise<void>;
  /** What takes its place when this one is switched off for a migration (a device's DMA log: the container's); null: all of RAM. */
  readonly fallback: DirtySource | null;
}
export type DirtySourceKind = 'kvm' | 'vmm' | 'deviceLog' | 'region' | 'container' | 'iommufd' | 'allOfRam';

/** What the machine builds, resets, saves and closes. A missing ability is null. */
export interface Device {
  /** Names its sections in the stream: unique in a machine, stable between hosts. */
  readonly id: string;
  /** The registry's name of its type; 'serial', 'vfio-pci', ... */
  readonly type: string;
  readonly claims: readonly Claim[];
  readonly state: Stateful | null;
  readonly live: Migratable | null;
  readonly dirty: DirtySource | null;
  /** Interrupt plumbing that must be taken down at a pause and put back at a resume; null for devices without vectors of their own. */
  readonly interrupts: InterruptGate | null;
  reset(): void | Promise<void>;
  close(): void | Promise<void>;
}

/** main-job.md, order at switch-over, 4: de-assign irqfds (this flushes) and note pending eventfds; put them back on the way up. */
export interface InterruptGate {
  detach(): void;
  attach(): void;
}

/** A function on PCI bus 0. The host bridge routes configuration accesses to it and assigns slot and INTx pin. */
export interface PciFunction extends Device {
  /** Offset 0-4095, aligned to width. Reads of what is not there answer 0 (all-ones only when no function is there). */
  readConfig(offset: number, width: Width): number;
  writeConfig(offset: number, width: Width, value: number): void;
  /** Called once, before the machine runs, with the address the bridge gave. */
  attached(address: PciAddress): void;
}
export interface PciAddress {
  readonly bus: number;
  readonly slot: number;
  readonly function: number;
  /** The GSI that INTA# of this slot is wired to. */
  readonly gsi: number;
}
/** One MSI or MSI-X vector: an eventfd that KVM turns into the routed message (irqfd). */
export interface MsiVector {
  readonly eventFd: number;
  route(address: bigint, data: number): void;
  /** irqfd de-assigned: the eventfd's count then is the pending bit. */
  mask(): void;
  unmask(): void;
  /** Reads and clears the eventfd's count while masked. */
  takePending(): boolean;
  /** Raises it from the VMM. */
  trigger(): void;
  release(): void;
}

/** A level-triggered line with the resample protocol of irqfd, for INTx of passed-through devices. */
export interface LevelIrqFd {
  readonly eventFd: number;
  readonly resampleFd: number;
  /** Whether the guest has acknowledged it since the last call: reads and clears the resample eventfd's count. */
  takeResample(): boolean;
  mask(): void;
  unmask(): void;
  release(): void;
}

export interface IrqPort {
  line(gsi: number): { set(level: boolean): void };
  levelIrqFd(gsi: number): LevelIrqFd;
  msi(requesterId: number): MsiVector;
  /** One KVM_SET_GSI_ROUTING, then the irqfds. A burst of route/mask/unmask calls ends with one commit(). */
  commit(): void;
}

export type ResetReason = 'guest-reset' | 'host-qmp-system-reset';
export type EndReason =
  | 'guest-shutdown'
  | 'guest-panic'
  | 'guest-reset'
  | 'host-qmp-quit'
  | 'host-signal'
  | 'internal-error';

export interface DeviceLog {
  debug(fields: object, message: string): void;
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
}

/** Everything that a device may ask of the machine it is built into. */
export interface DeviceHost {
  readonly log: DeviceLog;
  readonly irq: IrqPort;
  readonly bus: AddressSpace;
  readonly memory: GuestMemory;
  /** One memfd holds all guest RAM. */
  readonly ram: GuestRam;
  readonly slots: SlotPort;
  /** KVM_DEV_TYPE_VFIO: tells KVM of a VFIO group (or device) fd, and takes it back. */
  readonly kvmVfio: { add(fd: number): void; remove(fd: number): void };
  /** CLOCK_MONOTONIC, nanoseconds. */
  now(): bigint;
  /** Ends or resets the machine from within a device; returns at once, takes effect after the current exit. */
  requestReset(reason: ResetReason): void;
  requestEnd(reason: EndReason, exitCode: number): void;
  /** Eventfd watch on the JS thread (uv_poll). The callback gets the counter. */
  watch(fd: number, callback: (count: bigint) => void): { close(): void };
}

export interface PropertySpec {
  readonly kind: 'string' | 'number' | 'size' | 'boolean';
  readonly required: boolean;
  readonly help: string;
}
export type PropertyValue = string | number | boolean;

/** A type registers under QEMU's name. create() may open host resources; it throws VmmError with the remedy. */
export interface DeviceType {
  readonly name: string;
  readonly help: string;
  readonly properties: Readonly<Record<string, PropertySpec>>;
  create(host: DeviceHost, id: string, properties: Readonly<Record<string, PropertyValue>>): Device | Promise<Device>;
}
