// `ferry vfio info` against a trace: the same probeDevice, with no device. Called by cli/vfio-trace.ts and tests.
import { VmmError } from '../../../native/errno.ts';
import { type DeviceOffer, probeDevice } from '../probe.ts';
import { ReplayDoor, type ReplayParts } from './replay-door.ts';
import { ReplayHost } from './replay-host.ts';
import type { Trace } from './trace-file.ts';

export interface ReplayInput {
  readonly file: string;
  readonly trace: Trace;
  readonly native: ReplayParts['native'];
}

/** Throws VmmError at the first call that the trace does not have. */
export async function replayInfo(input: ReplayInput): Promise<DeviceOffer[]> {
  const { trace, file, native } = input;
  if (trace.devices.length === 0) {
    throw new VmmError('replay', `${file}: no device was opened in this trace, so there is nothing to replay`);
  }
  const host = new ReplayHost(trace);
  const door = new ReplayDoor({ trace, file, paths: host.paths, native, only: null, optional: null });
  try {
    const offers: DeviceOffer[] = [];
    for (const { bdf } of trace.devices) offers.push(await answered(door, probeDevice(door, host.paths, bdf)));
    return host.outside(offers);
  } catch (error) {
    if (error !== door.mismatch || isOfInfo(trace.header.program)) throw error;
    const program = trace.header.program.slice(0, 3).join(' ');
    throw new VmmError(
      'replay',
      `${(error as Error).message}; this is a trace of '${program}', which may well call in another order than ferry vfio info: ferry vfio trace --show prints it`,
      { exitCode: 1 },
    );
  } finally {
    door.close();
    host.close();
  }
}

/** A mismatch may have been taken for "the kernel does not know this" on the way: it is the result all the same. */
export async function answered<T>(door: ReplayDoor, work: Promise<T>): Promise<T> {
  const result = await work.catch((error: unknown) => {
    throw door.mismatch ?? error;
  });
  if (door.mismatch !== null) throw door.mismatch;
  return result;
}

/** 'ferry vfio info', however its executable was called. */
function isOfInfo(program: readonly string[]): boolean {
  const at = program.indexOf('vfio');
  return at !== -1 && program[at + 1] === 'info';
}
