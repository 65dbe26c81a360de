// A scripted device of an older migration interface under what drives it in life: its back end, the recovery ladder and VfioLive; and a
// whole move between two of them. For tests of the back ends.
import type { LoadVerdict } from '../../devices/contract.ts';
import { type LivePolicy, VfioLive } from '../../devices/vfio/migration/device-state.ts';
import { RegionDoor } from '../../devices/vfio/migration/region-door.ts';
import type { VfioMigrationPort } from '../../devices/vfio/transport.ts';
import { DEVICE_FD, type FakeRegionDevice, LegacyKernel } from './legacy-kernel.ts';
import { RecordSink, RecordSource } from './piece-wire.ts';

export const NAME = '0000:65:00.0';

export interface LegacyLive<Device extends FakeRegionDevice> {
  readonly device: Device;
  readonly kernel: LegacyKernel;
  readonly port: VfioMigrationPort;
  readonly live: VfioLive;
  readonly sink: RecordSink;
  /** 'reset', 'rearm' and what was warned of. */
  readonly ladder: string[];
  /** Of the last whole load. */
  verdict: LoadVerdict | null;
}

export function regionDoor(kernel: LegacyKernel, index = 0, deadlineMs = 5000): RegionDoor {
  return new RegionDoor({ door: kernel, fd: DEVICE_FD, name: NAME, region: kernel.place(index), deadlineMs });
}

export async function legacyLive<Device extends FakeRegionDevice>(
  device: Device,
  open: (kernel: LegacyKernel) => Promise<VfioMigrationPort>,
  policy: Partial<LivePolicy> = {},
): Promise<LegacyLive<Device>> {
  const kernel = new LegacyKernel(device);
  const port = await open(kernel);
  const ladder: string[] = [];
  const recoverable = {
    name: NAME,
    port,
    log: { debug: () => {}, info: () => {}, warn: (_: object, message: string) => void ladder.push(message) },
    reset: async () => {
      ladder.push('reset');
      await kernel.ioctlAsync('VFIO_DEVICE_RESET', DEVICE_FD, 0, 0);
    },
    rearm: () => void ladder.push('rearm'),
  };
  const live = new VfioLive(recoverable, {
    fixedDowntimeMs: 0,
    stopCopySize: null,
    disabled: false,
    requireValidated: false,
    deviceCount: () => 1,
    peersMapped: async () => {},
    ...policy,
  });
  return { device, kernel, port, live, sink: new RecordSink(kernel), ladder, verdict: null };
}

/** Everything up to the end of the device's stream, as migration/ does it. Gives the records. */
export async function saveAll(source: LegacyLive<FakeRegionDevice>, budget = 1500): Promise<readonly Uint8Array[]> {
  await source.live.saveSetup();
  while ((await source.live.iterate(source.sink, budget)) === 'more');
  await source.live.quiesce();
  await source.live.stop();
  await source.live.drain(source.sink);
  return source.sink.records;
}

/** Gives what was left of each record afterwards: 0 for all, whether the device took them or not. */
export async function loadAll(
  target: LegacyLive<FakeRegionDevice>,
  records: readonly Uint8Array[],
): Promise<readonly number[]> {
  const left: number[] = [];
  await target.live.loadSetup();
  for (const record of records) {
    const source = new RecordSource(target.kernel, record);
    try {
      await target.live.loadChunk(source, record.length);
    } finally {
      left.push(source.left.length);
    }
  }
  target.verdict = await target.live.loadEnd();
  return left;
}
