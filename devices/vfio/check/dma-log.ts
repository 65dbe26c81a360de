// VFIO_DEVICE_FEATURE_DMA_LOGGING_* as the rules call them: each call gives the errno's name or null, bitmaps are bytes. Called by rules-log.ts.
// The bit of an address is (addr - iova) / page_size; the header's formula is garbled. linux/vfio.h, struct vfio_device_feature_dma_logging_*
import {
  VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT,
  VFIO_DEVICE_FEATURE_DMA_LOGGING_START,
  VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP,
  vfio_device_feature_dma_logging_control,
  vfio_device_feature_dma_logging_range,
  vfio_device_feature_dma_logging_report,
} from '../../../native/abi/vfio.ts';
import { callFeature, FEATURE_DATA, featureArg, probeFeature } from '../migration/feature-arg.ts';
import type { Bench } from './bench.ts';
import { codeOf } from './opened.ts';
import { Unreachable } from './rule.ts';

export interface IovaRange {
  readonly iova: number;
  readonly length: number;
}

export function hasDmaLog(bench: Bench): boolean {
  return probeFeature({ door: bench.door, fd: bench.fd }, VFIO_DEVICE_FEATURE_DMA_LOGGING_START, 'set');
}

export async function startLog(
  bench: Bench,
  ranges: readonly IovaRange[],
  pageSize: number,
): Promise<{ readonly error: string | null; readonly pageSize: bigint }> {
  const control = vfio_device_feature_dma_logging_control;
  const one = vfio_device_feature_dma_logging_range;
  const bytes = new Uint8Array(ranges.length * one.size);
  const view = new DataView(bytes.buffer);
  ranges.forEach(({ iova, length }, i) => {
    view.setBigUint64(i * one.size + one.iova, BigInt(iova), true);
    view.setBigUint64(i * one.size + one.length, BigInt(length), true);
  });
  const arg = featureArg(VFIO_DEVICE_FEATURE_DMA_LOGGING_START, 'set', control.size);
  arg.view.setBigUint64(FEATURE_DATA + control.page_size, BigInt(pageSize), true);
  arg.view.setUint32(FEATURE_DATA + control.num_ranges, ranges.length, true);
  const on = { door: bench.door, fd: bench.fd };
  let error: string | null = null;
  try {
    await callFeature(on, 'DMA_LOGGING_START', arg, [{ at: FEATURE_DATA + control.ranges, bytes }]);
  } catch (cause) {
    error = codeOf(cause);
  }
  return { error, pageSize: arg.view.getBigUint64(FEATURE_DATA + control.page_size, true) };
}

export async function stopLog(bench: Bench): Promise<string | null> {
  const arg = featureArg(VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP, 'set', 0);
  try {
    await callFeature({ door: bench.door, fd: bench.fd }, 'DMA_LOGGING_STOP', arg);
    return null;
  } catch (cause) {
    return codeOf(cause);
  }
}

export interface LogReport {
  readonly error: string | null;
  readonly bits: Uint8Array;
  /** Bit numbers that are set. */
  readonly pages: readonly number[];
}

/** `preset`: what the bitmap holds beforehand, in every byte. */
export async function reportLog(
  bench: Bench,
  range: IovaRange,
  pageSize: number,
  preset: number = 0,
): Promise<LogReport> {
  const report = vfio_device_feature_dma_logging_report;
  const bits = new Uint8Array(Math.ceil(range.length / pageSize / 64) * 8).fill(preset);
  const arg = featureArg(VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT, 'get', report.size);
  arg.view.setBigUint64(FEATURE_DATA + report.iova, BigInt(range.iova), true);
  arg.view.setBigUint64(FEATURE_DATA + report.length, BigInt(range.length), true);
  arg.view.setBigUint64(FEATURE_DATA + report.page_size, BigInt(pageSize), true);
  const on = { door: bench.door, fd: bench.fd };
  let error: string | null = null;
  try {
    await callFeature(on, 'DMA_LOGGING_REPORT', arg, [{ at: FEATURE_DATA + report.bitmap, bytes: bits }]);
  } catch (cause) {
    error = codeOf(cause);
  }
  return { error, bits, pages: pagesOf(bits) };
}

function pagesOf(bits: Uint8Array): number[] {
  return Array.from(bits).flatMap((byte, at) =>
    [0, 1, 2, 3, 4, 5, 6, 7].filter((bit) => ((byte >> bit) & 1) === 1).map((bit) => at * 8 + bit),
  );
}

/** Reports that cannot work on this kernel are no finding about the driver. */
export function mustReport(report: LogReport): LogReport {
  if (report.error === 'EOPNOTSUPP') {
    throw new Unreachable('kernel without IOMMUFD_DRIVER: it answers EOPNOTSUPP to every DMA_LOGGING_REPORT');
  }
  if (report.error !== null) throw new Unreachable(`DMA_LOGGING_REPORT does not work (${report.error})`);
  return report;
}

export async function mustStart(bench: Bench, range: IovaRange, pageSize = 4096): Promise<void> {
  const { error } = await startLog(bench, [range], pageSize);
  if (error !== null) throw new Unreachable(`DMA_LOGGING_START does not work (${error})`);
}
