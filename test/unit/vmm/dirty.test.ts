// vmm/dirty.ts: the merge of dirty sources, held against an oracle of plain Sets. Rules: vmm/api.ts DirtyTracker, issue 2 item 4.
import { afterEach, describe, expect, it } from 'vitest';
import type { DirtySource, DirtySourceKind, GpaRange, PageBitmap } from '../../../devices/contract.ts';
import { kvmNode } from '../../../native/addon.ts';
import type { Log } from '../../../vmm/api.ts';
import { AllOfRam, MergingTracker } from '../../../vmm/dirty.ts';
import { HostWrites } from '../../../vmm/memory.ts';

const PAGES = 1000;
const addon = kvmNode();
const quiet: Log = { trace() {}, debug() {}, info() {}, warn() {}, error() {}, child: () => quiet };

class ScriptedSource implements DirtySource {
  readonly name: DirtySourceKind;
  readonly coarse: boolean;
  readonly fallback: DirtySource | null;
  readonly written = new Set<number>();
  fail = false;
  failStart = false;
  started = 0;
  stopped = 0;
  constructor(name: DirtySourceKind, options: { coarse?: boolean; fallback?: DirtySource } = {}) {
    this.name = name;
    this.coarse = options.coarse ?? false;
    this.fallback = options.fallback ?? null;
  }
  async start(_ranges: readonly GpaRange[]): Promise<void> {
    if (this.failStart) throw new Error('cannot start');
    this.started++;
    this.written.clear();
  }
  async collect(into: PageBitmap): Promise<number> {
    if (this.fail) throw new Error('cannot report');
    for (const page of this.written) into.set(page, 1);
    const pages = this.written.size;
    this.written.clear();
    return pages;
  }
  async stop(): Promise<void> {
    this.stopped++;
  }
}

const open: MergingTracker[] = [];
function tracker(own: DirtySource[], devices: DirtySource[] = []): MergingTracker {
  const made = new MergingTracker({
    pages: PAGES,
    ranges: [{ start: 0, length: PAGES * 4096 }],
    own,
    devices: () => devices,
    createBitmap: (pages) => addon.createBitmap(pages),
    log: quiet,
  });
  open.push(made);
  return made;
}
afterEach(async () => {
  for (const one of open.splice(0)) await one.stop();
});

function set(bitmap: PageBitmap): Set<number> {
  const pages = new Set<number>();
  const runs = bitmap.runs(0, PAGES);
  for (let i = 0; i < runs.length; i += 2) for (let n = 0; n < runs[i + 1]!; n++) pages.add(runs[i]! + n);
  return pages;
}
const ALL = { deviceLog: true, drop: null } as const;

describe('MergingTracker', () => {
  it('agrees with an oracle over random writes, partial sends and rounds', async () => {
    const sources = [new ScriptedSource('kvm'), new ScriptedSource('vmm')];
    const device = new ScriptedSource('deviceLog');
    const merged = tracker(sources, [device]);
    await merged.start(ALL);
    const unsent = new Set<number>(Array.from({ length: PAGES }, (_, page) => page));
    let seed = 7;
    const random = (n: number) => {
      seed = (seed * 48271) % 2147483647;
      return seed % n;
    };
    for (let round = 0; round < 60; round++) {
      const { bitmap, failed } = await merged.collect(false);
      expect(failed).toEqual([]);
      expect(set(bitmap), `round ${round}`).toEqual(unsent);
      for (const page of [...unsent]) {
        if (random(3) === 0) continue;
        bitmap.clear(page, 1);
        unsent.delete(page);
      }
      if (round === 0) for (const source of [...sources, device]) source.written.clear();
      for (const source of [...sources, device]) {
        for (let n = random(40); n > 0; n--) {
          const page = random(PAGES);
          source.written.add(page);
          unsent.add(page);
        }
      }
    }
  });

  it('the first round is everything, and no source’s count has it', async () => {
    const merged = tracker([new ScriptedSource('kvm'), new ScriptedSource('vmm')]);
    await merged.start(ALL);
    const round = await merged.collect(false);
    expect(round.bitmap.count).toBe(PAGES);
    expect(round.pages).toEqual({
      kvm: 0,
      vmm: 0,
      deviceLog: null,
      region: null,
      container: null,
      iommufd: null,
      allOfRam: null,
    });
  });

  it('counts what each source alone returned, overlap and all', async () => {
    const kvm = new ScriptedSource('kvm');
    const device = new ScriptedSource('deviceLog');
    const merged = tracker([kvm], [device]);
    await merged.start(ALL);
    (await merged.collect(false)).bitmap.zero();
    for (const page of [1, 2, 3]) kvm.written.add(page);
    for (const page of [3, 4]) device.written.add(page);
    const round = await merged.collect(false);
    expect([round.pages.kvm, round.pages.deviceLog, round.bitmap.count]).toEqual([3, 2, 4]);
  });

  it('a source that fails is named and makes all of RAM dirty, in that round only', async () => {
    const kvm = new ScriptedSource('kvm');
    const device = new ScriptedSource('deviceLog');
    const merged = tracker([kvm], [device]);
    await merged.start(ALL);
    (await merged.collect(false)).bitmap.zero();
    device.fail = true;
    const bad = await merged.collect(false);
    expect([bad.failed, bad.bitmap.count]).toEqual([['deviceLog'], PAGES]);
    bad.bitmap.zero();
    device.fail = false;
    const good = await merged.collect(false);
    expect([good.failed, good.bitmap.count]).toEqual([[], 0]);
  });

  it('asks a coarse source in the last round only, and says before what it will add', async () => {
    const container = new ScriptedSource('container', { coarse: true });
    const merged = tracker([new ScriptedSource('kvm')], [container]);
    expect(merged.coarseBytes).toBe(PAGES * 4096);
    await merged.start(ALL);
    (await merged.collect(false)).bitmap.zero();
    container.written.add(9);
    expect((await merged.collect(false)).bitmap.count).toBe(0);
    const last = await merged.collect(true);
    expect([set(last.bitmap), last.pages.container]).toEqual([new Set([9]), 1]);
  });

  it('with the device log switched off its fallback takes its place, once for several devices; none means all of RAM', async () => {
    const container = new ScriptedSource('container', { coarse: true });
    const logs = [1, 2].map(() => new ScriptedSource('deviceLog', { fallback: container }));
    const merged = tracker([], logs);
    await merged.start({ deviceLog: false, drop: null });
    expect([container.started, logs[0]!.started]).toEqual([1, 0]);
    await merged.stop();
    expect(container.stopped).toBe(1);
    const bare = tracker([], [new ScriptedSource('deviceLog')]);
    await bare.start({ deviceLog: false, drop: null });
    (await bare.collect(false)).bitmap.zero();
    expect((await bare.collect(true)).pages.allOfRam).toBe(PAGES);
  });

  it('a device log that does not start is replaced by its fallback; KVM’s log has none, so the migration does not start', async () => {
    const container = new ScriptedSource('container');
    const log = new ScriptedSource('deviceLog', { fallback: container });
    log.failStart = true;
    const merged = tracker([], [log]);
    await merged.start(ALL);
    expect(container.started).toBe(1);
    const kvm = new ScriptedSource('kvm');
    const vmm = new ScriptedSource('vmm');
    kvm.failStart = true;
    await expect(tracker([vmm, kvm]).start(ALL)).rejects.toThrow('cannot start');
    expect(vmm.stopped, 'what had started is stopped again').toBe(1);
  });

  it('negative controls: a dropped source is counted and its pages are missing', async () => {
    const kvm = new ScriptedSource('kvm');
    const device = new ScriptedSource('deviceLog');
    const merged = tracker([kvm], [device]);
    await merged.start({ deviceLog: true, drop: 'deviceLog' });
    (await merged.collect(false)).bitmap.zero();
    device.written.add(5);
    const round = await merged.collect(false);
    expect([round.pages.deviceLog, round.bitmap.count]).toEqual([1, 0]);
    await merged.start({ deviceLog: true, drop: 'kvmLastRound' });
    (await merged.collect(false)).bitmap.zero();
    kvm.written.add(6);
    expect((await merged.collect(false)).bitmap.count).toBe(1);
    kvm.written.add(7);
    expect((await merged.collect(true)).bitmap.test(7)).toBe(false);
  });

  it('AllOfRam says so', async () => {
    const bitmap = addon.createBitmap(70);
    expect([await new AllOfRam().collect(bitmap), bitmap.count]).toEqual([70, 70]);
    bitmap.close();
  });
});

describe('HostWrites', () => {
  it('marks every page that a write touches, only while started, and forgets it when collected', async () => {
    const writes = new HostWrites(addon, PAGES);
    const into = addon.createBitmap(PAGES);
    writes.mark(0, 4096);
    await writes.start([]);
    writes.mark(4095, 2);
    writes.mark(8 * 4096, 4096);
    writes.mark(20 * 4096 + 1, 0);
    expect(await writes.collect(into)).toBe(3);
    expect(set(into)).toEqual(new Set([0, 1, 8]));
    expect(await writes.collect(into)).toBe(0);
    writes.markAll();
    expect(await writes.collect(into)).toBe(PAGES);
    into.close();
    writes.close();
  });
});
