// The rules of `ferry vfio check` for an older generation against a scripted device, each on a device of its own, and the bugs that can be seeded
// in one: what a line of a driver would get wrong, put between the kernel's calls and the device. For check-legacy.test.ts.
import type { Exerciser } from '../../../devices/vfio/check/exerciser.ts';
import type { BesideDevice } from '../../../devices/vfio/check/opened.ts';
import type { Beside, Generation, RuleResult } from '../../../devices/vfio/check/rule.ts';
import { SUITES } from '../../../devices/vfio/check/suites.ts';
import { SysError } from '../../../native/errno.ts';
import { fakeExerciser } from '../../fakes/check-kernel.ts';
import {
  CheckLegacyKernel,
  type LegacyBug,
  type LegacyInside,
  stateOf,
  sumOf,
} from '../../fakes/check-legacy-kernel.ts';
import { MigrationRegionDevice, type RegionDeviceOptions } from '../../fakes/migration-region-device.ts';
import { type StateDeviceOptions, StateRegionsDevice } from '../../fakes/state-regions-device.ts';

export const CLAIMS = { deterministic: true, checksummed: true, p2pAware: false };
const LENGTH = 5000;
const UNSENT = 1000;

export interface LegacyRun<D> {
  readonly make: () => D;
  readonly bug?: (device: D, inside: LegacyInside, instance: number) => LegacyBug;
  readonly exerciser?: Exerciser | null;
  readonly destructive?: boolean;
  /** No second device, and none of another size. */
  readonly alone?: boolean;
}

export function regionDevice(
  options: RegionDeviceOptions = {},
  tune: (device: MigrationRegionDevice) => void = () => {},
) {
  return () => {
    const type = options.abi === 'v7' ? 2 : 3;
    const device = new MigrationRegionDevice({ type, contents: stateOf(0, LENGTH), sameSize: true, ...options });
    if (device.dirty !== null) device.dirty.pageSizes = [4096, 65536];
    tune(device);
    return device;
  };
}

export function statesDevice(options: StateDeviceOptions = {}) {
  return () =>
    new StateRegionsDevice({ strictStates: true, sameSize: true, memory: stateOf(1, 2 * LENGTH), ...options });
}

function insideOfRegion(device: MigrationRegionDevice): LegacyInside {
  const { length } = device.contents;
  return {
    running: () => (device.bits & 1) !== 0,
    wrote: (page) => device.dirty?.write(page),
    // What pre-copy has given already stays; a device that changes it too would have to give it again.
    mutate: (seed) => {
      const next = stateOf(seed, length);
      if ((device.bits & 2) !== 0) next.set(device.contents.subarray(0, length - UNSENT));
      device.contents = next;
      device.changed();
    },
    hash: () => sumOf(device.contents),
    fresh: () => {
      device.contents = stateOf(0, length);
      device.dirty?.pages.clear();
    },
  };
}

function insideOfStates(device: StateRegionsDevice): LegacyInside {
  const configBytes = device.config.length;
  const memoryBytes = device.deviceMemory?.length ?? 0;
  const mutate = (seed: number) => {
    device.config = stateOf(seed, configBytes);
    if (memoryBytes > 0) device.deviceMemory = stateOf(seed + 1, memoryBytes);
    device.memoryTouched = true;
  };
  return {
    running: () => device.active,
    wrote: (page) => device.untold.add(page),
    mutate,
    hash: () => sumOf(device.config, device.deviceMemory ?? new Uint8Array(0)),
    fresh: () => mutate(0),
  };
}

type Scripted = MigrationRegionDevice | StateRegionsDevice;

/** The device with twice as much state. */
function enlarge(device: Scripted): void {
  if (device instanceof MigrationRegionDevice) device.contents = stateOf(0, 2 * device.contents.length);
  else if (device.deviceMemory !== null) device.deviceMemory = stateOf(1, 2 * device.deviceMemory.length);
}

const INSTANCES = { first: 0, second: 1, 'other-size': 2 };

function kernelOf<D extends Scripted>({ make, bug }: LegacyRun<D>, which: keyof typeof INSTANCES): CheckLegacyKernel {
  const device = make();
  if (which === 'other-size') enlarge(device);
  const inside = device instanceof StateRegionsDevice ? insideOfStates(device) : insideOfRegion(device);
  const instance = INSTANCES[which];
  return new CheckLegacyKernel(device, inside, bug?.(device, inside, instance), `fake${instance}`);
}

export async function runLegacy<D extends Scripted>(generation: Generation, options: LegacyRun<D>) {
  const { destructive = false } = options;
  const exerciser = options.exerciser === undefined ? fakeExerciser(CLAIMS) : options.exerciser;
  const suite = SUITES[generation];
  const kernels: CheckLegacyKernel[] = [];
  const results = await Promise.all(
    suite.rules.map(({ name, needs }) => {
      const kernel = kernelOf(options, 'first');
      kernels.push(kernel);
      const beside = (which: Beside): BesideDevice | null => {
        if (options.alone === true || !needs.includes(which)) return null;
        const other = kernelOf(options, which);
        kernels.push(other);
        return { place: other.checkPlace, exerciser, sameKind: true };
      };
      return suite.run(name, {
        place: kernel.checkPlace,
        exerciser,
        beside: { second: beside('second'), 'other-size': beside('other-size') },
        settleMs: 20,
        proc: '/proc',
        kernel: { take: () => [], close: () => {} },
        loops: 1,
        destructive,
        deviceText: '0000:65:00.0',
        exerciserFile: null,
        abi: null,
        besideTexts: { second: null, 'other-size': null },
      }) as Promise<RuleResult>;
    }),
  );
  for (const kernel of kernels) await kernel.checkPlace.close();
  return { results, leaked: kernels.reduce((sum, { open }) => sum + open, 0) };
}

/** Names of the rules that found something, sorted. */
export function found(results: readonly RuleResult[]): string[] {
  return results
    .filter(({ findings }) => findings.length > 0)
    .map(({ rule }) => rule)
    .sort();
}

const refuse = (): never => {
  throw new SysError('pwrite', 22);
};

function put(into: Uint8Array, value: number | bigint): number {
  const view = new DataView(into.buffer, into.byteOffset, into.length);
  if (into.length === 4) view.setUint32(0, Number(value), true);
  else if (into.length !== 8) refuse();
  else view.setBigUint64(0, BigInt(value), true);
  return into.length;
}

const word = (from: Uint8Array) => new DataView(from.buffer, from.byteOffset, from.length).getUint32(0, true);

type RegionBug = (device: MigrationRegionDevice, inside: LegacyInside, instance: number) => LegacyBug;
type StatesBug = (device: StateRegionsDevice, inside: LegacyInside, instance: number) => LegacyBug;

const takes =
  (bits: number): RegionBug =>
  (device) => ({
    write: (_region, at, from) => {
      if (at !== 0 || from.length !== 4 || (word(from) & 7) !== bits) return null;
      device.bits = bits;
      return 4;
    },
  });

/** Of the migration region. */
export const REGION_BUGS = {
  'starts stopped': (): LegacyBug => {
    let touched = false;
    return {
      read: (_region, at, into) => (at === 0 && !touched ? put(into, 0xabcd00) : null),
      write: () => {
        touched = true;
        return null;
      },
    };
  },
  'reserved is kept': (): LegacyBug => {
    let kept = 0;
    return {
      read: (_region, at, into) => (at === 4 && into.length === 4 ? put(into, kept) : null),
      write: (_region, at, from) => {
        if (at !== 4) return null;
        kept = word(from);
        return 4;
      },
    };
  },
  'takes 101': takes(0b101),
  'takes 111': takes(0b111),
  'high bits are lost': (device: MigrationRegionDevice): LegacyBug => ({
    read: (_region, at, into) => (at === 0 && into.length === 4 ? put(into, device.bits) : null),
    write: (region, at, from) => {
      if (at !== 0 || from.length !== 4) return null;
      const forwarded = new Uint8Array(4);
      put(forwarded, 0xabcd00 + (word(from) & 7));
      return device.write(region, at, forwarded);
    },
  }),
  'halves of fields': (): LegacyBug => ({
    read: (_region, at, into) => (at < 32 && into.length !== (at < 8 ? 4 : 8) ? into.length : null),
  }),
  'pending_bytes drops a chunk': (device: MigrationRegionDevice): LegacyBug => {
    let reads = 0;
    return {
      read: (region, at, into) => {
        if (at !== 8 || into.length !== 8) reads = 0;
        if (at !== 8 || into.length !== 8 || ++reads < 2) return null;
        device.read(region, at, into);
        const left = new DataView(into.buffer, into.byteOffset, 8).getBigUint64(0, true);
        return left > 1000n ? put(into, left - 1000n) : 8;
      },
    };
  },
  'data_offset moves': (device: MigrationRegionDevice): LegacyBug => {
    let reads = 0;
    return {
      read: (region, at, into) => {
        if (at === 8) reads = 0;
        if (at !== 16 || (device.bits & 2) === 0 || ++reads < 2) return null;
        device.read(region, at, into);
        return put(into, 40);
      },
    };
  },
  'data_offset among the registers': (device: MigrationRegionDevice): LegacyBug => ({
    read: (region, at, into) => {
      if (at !== 16) return null;
      device.read(region, at, into);
      return put(into, 8);
    },
  }),
  'more comes after the end': (device: MigrationRegionDevice): LegacyBug => {
    let ended = false;
    return {
      read: (region, at, into) => {
        if (at !== 8 || device.bits !== 2) return null;
        if (ended) return put(into, 77);
        device.read(region, at, into);
        ended = into.every((byte) => byte === 0);
        return into.length;
      },
      write: (_region, at) => {
        if (at === 0) ended = false;
        return null;
      },
    };
  },
  'reset does nothing': (): LegacyBug => ({ reset: () => {} }),
  'close does nothing': (): LegacyBug => ({ closeKeeps: true }),
  'DMA goes on': (): LegacyBug => ({ inside: { running: () => true } }),
  'dies of a stop': (device: MigrationRegionDevice): LegacyBug => {
    let dead = false;
    return {
      inside: { running: () => !dead && (device.bits & 1) !== 0 },
      write: (_region, at, from) => {
        if (at === 0 && from.length === 4 && (word(from) & 1) === 0) dead = true;
        return null;
      },
    };
  },
  'state is lost': (): LegacyBug => ({ inside: { hash: () => Math.floor(performance.now() * 1000) } }),
  'pre-copy has to be read to its end': (device: MigrationRegionDevice): LegacyBug => ({
    write: (_region, at, from) => {
      if (at !== 0 || from.length !== 4 || device.bits !== 3 || (word(from) & 7) !== 2) return null;
      const left = new Uint8Array(8);
      device.read(0, 8, left);
      return left.some((byte) => byte !== 0) ? refuse() : null;
    },
  }),
  'the bitmap lies among the registers': (device: MigrationRegionDevice): LegacyBug => {
    let answered = false;
    return {
      read: (region, at, into) => {
        if (at === 16 && answered) {
          answered = false;
          device.read(region, at, into);
          return put(into, 8);
        }
        if (at === 56) answered = true;
        return null;
      },
    };
  },
  'tells outside of SAVING': (device: MigrationRegionDevice): LegacyBug => ({
    read: (_region, at, into) => (at === 56 && (device.bits & 2) === 0 ? put(into, 2n ** 64n - 1n) : null),
  }),
  'page_size is ignored': (device: MigrationRegionDevice): LegacyBug => ({
    write: (region, at) => {
      if (at !== 40) return null;
      const forwarded = new Uint8Array(8);
      put(forwarded, 4096);
      return device.write(region, at, forwarded);
    },
  }),
  'dirty pages are lost at the stop': (device: MigrationRegionDevice): LegacyBug => ({
    write: (_region, at, from) => {
      if (at === 0 && from.length === 4 && (word(from) & 7) === 2) device.dirty?.pages.clear();
      return null;
    },
  }),
  'data of another instance are refused': (device: MigrationRegionDevice, _inside, instance): LegacyBug => ({
    write: (_region, at) => (instance === 1 && at === 0 && device.bits === 4 ? refuse() : null),
  }),
  'pages beside are dirty too': (device: MigrationRegionDevice): LegacyBug => ({
    inside: { wrote: (page) => device.dirty?.write(page, page + 1, page + 9) },
  }),
} as const satisfies Record<string, RegionBug>;

const CTL = 0;

/** Of the device state regions. */
export const STATES_BUGS = {
  'version changes': (device: StateRegionsDevice): LegacyBug => ({
    read: (region, at, into) => (region === CTL && at === 0 && device.state === 1 ? put(into, 2) : null),
  }),
  'caps change': (device: StateRegionsDevice): LegacyBug => ({
    read: (region, at, into) => (region === CTL && at === 8 && device.state === 3 ? put(into, 0) : null),
  }),
  'DMA goes on': (): LegacyBug => ({ inside: { running: () => true } }),
  'STOP & LOGGING is not left': (device: StateRegionsDevice): LegacyBug => {
    let dead = false;
    return {
      inside: { running: () => !dead && device.active },
      reset: () => {
        dead = false;
        device.reset();
      },
      write: (region, at, from) => {
        if (region === CTL && at === 4) dead = device.state === 3 && word(from) === 0;
        return null;
      },
    };
  },
  'reset does nothing': (): LegacyBug => ({ reset: () => {} }),
  'close does nothing': (): LegacyBug => ({ closeKeeps: true }),
  'the bitmap begins at 0': (device: StateRegionsDevice): LegacyBug => ({
    write: (region, at, from) => {
      if (region !== CTL || at !== 52 || from.length !== 16) return null;
      const forwarded = from.slice();
      forwarded.fill(0, 0, 8);
      return device.write(region, at, forwarded);
    },
  }),
  'page_nr is cut': (): LegacyBug => ({
    write: (region, at, from) => {
      if (region !== CTL || at !== 52 || from.length !== 16) return null;
      return word(from.subarray(8)) > 4096 * 8 ? 16 : null;
    },
  }),
  'config size beyond its region': (device: StateRegionsDevice): LegacyBug => ({
    read: (region, at, into) => (region === CTL && at === 20 && device.state === 0 ? put(into, 8192) : null),
  }),
  'config is that of the first GET_BUFFER': (_device: StateRegionsDevice, inside: LegacyInside): LegacyBug => {
    let taken = false;
    return {
      inside: {
        fresh: () => {
          taken = false;
          inside.fresh();
        },
      },
      write: (region, at, from) => {
        if (region !== CTL || at !== 12) return null;
        if (word(from) === 2) taken = false;
        else if (taken) return 4;
        else taken = true;
        return null;
      },
    };
  },
  'config differs from GET_BUFFER to GET_BUFFER': (device: StateRegionsDevice): LegacyBug => {
    let reads = 0;
    return {
      read: (region, at, into) => {
        if (region !== 1 || device.state !== 1) return null;
        device.read(region, at, into);
        into[0] = ((into[0] ?? 0) + reads++) & 0xff;
        return into.length;
      },
    };
  },
  'memory is given once': (device: StateRegionsDevice): LegacyBug => {
    let reads = 0;
    return {
      read: (region, at, into) =>
        region === CTL && at === 36 && device.state === 1 && ++reads > 1 ? put(into, 0) : null,
    };
  },
  'state is lost': (): LegacyBug => ({ inside: { hash: () => Math.floor(performance.now() * 1000) } }),
  'LOGGING leaves memory out': (device: StateRegionsDevice): LegacyBug => ({
    read: (region, at) => {
      if (region === CTL && at === 36) device.memoryTouched = false;
      return null;
    },
  }),
  'state is of the instance': (_device: StateRegionsDevice, inside: LegacyInside, instance: number): LegacyBug => ({
    inside: { hash: () => inside.hash() + instance },
  }),
  'its own config is refused': (): LegacyBug => ({
    write: (region, at, from) => (region === CTL && at === 12 && word(from) === 2 ? refuse() : null),
  }),
} as const satisfies Record<string, StatesBug>;
