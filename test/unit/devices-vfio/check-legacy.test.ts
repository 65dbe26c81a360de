// Every rule of `ferry vfio check` for the older generations against scripted devices: clean and legal-but-odd ones have no finding; each seeded
// bug is found under its rule and under no unrelated one. The devices share nothing with the rules or with devices/vfio/migration.
import { describe, expect, it } from 'vitest';
import { findGeneration } from '../../../devices/vfio/check/generation.ts';
import { SUITES } from '../../../devices/vfio/check/suites.ts';
import { CheckKernel, fakeExerciser } from '../../fakes/check-kernel.ts';
import { CheckLegacyKernel } from '../../fakes/check-legacy-kernel.ts';
import type { FakeRegionDevice } from '../../fakes/legacy-kernel.ts';
import type { MigrationRegionDevice } from '../../fakes/migration-region-device.ts';
import type { StateRegionsDevice } from '../../fakes/state-regions-device.ts';
import {
  CLAIMS,
  found,
  type LegacyRun,
  REGION_BUGS,
  regionDevice,
  runLegacy,
  STATES_BUGS,
  statesDevice,
} from './check-legacy-run.ts';

type RegionCase = readonly [LegacyRun<MigrationRegionDevice>, readonly string[]];
type StatesCase = readonly [LegacyRun<StateRegionsDevice>, readonly string[]];

const v1 = regionDevice();
const v7 = regionDevice({ abi: 'v7' });
const NO_SUMS = fakeExerciser({ ...CLAIMS, checksummed: false });

const V1_BUGS: Readonly<Record<string, RegionCase>> = {
  'starts stopped': [{ make: v1, bug: REGION_BUGS['starts stopped'] }, ['region.first']],
  'reserved is kept': [{ make: v1, bug: REGION_BUGS['reserved is kept'] }, ['region.reserved']],
  'RUNNING to STOP fails': [
    { make: regionDevice({}, (device) => device.refuse.push({ from: 1, to: 0, lands: 1 })) },
    ['region.arcs'],
  ],
  'no pre-copy': [
    { make: regionDevice({}, (device) => device.refuse.push({ from: 1, to: 3, lands: 1 })) },
    ['region.arcs'],
  ],
  'RESUMING to RUNNING fails': [
    { make: regionDevice({}, (device) => device.refuse.push({ from: 4, to: 1, lands: 4 })) },
    ['region.round-trip'],
  ],
  'pre-copy has to be read to its end': [
    { make: v1, bug: REGION_BUGS['pre-copy has to be read to its end'] },
    ['region.arcs', 'region.pre-copy-left'],
  ],
  'takes 101': [{ make: v1, bug: REGION_BUGS['takes 101'] }, ['region.invalid']],
  'takes 111': [{ make: v1, bug: REGION_BUGS['takes 111'] }, ['region.invalid']],
  'high bits are lost': [{ make: v1, bug: REGION_BUGS['high bits are lost'] }, ['region.reserved-bits']],
  'halves of fields': [{ make: v1, bug: REGION_BUGS['halves of fields'] }, ['region.widths']],
  'pending_bytes drops a chunk': [{ make: v1, bug: REGION_BUGS['pending_bytes drops a chunk'] }, ['region.pending']],
  'data_offset moves': [{ make: v1, bug: REGION_BUGS['data_offset moves'] }, ['region.chunk-repeated']],
  'data_offset among the registers': [
    { make: v1, bug: REGION_BUGS['data_offset among the registers'] },
    ['region.data-offset'],
  ],
  'more comes after the end': [
    { make: v1, bug: REGION_BUGS['more comes after the end'] },
    ['region.end', 'region.pending'],
  ],
  'reset does nothing': [{ make: v1, bug: REGION_BUGS['reset does nothing'] }, ['region.reset']],
  'close does nothing': [{ make: v1, bug: REGION_BUGS['close does nothing'] }, ['region.close']],
  'DMA goes on': [{ make: v1, bug: REGION_BUGS['DMA goes on'] }, ['region.stop']],
  'dies of a stop': [{ make: v1, bug: REGION_BUGS['dies of a stop'] }, ['region.runs']],
  'state is lost': [{ make: v1, bug: REGION_BUGS['state is lost'] }, ['region.pre-copied-state', 'region.state']],
  'short data are taken': [{ make: regionDevice({ lax: 'short' }) }, ['region.truncated']],
  'damaged data are taken': [{ make: regionDevice({ lax: 'damaged' }) }, ['region.corrupted']],
  'a part of a chunk is taken': [{ make: regionDevice({ lax: 'cut' }) }, ['region.chunk-whole']],
  'data of another instance are refused': [
    { make: v1, bug: REGION_BUGS['data of another instance are refused'] },
    ['region.into-second'],
  ],
};

const pfns = (tune: (dirty: NonNullable<MigrationRegionDevice['dirty']>) => void) =>
  regionDevice({ abi: 'v7' }, (device) => {
    if (device.dirty !== null) tune(device.dirty);
  });

const V7_BUGS: Readonly<Record<string, RegionCase>> = {
  'takes 111': [{ make: v7, bug: REGION_BUGS['takes 111'] }, ['region.invalid']],
  'DMA goes on': [{ make: v7, bug: REGION_BUGS['DMA goes on'] }, ['region.stop']],
  'short data are taken': [{ make: regionDevice({ abi: 'v7', lax: 'short' }) }, ['region.truncated']],
  'the bitmap lies among the registers': [
    { make: v7, bug: REGION_BUGS['the bitmap lies among the registers'] },
    ['pfns.data-offset'],
  ],
  'tells outside of SAVING': [{ make: v7, bug: REGION_BUGS['tells outside of SAVING'] }, ['pfns.saving']],
  'more than was asked for': [
    {
      make: pfns((dirty) => {
        dirty.answer = 'too many';
      }),
    },
    ['pfns.total'],
  ],
  'NONE although a later page is dirty': [
    {
      make: pfns((dirty) => {
        dirty.most = 64;
        dirty.forgetsRest = true;
      }),
    },
    ['pfns.partial'],
  ],
  'pages are told one too high': [
    {
      make: pfns((dirty) => {
        dirty.shift = 1;
      }),
    },
    ['pfns.last-write', 'pfns.page-size', 'pfns.partial', 'pfns.writes'],
  ],
  'page_size is ignored': [{ make: v7, bug: REGION_BUGS['page_size is ignored'] }, ['pfns.page-size']],
  'dirty pages are lost at the stop': [
    { make: v7, bug: REGION_BUGS['dirty pages are lost at the stop'] },
    ['pfns.last-write'],
  ],
};

const a = { make: statesDevice(), exerciser: NO_SUMS };

const STATES_CASES: Readonly<Record<string, StatesCase>> = {
  'version changes': [{ ...a, bug: STATES_BUGS['version changes'] }, ['ctl.version']],
  'another version': [{ ...a, make: statesDevice({ version: 2 }) }, ['ctl.version']],
  'caps change': [{ ...a, bug: STATES_BUGS['caps change'] }, ['ctl.caps']],
  'a cap that is none': [{ ...a, make: statesDevice({ extraCaps: 4 }) }, ['ctl.caps']],
  'STOP to STOP & LOGGING fails': [
    {
      ...a,
      make: () => {
        const device = statesDevice()();
        device.refuse.push({ from: 1, to: 3 });
        return device;
      },
    },
    ['ctl.arcs'],
  ],
  'takes what is no state': [{ ...a, make: statesDevice({ strictStates: false }) }, ['ctl.invalid']],
  'DMA goes on': [{ ...a, bug: STATES_BUGS['DMA goes on'] }, ['ctl.stop', 'ctl.stop-logging']],
  'STOP & LOGGING is not left': [{ ...a, bug: STATES_BUGS['STOP & LOGGING is not left'] }, ['ctl.activate']],
  'reset does nothing': [{ ...a, bug: STATES_BUGS['reset does nothing'] }, ['ctl.reset']],
  'close does nothing': [{ ...a, bug: STATES_BUGS['close does nothing'] }, ['ctl.close']],
  'the bitmap begins at 0': [
    { ...a, bug: STATES_BUGS['the bitmap begins at 0'] },
    ['ctl.bitmap', 'ctl.bitmap-stopped'],
  ],
  'page_nr is cut': [{ ...a, bug: STATES_BUGS['page_nr is cut'], destructive: true }, ['ctl.page-nr']],
  'config size beyond its region': [{ ...a, bug: STATES_BUGS['config size beyond its region'] }, ['parts.config-size']],
  'config is that of the first GET_BUFFER': [
    { ...a, bug: STATES_BUGS['config is that of the first GET_BUFFER'] },
    ['parts.memory-dirty', 'parts.second'],
  ],
  'config differs from GET_BUFFER to GET_BUFFER': [
    { ...a, bug: STATES_BUGS['config differs from GET_BUFFER to GET_BUFFER'] },
    ['parts.config-snapshot', 'parts.second'],
  ],
  'memory is given once': [
    { ...a, bug: STATES_BUGS['memory is given once'] },
    ['parts.memory-snapshot', 'parts.second'],
  ],
  'state is lost': [{ ...a, bug: STATES_BUGS['state is lost'] }, ['parts.memory-dirty', 'parts.state']],
  'LOGGING leaves memory out': [{ ...a, bug: STATES_BUGS['LOGGING leaves memory out'] }, ['parts.memory-dirty']],
  'its own config is refused': [{ ...a, bug: STATES_BUGS['its own config is refused'] }, ['parts.round-trip']],
  'claims checksums and has none': [
    { make: statesDevice(), exerciser: fakeExerciser(CLAIMS) },
    ['parts.config-verdict', 'parts.memory-verdict'],
  ],
  // What GVT-g does, and the text does not: only 1 stops it, and only 0 makes it go on.
  'state is of the instance': [{ ...a, bug: STATES_BUGS['state is of the instance'] }, ['parts.into-second']],
  "GVT-g's states": [
    { ...a, make: statesDevice({ gvtG: true, memory: null, config: new Uint8Array(4096).fill(7) }) },
    ['ctl.activate', 'ctl.stop-logging'],
  ],
};

const ODD_REGIONS: Readonly<Record<string, readonly ['v1' | 'v7', LegacyRun<MigrationRegionDevice>]>> = {
  'v1: RESUMING to STOP refused': ['v1', { make: regionDevice({ stopAfterLoad: false }) }],
  'v1: only the arcs that are drawn': ['v1', { make: regionDevice({ strict: true }) }],
  'v1: nothing in pre-copy': ['v1', { make: regionDevice({ preCopyChunks: 0 }) }],
  'v1: one chunk': ['v1', { make: regionDevice({ chunk: 6000, preCopyChunks: 0 }) }],
  'v1: data mapped': [
    'v1',
    { make: regionDevice({ dataOffset: 4096, areas: [{ start: 4096, length: 8192 }], size: 0x3000 }) },
  ],
  'v1: no exerciser': ['v1', { make: v1, exerciser: null }],
  'v7: RESUMING to STOP refused': ['v7', { make: regionDevice({ abi: 'v7', stopAfterLoad: false }) }],
  'v7: region type 3': ['v7', { make: regionDevice({ abi: 'v7', type: 3 }) }],
  'v7: ten pages an answer': [
    'v7',
    {
      make: pfns((dirty) => {
        dirty.most = 10;
      }),
    },
  ],
  'v7: ALL pages': [
    'v7',
    {
      make: pfns((dirty) => {
        dirty.answer = 'all';
      }),
    },
  ],
  'v7: more pages than were written': ['v7', { make: v7, bug: REGION_BUGS['pages beside are dirty too'] }],
};

const ODD_STATES: Readonly<Record<string, LegacyRun<StateRegionsDevice>>> = {
  'no device memory': { ...a, make: statesDevice({ memory: null }) },
  'no dirty bitmap': { ...a, make: statesDevice({ tracks: false }) },
  'a bitmap that is never emptied': { ...a, make: statesDevice({ cached: true }) },
  'regions mapped': { ...a, make: statesDevice({ mapped: true }) },
  'no exerciser': { ...a, exerciser: null },
};

const unsettled = (results: Awaited<ReturnType<typeof runLegacy>>['results']) =>
  results.filter(({ outcome }) => outcome !== 'ok' && outcome !== 'note').map(({ rule }) => rule);

describe('ferry vfio check of a v1 migration region', () => {
  it('finds nothing on a clean device, reaches every rule, and closes every fd', async () => {
    const { results, leaked } = await runLegacy('v1', { make: v1 });
    expect(results.flatMap(({ findings }) => findings)).toEqual([]);
    // Nothing leads the clean one into the error state.
    expect(unsettled(results)).toEqual(['region.error']);
    expect(leaked).toBe(0);
  });

  it.each(Object.entries(V1_BUGS))('finds the bug: %s', async (_name, [options, rules]) => {
    expect(found((await runLegacy('v1', options)).results)).toEqual(rules);
  });

  it('reaches the error state where bad data lead there, and finds that it is left without a reset', async () => {
    const bad = regionDevice({}, (device) => device.refuse.push({ from: 4, to: 0, lands: 6 }));
    const { results } = await runLegacy('v1', { make: bad });
    expect(results.find(({ rule }) => rule === 'region.error')?.outcome).toBe('ok');
    const leavable = (device: MigrationRegionDevice) => ({
      write: (region: number, at: number, from: Uint8Array) => {
        if (at === 0 && device.bits === 6) device.bits = 1;
        return at === 0 ? device.write(region, at, from) : null;
      },
    });
    const second = await runLegacy('v1', { make: bad, bug: leavable });
    expect(second.results.find(({ rule }) => rule === 'region.error')?.outcome).toBe('finding');
  });

  it('calls damage a note where nobody claims checksums', async () => {
    const { results } = await runLegacy('v1', { make: regionDevice({ lax: 'damaged' }), exerciser: NO_SUMS });
    expect(results.find(({ rule }) => rule === 'region.corrupted')?.outcome).toBe('note');
  });
});

describe('ferry vfio check of a v7 migration region', () => {
  it('finds nothing on a clean device, reaches every rule, and closes every fd', async () => {
    const { results, leaked } = await runLegacy('v7', { make: v7 });
    expect(results.flatMap(({ findings }) => findings)).toEqual([]);
    expect(unsettled(results)).toEqual([]);
    expect(leaked).toBe(0);
  });

  it.each(Object.entries(V7_BUGS))('finds the bug: %s', async (_name, [options, rules]) => {
    expect(found((await runLegacy('v7', options)).results)).toEqual(rules);
  });
});

describe('ferry vfio check of device state regions', () => {
  it('finds nothing on a clean device, reaches every rule, and closes every fd', async () => {
    const { results, leaked } = await runLegacy('regions', { ...a, destructive: true });
    expect(results.flatMap(({ findings }) => findings)).toEqual([]);
    expect(unsettled(results)).toEqual([]);
    expect(leaked).toBe(0);
  });

  it.each(Object.entries(STATES_CASES))('finds the bug: %s', async (_name, [options, rules]) => {
    expect(found((await runLegacy('regions', options)).results)).toEqual(rules);
  });

  it('asks for more pages than a bitmap holds with --destructive only', async () => {
    const { results } = await runLegacy('regions', a);
    expect(unsettled(results)).toEqual(['ctl.page-nr']);
  });
});

describe('devices beside an older one', () => {
  it('are not exercised where there are none', async () => {
    for (const [generation, options] of [
      ['v1', { make: v1, alone: true }],
      ['regions', { ...a, destructive: true, alone: true }],
    ] as const) {
      const { results } = await runLegacy(generation, options as LegacyRun<MigrationRegionDevice>);
      const left = results.filter(({ outcome }) => outcome === 'not exercised').map(({ reason }) => reason);
      expect(left).toEqual([
        'needs a second device: --second DEV',
        'needs a device of the same kind and of another size: --other-size DEV',
      ]);
    }
  });

  it('of another size: what they take is a note', async () => {
    const region = await runLegacy('v1', { make: regionDevice({ sameSize: false }) });
    expect(region.results.find(({ rule }) => rule === 'region.other-size')).toMatchObject({
      outcome: 'note',
      notes: ['data of fake0 loaded into fake2: accepted', 'data of fake2 loaded into fake0: accepted'],
    });
    const states = await runLegacy('regions', { ...a, make: statesDevice({ sameSize: false }) });
    expect(states.results.find(({ rule }) => rule === 'parts.other-size')?.outcome).toBe('note');
  });
});

describe('legal oddities', () => {
  it.each(Object.entries(ODD_REGIONS))('are no finding: %s', async (_name, [abi, options]) => {
    expect((await runLegacy(abi, options)).results.flatMap(({ findings }) => findings)).toEqual([]);
  });

  it.each(Object.entries(ODD_STATES))('are no finding: device state regions, %s', async (_name, options) => {
    expect((await runLegacy('regions', options)).results.flatMap(({ findings }) => findings)).toEqual([]);
  });
});

describe('the generation', () => {
  const inside = { running: () => true, wrote: () => {}, mutate: () => {}, hash: () => 0, fresh: () => {} };

  async function generationOf(device: FakeRegionDevice) {
    const kernel = new CheckLegacyKernel(device, inside);
    const { generation, facts } = await findGeneration(kernel.checkPlace, null);
    expect(facts.length).toBeGreaterThan(1);
    expect(kernel.open).toBe(0);
    await kernel.checkPlace.close();
    return generation;
  }

  it('is found by asking the device, before any rule runs', async () => {
    expect(await generationOf(v1())).toBe('v1');
    expect(await generationOf(v7())).toBe('v7');
    expect(await generationOf(statesDevice()())).toBe('regions');
    const v2 = new CheckKernel({ quirks: ['no-stop-copy'] });
    expect((await findGeneration(v2.place, null)).generation).toBe('v2');
    await v2.place.close();
  });

  it('is as --abi says, and refused where there is none', async () => {
    const kernel = new CheckLegacyKernel(statesDevice({ version: 2 })(), inside);
    await expect(findGeneration(kernel.checkPlace, null)).rejects.toMatchObject({ code: 'migration-abi' });
    expect((await findGeneration(kernel.checkPlace, 'regions')).generation).toBe('regions');
    await kernel.checkPlace.close();
  });

  it('has a bug here for every rule that can find one', () => {
    // Their texts do not ask a driver to refuse what is of another size.
    const notes = ['region.other-size', 'parts.other-size'];
    const tested = new Set([V1_BUGS, V7_BUGS].flatMap((each) => Object.values(each)).flatMap(([, rules]) => rules));
    for (const [, rules] of Object.values(STATES_CASES)) for (const rule of rules) tested.add(rule);
    const all = [...SUITES.v1.rules, ...SUITES.v7.rules, ...SUITES.regions.rules].map(({ name }) => name);
    expect([...new Set(all)].filter((name) => !tested.has(name))).toEqual(['region.error', ...notes]);
  });
});
