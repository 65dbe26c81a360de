// What the rules about a device beside the one under check do, whatever a generation calls its data. Called by rules-beside.ts (v2),
// rules-region-data.ts (v1, v7) and rules-state-data.ts (device state regions).
import type { OpenedDevice } from './opened.ts';
import { type Trial, Unreachable } from './rule.ts';

/** Loads into a device that has nothing left of what was saved: the hash of its inner state then, or why it refused. */
export type HashOfLoaded<B, D> = (bench: B, data: D) => Promise<string>;

function innerOf(bench: OpenedDevice) {
  const { inner } = bench.exerciser;
  if (inner === null) throw new Unreachable(`the exerciser of ${bench.host.place.name} has no inner state`);
  return inner;
}

/** The second device has all of what the first one saved, and each is a device of its own from then on. */
export async function loadIntoSecond<B extends OpenedDevice, D>(
  { bench, beside, expect }: Trial<B>,
  save: (bench: B) => Promise<D>,
  hashOfLoaded: HashOfLoaded<B, D>,
): Promise<void> {
  const second = beside('second');
  const [inner, other] = [innerOf(bench), innerOf(second)];
  await inner.mutate(bench.port, 5);
  const before = await inner.hash(bench.port);
  const data = await save(bench);
  if ((await hashOfLoaded(bench, data)) !== before) {
    throw new Unreachable('the device does not take what it saved, or is another then');
  }
  const { name } = second.host.place;
  const after = await hashOfLoaded(second, data);
  expect(after === before, `saved, loaded into ${name}; hash of its internal state`, before, after);
  await other.mutate(second.port, 7);
  const kept = await inner.hash(bench.port);
  expect(kept === before, `${name} changed after it had loaded; hash of the first device`, before, kept);
}

/** Each of the two is given what the other saved. `load` gives the reason of a refusal; null: taken, which `taken` hears of. */
export async function loadOtherSize<B extends OpenedDevice, D>(
  { bench, beside }: Trial<B>,
  saveGood: (bench: B) => Promise<D>,
  load: (bench: B, data: D) => Promise<string | null>,
  taken: (from: string, into: string) => void,
): Promise<void> {
  const other = beside('other-size');
  const [own, its] = [await saveGood(bench), await saveGood(other)];
  for (const [from, into, data] of [
    [bench, other, own],
    [other, bench, its],
  ] as const) {
    if ((await load(into, data)) === null) taken(from.host.place.name, into.host.place.name);
    await into.home();
  }
}
