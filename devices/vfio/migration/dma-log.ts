// The device's own log of its DMA writes: VFIO_DEVICE_FEATURE_DMA_LOGGING_*, as a port and as the dirty source 'deviceLog' over it.
// Started and collected by the machine's dirty tracker; stopped by it only after the final report. On native threads.
// linux/vfio.h, struct vfio_device_feature_dma_logging_control / _range / _report
import {
  VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT,
  VFIO_DEVICE_FEATURE_DMA_LOGGING_START,
  VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP,
  vfio_device_feature_dma_logging_control,
  vfio_device_feature_dma_logging_range,
  vfio_device_feature_dma_logging_report,
} from '../../../native/abi/vfio.ts';
import type { DirtySource, GpaRange, PageBitmap, RamRange } from '../../contract.ts';
import { within } from '../deadline.ts';
import type { KernelDoor } from '../kernel-door.ts';
import type { DmaLogPort } from '../transport.ts';
import { callFeature, FEATURE_DATA, type FeatureDoor, featureArg, probeFeature } from './feature-arg.ts';
import { Turns } from './turns.ts';

const PAGE = 4096;
const HIGH = 2 ** 32;
const LOG_MS = 30_000;

/** null: the device logs nothing. */
export function openDmaLog(door: KernelDoor, fd: number, name: string): DmaLogPort | null {
  const on = { door, fd };
  return probeFeature(on, VFIO_DEVICE_FEATURE_DMA_LOGGING_START, 'set') ? new KernelDmaLog(on, name) : null;
}

class KernelDmaLog implements DmaLogPort {
  readonly #on: FeatureDoor;
  readonly #name: string;

  constructor(on: FeatureDoor, name: string) {
    this.#on = on;
    this.#name = name;
  }

  async start(ranges: readonly GpaRange[], pageSize: number): Promise<number> {
    const control = vfio_device_feature_dma_logging_control;
    const list = new Uint8Array(ranges.length * vfio_device_feature_dma_logging_range.size);
    const listView = new DataView(list.buffer);
    ranges.forEach((range, i) => {
      const at = i * vfio_device_feature_dma_logging_range.size;
      listView.setBigUint64(at + vfio_device_feature_dma_logging_range.iova, BigInt(range.start), true);
      listView.setBigUint64(at + vfio_device_feature_dma_logging_range.length, BigInt(range.length), true);
    });
    const arg = featureArg(VFIO_DEVICE_FEATURE_DMA_LOGGING_START, 'set', control.size);
    arg.view.setBigUint64(FEATURE_DATA + control.page_size, BigInt(pageSize), true);
    arg.view.setUint32(FEATURE_DATA + control.num_ranges, ranges.length, true);
    const patch = { at: FEATURE_DATA + control.ranges, bytes: list };
    await within(callFeature(this.#on, 'DMA_LOGGING_START', arg, [patch]), {
      ms: LOG_MS,
      what: `${this.#name}: starting its DMA log`,
    });
    return Number(arg.view.getBigUint64(FEATURE_DATA + control.page_size, true));
  }

  async report(range: RamRange, into: PageBitmap): Promise<void> {
    const report = vfio_device_feature_dma_logging_report;
    const arg = featureArg(VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT, 'get', report.size);
    arg.view.setBigUint64(FEATURE_DATA + report.iova, BigInt(range.gpa), true);
    arg.view.setBigUint64(FEATURE_DATA + report.length, BigInt(range.size), true);
    // Any power of two may be asked for, whatever the driver tracks by.
    arg.view.setBigUint64(FEATURE_DATA + report.page_size, BigInt(PAGE), true);
    const at = FEATURE_DATA + report.bitmap;
    const patch = { at, bitmap: into, firstPage: range.slice.offset / PAGE, pages: range.size / PAGE };
    await within(callFeature(this.#on, 'DMA_LOGGING_REPORT', arg, [patch]), {
      ms: LOG_MS,
      what: `${this.#name}: reading its DMA log`,
    });
  }

  async stop(): Promise<void> {
    const arg = featureArg(VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP, 'set', 0);
    await within(callFeature(this.#on, 'DMA_LOGGING_STOP', arg), {
      ms: LOG_MS,
      what: `${this.#name}: stopping its DMA log`,
    });
  }
}

/** At most three spans: below 4 GiB, RAM above it, and BARs above it. Devices track few ranges, and holes between must not inflate one. */
export function loggingSpans(ram: readonly GpaRange[], bars: readonly GpaRange[]): GpaRange[] {
  const spans: GpaRange[] = [];
  const low = ({ start }: GpaRange) => start < HIGH;
  const high = ({ start }: GpaRange) => start >= HIGH;
  for (const side of [[...ram, ...bars].filter(low), ram.filter(high), bars.filter(high)]) {
    if (side.length === 0) continue;
    const start = Math.min(...side.map((each) => each.start));
    const end = Math.max(...side.map((each) => each.start + each.length));
    spans.push({ start, length: end - start });
  }
  return spans;
}

function same(a: readonly GpaRange[], b: readonly GpaRange[]): boolean {
  return a.length === b.length && a.every(({ start, length }, n) => b[n]?.start === start && b[n]?.length === length);
}

/** RAM within the spans: of what it was not told to log a driver need not give a report. */
function partsOf(ram: readonly RamRange[], spans: readonly GpaRange[]): RamRange[] {
  return ram.flatMap(({ gpa, size, slice }) =>
    spans.flatMap(({ start, length }) => {
      const from = Math.max(start, gpa);
      const bytes = Math.min(start + length, gpa + size) - from;
      const offset = slice.offset + from - gpa;
      return bytes > 0 ? [{ gpa: from, size: bytes, slice: { ...slice, offset, size: bytes } }] : [];
    }),
  );
}

export interface DmaLogParts {
  readonly port: DmaLogPort;
  readonly ram: readonly RamRange[];
  readonly newBitmap: () => PageBitmap;
  readonly fallback: DirtySource | null;
  /** What the device can reach beside RAM now. */
  readonly bars: () => readonly GpaRange[];
}

export class DmaLog implements DirtySource {
  readonly name = 'deviceLog';
  readonly coarse = false;
  readonly fallback: DirtySource | null;
  readonly #port: DmaLogPort;
  readonly #ram: readonly RamRange[];
  readonly #newBitmap: () => PageBitmap;
  readonly #bars: () => readonly GpaRange[];
  /** A report must not come into the time in which the log is off for other ranges. */
  readonly #turns = new Turns();
  /** The driver ORs into it, and its bits are taken out after each report; separate, to count what this source alone says. Null: not started. */
  #scratch: PageBitmap | null = null;
  #spans: readonly GpaRange[] = [];
  /** RAM that was asked for. */
  #asked: readonly GpaRange[] = [];
  /** START without a STOP. */
  #on = false;
  /** Why not all is logged that should be; null: it is. */
  #broken: Error | null = null;

  constructor({ port, ram, newBitmap, fallback, bars }: DmaLogParts) {
    this.#port = port;
    this.#ram = ram;
    this.#newBitmap = newBitmap;
    this.fallback = fallback;
    this.#bars = bars;
  }

  /** Rejects, with the log off, where START works and REPORT does not: kernels whose VFIO was built without an iova bitmap (Debian's
   *  6.12 with IOMMUFD off) take START and refuse every REPORT. The tracker takes the fallback then. */
  async start(ranges: readonly GpaRange[]): Promise<void> {
    this.#asked = ranges;
    await this.#begin(loggingSpans(ranges, this.#bars()));
    this.#broken = null;
    this.#scratch = this.#newBitmap();
    try {
      const first = partsOf(this.#ram, this.#spans)[0];
      if (first !== undefined) await this.#port.report(first, this.#scratch);
    } catch (error) {
      await this.stop();
      throw error;
    }
  }

  collect(into: PageBitmap): Promise<number> {
    return this.#turns.run(async () => {
      const scratch = this.#scratch;
      if (scratch === null) return 0;
      if (this.#broken !== null) throw this.#broken;
      await this.#report(scratch);
      return into.take(scratch);
    });
  }

  /**
   * Logs `ranges` from now on: there is one START at a time, so by REPORT, STOP and START. From the report on until START nothing is
   * logged, and all that the device could reach then counts as written once; `stood`: it was in STOP from before to after the call.
   * Rejects when nothing is logged any more; so does every collect() then, and all RAM is dirty.
   */
  follow(ranges: readonly GpaRange[], stood: boolean): Promise<void> {
    return this.#turns.run(async () => {
      const scratch = this.#scratch;
      if (scratch === null) return;
      this.#asked = ranges;
      const now = loggingSpans(ranges, this.#bars());
      if (this.#broken === null && same(now, this.#spans)) return;
      const kept = this.#broken === null && (await this.#keep(scratch));
      const reached = [...this.#spans, ...now];
      try {
        await this.#end();
        await this.#begin(now);
      } catch (error) {
        this.#broken = error instanceof Error ? error : new Error(String(error));
        this.#spans = reached;
        throw error;
      }
      this.#broken = null;
      if (stood && kept) return;
      for (const { slice, size } of partsOf(this.#ram, reached)) scratch.set(slice.offset / PAGE, size / PAGE);
    });
  }

  /** follow(), when what lies beside RAM has changed under devices that run. */
  reachChanged(): Promise<void> {
    return this.follow(this.#asked, false);
  }

  /** false: the log was lost. linux/vfio.h: after an error its content is unknown. */
  async #keep(scratch: PageBitmap): Promise<boolean> {
    try {
      await this.#report(scratch);
      return true;
    } catch {
      return false;
    }
  }

  async #report(scratch: PageBitmap): Promise<void> {
    for (const part of partsOf(this.#ram, this.#spans)) await this.#port.report(part, scratch);
  }

  stop(): Promise<void> {
    return this.#turns.run(async () => {
      if (this.#scratch === null) return;
      this.#scratch.close();
      this.#scratch = null;
      await this.#end();
    });
  }

  async #begin(spans: readonly GpaRange[]): Promise<void> {
    await this.#port.start(spans, PAGE);
    this.#spans = spans;
    this.#on = true;
  }

  async #end(): Promise<void> {
    if (!this.#on) return;
    await this.#port.stop();
    this.#on = false;
  }
}
