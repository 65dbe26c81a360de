// What a VFIO device is to the rest of this room, however its fd was opened: regions, interrupts, DMA, migration, DMA log.
// Implemented by kernel-device.ts (group and cdev) and by test/fakes/vfio-transport.ts; used by pci-function.ts, vectors.ts and
// migration/*. Types only. What may block (state changes, reset, DMA map, DMA log) is a promise: it runs on a native thread.
// linux/vfio.h
import type { ChunkSink, ChunkSource, GpaRange, HostMapping, PageBitmap, PumpResult, RamRange } from '../contract.ts';

export interface VfioRegionInfo {
  readonly index: number;
  readonly size: number;
  readonly readable: boolean;
  readonly writable: boolean;
  /** Windows of the region that mmap() accepts; empty: everything is trapped. Page-aligned, as the driver gave them. */
  readonly areas: readonly GpaRange[];
  /** What a region beyond the fixed ones is for (VFIO_REGION_INFO_CAP_TYPE); null: one of the fixed ones, or it does not say. */
  readonly type: { readonly type: number; readonly subtype: number } | null;
}

export interface VfioIrqInfo {
  readonly index: number;
  readonly count: number;
  readonly maskable: boolean;
  /** Level-triggered: masked by the kernel when it fires (VFIO_IRQ_INFO_AUTOMASKED). */
  readonly automasked: boolean;
  /** The whole set must be taken down before more vectors are enabled (VFIO_IRQ_INFO_NORESIZE). */
  readonly noResize: boolean;
}

export interface VfioInfo {
  readonly canReset: boolean;
  readonly regions: readonly VfioRegionInfo[];
  readonly irqs: readonly VfioIrqInfo[];
}

export interface VfioTransport {
  readonly kind: 'group' | 'cdev' | 'vfio-user' | 'fake';
  /** For messages: the PCI address. */
  readonly name: string;
  readonly info: VfioInfo;
  /** Throws SysError when the device refuses or answers short. */
  readRegion(index: number, offset: number, into: Uint8Array): void;
  writeRegion(index: number, offset: number, from: Uint8Array): void;
  /** Where a region lies, for accesses past this interface (contract.ts, FastFile); null: it lies in no file. */
  regionFile(index: number): { readonly fd: number; readonly offset: number } | null;
  /** null: this window cannot be mapped, trap it. */
  mapArea(index: number, area: GpaRange): HostMapping | null;
  readonly irqs: VfioIrqs;
  readonly migration: VfioMigrationPort | null;
  readonly dmaLog: DmaLogPort | null;
  /** VFIO_DEVICE_RESET. Lands in RUNNING, also from ERROR; the interrupts and PCI_COMMAND of the device are gone afterwards. */
  reset(): Promise<void>;
  close(): Promise<void>;
}

/** VFIO_DEVICE_SET_IRQS, one method per combination of data and action that we use. */
export interface VfioIrqs {
  /** Vectors start.. trigger these eventfds; null leaves one without. Gives 0, or the number of vectors that the host could give
   *  instead of that many (nothing was changed then). */
  trigger(index: number, start: number, eventFds: readonly (number | null)[]): number;
  /** Takes the whole index down. */
  disable(index: number): void;
  mask(index: number, start: number): void;
  unmask(index: number, start: number): void;
  /** Signals of this eventfd unmask the line (INTx, with the irqfd's resample fd). null: no longer. */
  unmaskBy(index: number, start: number, eventFd: number | null): void;
}

export type VfioState =
  | 'error'
  | 'stop'
  | 'running'
  | 'stop-copy'
  | 'resuming'
  | 'running-p2p'
  | 'pre-copy'
  | 'pre-copy-p2p';

export interface MigrationAbilities {
  readonly preCopy: boolean;
  readonly p2p: boolean;
}

export interface PrecopyInfo {
  /** Bytes that the destination wants before the switch-over. */
  readonly initial: number;
  readonly dirty: number;
  /** A new batch of initial data is due (VFIO_PRECOPY_INFO_REINIT): what was said of it before is void. */
  readonly reinit: boolean;
}

/** One device's migration interface: the kernel's v2 feature, or one of the older generations, which are regions of the device. */
export interface VfioMigrationPort extends MigrationAbilities {
  /** v2: the feature (Linux 5.18). v1: region type 3 (Linux 5.8-5.17). v7: the draft of July 2019. regions: the draft of February 2019. */
  readonly abi: 'v2' | 'v1' | 'v7' | 'regions' | 'fake';
  /** The last state that was known; after a rejection of setState() it was asked for anew. */
  readonly state: VfioState;
  /** Rejects when the device refuses (SysError as cause) or does not answer within the deadline. Never call it twice at once. */
  setState(target: VfioState): Promise<void>;
  /** Bytes that STOP_COPY will give, as far as the driver can say; null: it cannot (no VFIO_DEVICE_FEATURE_MIG_DATA_SIZE). */
  stopCopySize(): Promise<number | null>;
  /** Only in the PRE_COPY states; null: the driver does not say. */
  precopyInfo(): Promise<PrecopyInfo | null>;
  /** true while a saving or resuming session is open. */
  readonly sessionOpen: boolean;
  /** Dirty pages that this interface reports beside the state (the drafts of 2019); null: others know them (v1, v2). */
  readonly dirtyPages: RegionDirtyPort | null;
  /** Device -> sink, at most about `budget` bytes and only whole chunks. 'drained': nothing more for now (PRE_COPY); 'end': that was all. */
  save(sink: ChunkSink, budget: number): Promise<PumpResult>;
  /** One chunk of `length` bytes, as it was saved. Rejects with SysError (or VmmError 'vfio-data') when the device refuses it; the
   *  chunk's bytes are consumed all the same. */
  load(source: ChunkSource, length: number): Promise<void>;
  /** Leaves RESUMING for STOP, which is where a driver judges what it was given. 'late': this interface or driver has no such arc, the
   *  device stays in RESUMING and judges on its way to RUNNING. Rejects as setState() does when the device refuses what it was given. */
  finishLoad(): Promise<'validated' | 'late'>;
  /** Ends the session at our side (after the state that owned it was left). */
  endSession(): void;
  /** The device was reset: it is RUNNING and its session is void. */
  wasReset(): void;
}

/** The dirty pages of a migration region. By IOVA, which is the guest-physical address here. */
export interface RegionDirtyPort {
  /** Asks the device nothing: it reports in its saving states only. */
  start(ram: readonly RamRange[], newBitmap: () => PageBitmap): void;
  /** ORs into `into` what was written since the last collect. Rejects outside of the saving states, where nobody knows. */
  collect(into: PageBitmap): Promise<void>;
  stop(): void;
}

/** VFIO_DEVICE_FEATURE_DMA_LOGGING_*. Ranges and reports are by IOVA, which is the guest-physical address here. */
export interface DmaLogPort {
  /** Gives the page size that the driver chose. */
  start(ranges: readonly GpaRange[], pageSize: number): Promise<number>;
  /** ORs the log of one RAM range into `into` at the range's place in RAM, and clears it in the driver. */
  report(range: RamRange, into: PageBitmap): Promise<void>;
  stop(): Promise<void>;
}

/** What the devices of one machine share: the IOMMU mappings of all guest RAM. */
export interface DmaSpace {
  readonly pageSizes: bigint;
  /** Where the IOMMU can translate: everything else is reserved or beyond its width. */
  readonly iovaRanges: readonly GpaRange[];
  map(range: RamRange): Promise<void>;
  unmap(range: RamRange): Promise<void>;
  /** VFIO_IOMMU_DIRTY_PAGES or a hwpt's dirty bits; null: this IOMMU does not track at 4 KiB. */
  readonly dirty: ContainerDirtyPort | null;
  /** null: it takes no more than RAM (iommufd, Linux 6.12: IOMMU_IOAS_MAP pins pages, and a BAR has none). */
  readonly peers: PeerDmaPort | null;
}

/** BARs of the devices themselves as targets of DMA. */
export interface PeerDmaPort {
  /** A window of a BAR, mmapped, whose device decodes memory now. */
  map(gpa: number, bar: HostMapping): Promise<void>;
  unmap(range: Pick<RamRange, 'gpa' | 'size'>): Promise<void>;
}

/** A device that was opened, and what its DMA goes through. */
export interface OpenedDevice {
  readonly transport: VfioTransport;
  readonly dma: DmaSpace;
}

export interface ContainerDirtyPort {
  readonly kind: 'container' | 'iommufd';
  /** True when every mapped page is reported at every query. */
  readonly coarse: boolean;
  start(): Promise<void>;
  /** ORs the pages of one mapped range into `into`. */
  report(range: RamRange, into: PageBitmap): Promise<void>;
  /** While it tracks: takes one mapped range out, and ORs what was written through it up to then into `into`. null: what was is lost. */
  readonly unmap: ((range: RamRange, into: PageBitmap) => Promise<void>) | null;
  stop(): Promise<void>;
}
