// What makes a device work while `ferry vfio check` looks at it: a small plug-in per device. Types, the choice among our own, and loading an
// author's. Called by cli/vfio-check.ts and by the child; used by the rules through Bench. docs/check.md says how to write one.
import { existsSync } from 'node:fs';
import { resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import type { GuestRam } from '../../../native/addon.ts';
import { VmmError } from '../../../native/errno.ts';
import { importModule } from '../../import-module.ts';
import { bringupExerciser } from './exerciser-bringup.ts';
import { eduExerciser } from './exerciser-edu.ts';
import { mttyExerciser } from './exerciser-mtty.ts';
import { Unreachable } from './rule.ts';

/** The device as an exerciser may use it. `iova` is where `ram` begins for the device; its last MiB is the exerciser's own. */
export interface ExerciserPort {
  readRegion(index: number, offset: number, into: Uint8Array): void;
  writeRegion(index: number, offset: number, from: Uint8Array): void;
  readonly ram: GuestRam;
  readonly iova: number;
  sleep(ms: number): Promise<void>;
}

export interface DmaExercise {
  /** From the start of a write until it has landed, at most, on a machine that does nothing else. */
  readonly ms: number;
  /** Most bytes of one write. */
  readonly maxBytes: number;
  /** The bytes that startWrite() writes. */
  pattern(seed: number, length: number): Uint8Array;
  /** Starts a DMA write of pattern(seed, length) to `iova` and returns while it is under way, if the device is slow enough for that. */
  startWrite(port: ExerciserPort, iova: number, length: number, seed: number): Promise<void>;
}

export interface InterruptExercise {
  /** VFIO's index (0 INTx, 1 MSI, 2 MSI-X of a PCI device) and the vector within it. */
  readonly index: number;
  readonly vector: number;
  /** Raises it once; returns at once. */
  raise(port: ExerciserPort): Promise<void>;
}

export interface InnerExercise {
  /** Makes the internal state another one for each seed. */
  mutate(port: ExerciserPort, seed: number): Promise<void>;
  /** A text that is equal exactly when all of the internal state is. Parts of it, between colons, may stand for parts of the state: none of
   *  them may survive close or reset. Only called in RUNNING. */
  hash(port: ExerciserPort): Promise<string>;
}

/** Bytes in a BAR that can be mapped, within one page of it: they keep what is written, and do nothing else. */
export interface PeerTarget {
  readonly region: number;
  readonly offset: number;
  readonly length: number;
}

export interface Exerciser {
  readonly name: string;
  /** By the ids in config space; never by a driver's name or parameters. */
  matches(vendor: number, device: number): boolean;
  readonly claims: {
    /** The stream of a stopped device is the same each time it is saved. */
    readonly deterministic: boolean;
    /** A stream in which any byte was changed is refused. */
    readonly checksummed: boolean;
    /** In P2P states DMA to RAM goes on. */
    readonly p2pAware: boolean;
  };
  readonly dma: DmaExercise | null;
  /** DMA that the device takes for a peer's and may not begin in the P2P states; null: all its DMA is alike (see p2pAware). */
  readonly peer: DmaExercise | null;
  /** Where another device's DMA may go, when this one is the peer. */
  readonly target: PeerTarget | null;
  readonly interrupt: InterruptExercise | null;
  readonly inner: InnerExercise | null;
}

export const OWN_EXERCISERS: readonly Exerciser[] = [eduExerciser, bringupExerciser, mttyExerciser];

/** null: none of ours knows the device. */
export function exerciserFor(vendor: number, device: number): Exerciser | null {
  return OWN_EXERCISERS.find((each) => each.matches(vendor, device)) ?? null;
}

/** `--exerciser FILE`: a JavaScript module whose default export is one. */
export async function loadExerciser(file: string): Promise<Exerciser> {
  const path = resolve(file);
  if (!existsSync(path)) throw new VmmError('exerciser', `--exerciser ${file}: there is no such file`);
  let loaded: unknown;
  try {
    loaded = (await importModule(pathToFileURL(path).href))['default'];
  } catch (cause) {
    throw new VmmError('exerciser', `--exerciser ${file}: cannot be loaded: ${(cause as Error).message}`, { cause });
  }
  const problem = problemOf(loaded);
  if (problem !== null) throw new VmmError('exerciser', `--exerciser ${file}: ${problem}; see docs/check.md`);
  return loaded as Exerciser;
}

function problemOf(loaded: unknown): string | null {
  if (typeof loaded !== 'object' || loaded === null) return 'its default export is no object';
  const it = loaded as Record<string, unknown>;
  if (typeof it['name'] !== 'string') return 'it has no name';
  if (typeof it['claims'] !== 'object' || it['claims'] === null) return 'it has no claims';
  const parts = {
    dma: ['startWrite', 'pattern'],
    peer: ['startWrite', 'pattern'],
    target: [],
    interrupt: ['raise'],
    inner: ['mutate', 'hash'],
  };
  for (const [part, methods] of Object.entries(parts)) {
    const has = it[part] as Record<string, unknown> | null | undefined;
    if (has === undefined) return `it has no '${part}' (null where the device cannot)`;
    const missing = has === null ? undefined : methods.find((method) => typeof has[method] !== 'function');
    if (missing !== undefined) return `its ${part} has no ${missing}()`;
  }
  return null;
}

/** What goes wrong in an exerciser is no finding about the driver: the rule was not reached. */
export function guarded(exerciser: Exerciser): Exerciser {
  const { interrupt, inner } = exerciser;
  return {
    name: exerciser.name,
    matches: (vendor, device) => exerciser.matches(vendor, device),
    claims: exerciser.claims,
    dma: guardedDma(exerciser.dma),
    peer: guardedDma(exerciser.peer),
    target: exerciser.target,
    interrupt: interrupt && {
      index: interrupt.index,
      vector: interrupt.vector,
      raise: (port) => reached(() => interrupt.raise(port)),
    },
    inner: inner && {
      mutate: (port, seed) => reached(() => inner.mutate(port, seed)),
      hash: (port) => reached(() => inner.hash(port)),
    },
  };
}

function guardedDma(dma: DmaExercise | null): DmaExercise | null {
  return (
    dma && {
      ms: dma.ms,
      maxBytes: dma.maxBytes,
      pattern: (seed, length) => dma.pattern(seed, length),
      startWrite: (port, iova, length, seed) => reached(() => dma.startWrite(port, iova, length, seed)),
    }
  );
}

async function reached<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    throw new Unreachable(`the exerciser gave up: ${(error as Error).message}`);
  }
}
