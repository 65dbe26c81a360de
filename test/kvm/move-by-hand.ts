// A machine's whole state carried into a new one in the same process, in the order of main-job.md ("Order at switch-over"), the RAM
// copied by hand. For tests of devices, where the migration's own machinery is not the question.
import type { Machine } from '../../vmm/api.ts';
import { packed } from '../conformance/device-state.ts';
import { type FlatMachine, type FlatOptions, flatConfig, incomingFlat } from './flat-machine.ts';

/** The new machine runs when this returns; the old one stays paused. Both are the caller's to close. */
export async function moveByHand(from: Machine, guest: string, options: FlatOptions): Promise<FlatMachine> {
  await from.pause('finish-migrate');
  from.detachInterrupts();
  const states = from.devices.map(({ id, state }) => ({ id, state: packed(state?.save() ?? null) }));
  const core = from.saveCore();
  const to = await incomingFlat(flatConfig(guest, options), from.cpuContract, options);
  new Uint8Array(to.machine.ram.window(0)).set(new Uint8Array(from.ram.window(0)));
  for (const { id, state } of states) {
    const there = to.machine.devices.find((other) => other.id === id)?.state ?? null;
    there?.load(state, there.version);
  }
  to.machine.loadCore(core);
  to.machine.attachInterrupts();
  await to.machine.start();
  return to;
}
