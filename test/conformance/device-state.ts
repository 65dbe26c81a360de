// What Stateful promises, for any device: what save() makes can be packed, brings an equal device to the same state, and garbage is
// refused with a StateError that leaves the device as it was. Called by the tests of every device with state.
import { Packr } from 'msgpackr';
import { expect } from 'vitest';
import type { Device } from '../../devices/contract.ts';
import { StateError } from '../../native/errno.ts';

const packr = new Packr({ useRecords: false });

export interface StateCase {
  /** A new device, as the destination of a move builds it. */
  readonly make: () => Device;
  /** Guest accesses that take a new device somewhere else. */
  readonly mutate: (device: Device) => void;
}

/** A state after a trip through the stream's packing. */
export function packed(state: unknown): unknown {
  return packr.unpack(packr.pack(state));
}

export function expectStateConformance({ make, mutate }: StateCase): void {
  const source = make();
  const state = source.state;
  if (state === null) throw new Error(`${source.id} has no state to check`);
  const fresh = packed(state.save());
  mutate(source);
  const moved = packed(state.save());
  expect(moved, 'mutate() must change the state, else nothing is proved').not.toEqual(fresh);

  const target = make();
  target.state!.load(moved, state.version);
  expect(packed(target.state!.save())).toEqual(moved);

  for (const garbage of garbageOf(moved)) {
    const shown = JSON.stringify(garbage)?.slice(0, 80);
    expect(() => target.state!.load(garbage, state.version), shown).toThrow(StateError);
    expect(packed(target.state!.save()), `a refused load() changes nothing: ${shown}`).toEqual(moved);
  }
  expect(() => target.state!.load(moved, state.version + 1), 'a version of the future').toThrow(StateError);
  target.state!.load(fresh, state.version);
  expect(packed(target.state!.save())).toEqual(fresh);
}

/** Other kinds of value, each field missing, and each field of another kind. */
function* garbageOf(state: unknown): Generator<unknown> {
  yield* [null, undefined, 7, 'state', [], {}];
  for (const name of Object.keys(state as object)) {
    const record = state as Record<string, unknown>;
    const { [name]: value, ...without } = record;
    if (value === null) continue;
    yield without;
    yield { ...record, [name]: 'nonsense' };
    if (typeof value === 'number') yield { ...record, [name]: Number.NaN };
    if (value instanceof Uint8Array) yield { ...record, [name]: new Uint8Array(1 << 20) };
  }
}
