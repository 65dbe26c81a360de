// The child of a check: opens the device, then runs each rule that it is told, one at a time, and sends what came of it. Started by children.ts
// through cli/vfio-check.ts; ends when its input does. A hang or a crash of it is what the parent watches for.
import type { HostPaths } from '../kernel-door.ts';
import { type BesideTexts, findBeside, openBeside } from './beside.ts';
import type { CheckDoor } from './check-door.ts';
import type { FromChild } from './children.ts';
import { type Exerciser, exerciserFor, guarded, loadExerciser } from './exerciser.ts';
import { findGeneration } from './generation.ts';
import { DEAF, openKernelLog } from './kernel-log.ts';
import { ALONE } from './opened.ts';
import { type DevicePlace, findDevice, openPlace } from './place.ts';
import type { Generation } from './rule.ts';
import type { RuleHost } from './run-rule.ts';
import { SUITES, type Suite } from './suites.ts';

const CONFIG = 7;
/** Three times as long as the slowest thing that a stopped device was seen to do late (edu: 100 ms). */
const SETTLE_MS = 300;
const LOOPS = 250;

export interface ServeOptions {
  readonly door: CheckDoor;
  readonly paths: HostPaths;
  readonly deviceText: string;
  readonly exerciserFile: string | null;
  readonly destructive: boolean;
  /** `--abi`; null: what the device is found to speak. */
  readonly abi: Generation | null;
  readonly besideTexts: BesideTexts;
}

export async function serve(
  options: ServeOptions,
  lines: AsyncIterable<string>,
  send: (message: FromChild) => void,
): Promise<void> {
  const { paths, exerciserFile } = options;
  const door = toldOf(options.door, send);
  const loaded = exerciserFile === null ? null : await loadExerciser(exerciserFile);
  const place = await openPlace(door, paths, findDevice(paths, options.deviceText));
  const kernel = openKernelLog(paths);
  let closeOthers = async () => {};
  try {
    const { generation, facts } = await findGeneration(place, options.abi);
    const suite = SUITES[generation];
    const lookAt = (each: DevicePlace) => look(each, loaded, { suite, proc: paths.proc });
    const { exerciser, offers, ids } = lookAt(place);
    const others = await openBeside(
      { door, paths },
      findBeside(paths, options.deviceText, options.besideTexts),
      { generation: (each) => findGeneration(each, options.abi), look: lookAt },
      { generation, ids },
    );
    closeOthers = others.close;
    const host: RuleHost = {
      place,
      exerciser,
      beside: others.beside,
      settleMs: SETTLE_MS,
      proc: paths.proc,
      kernel: kernel ?? DEAF,
      loops: LOOPS,
      destructive: options.destructive,
      deviceText: options.deviceText,
      exerciserFile,
      abi: options.abi,
      besideTexts: options.besideTexts,
    };
    const name = exerciser?.name ?? null;
    send({ kind: 'ready', generation, facts, exerciser: name, offers, kernelLog: kernel !== null });
    await serveLines(suite, host, lines, send);
  } finally {
    kernel?.close();
    await closeOthers();
    await place.close();
  }
}

const ALIVE_MS = 1000;

/** The same door; each call that ends is a sign of life, at most one a second. */
function toldOf(door: CheckDoor, send: (message: FromChild) => void): CheckDoor {
  let last = performance.now();
  const ended = <T>(result: T): T => {
    if (performance.now() - last > ALIVE_MS) {
      last = performance.now();
      send({ kind: 'alive' });
    }
    return result;
  };
  const settled = <T>(call: Promise<T>): Promise<T> => call.finally(() => ended(null));
  return {
    ...door,
    ioctl: (...call) => ended(door.ioctl(...call)),
    ioctlAsync: (...call) => settled(door.ioctlAsync(...call)),
    preadAsync: (...call) => settled(door.preadAsync(...call)),
    pwriteAsync: (...call) => settled(door.pwriteAsync(...call)),
    readFd: (...call) => settled(door.readFd(...call)),
    writeFd: (...call) => settled(door.writeFd(...call)),
  };
}

/** The rest of serve(), once there is a device: a test has a scripted one. */
export async function serveLines(
  suite: Suite,
  host: RuleHost,
  lines: AsyncIterable<string>,
  send: (message: FromChild) => void,
): Promise<void> {
  for await (const line of lines) {
    try {
      const result = await suite.run(line, host);
      if (result === null) send({ kind: 'failed', message: `there is no rule ${line}` });
      else send({ kind: 'result', result });
    } catch (error) {
      send({ kind: 'failed', message: (error as Error).stack ?? String(error) });
    }
  }
}

/** What a device offers, and who makes it work: the author's exerciser, or one of ours by the ids in config space. */
function look(
  place: DevicePlace,
  loaded: Exerciser | null,
  { suite, proc }: { readonly suite: Suite; readonly proc: string },
): { readonly exerciser: Exerciser | null; readonly offers: readonly string[]; readonly ids: string } {
  const bench = suite.open({ place, exerciser: null, beside: ALONE, settleMs: 0, proc, kernel: DEAF, loops: 0 });
  const config = bench.device.info.regions.find((each) => each.index === CONFIG && each.size >= 64);
  const ids = new Uint8Array(4);
  if (config !== undefined) bench.device.readRegion(CONFIG, 0, ids);
  const view = new DataView(ids.buffer);
  const own = config === undefined ? null : exerciserFor(view.getUint16(0, true), view.getUint16(2, true));
  const offers = bench.offers();
  bench.door.closeFd(bench.fd);
  const exerciser = loaded ?? own;
  return { exerciser: exerciser && guarded(exerciser), offers, ids: Buffer.from(ids).toString('hex') };
}
