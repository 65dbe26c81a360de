// After any failure or cancel before EOF: walks phases.WAY_BACK until the guest runs here again, whatever was under way. Nothing stops it: a
// step that fails is noted and the next one is taken, for a guest that runs with a broken device is better than one that does not run.
// Called by source.ts, and by control for a machine that stayed postmigrate without an answer.
import type { Machine, RunState } from '../vmm/api.ts';
import { WAY_BACK, type WayBackStep } from './phases.ts';
import type { SourceSession } from './session.ts';
import { asError } from './stop-flag.ts';

/** Returns what went wrong on the way, one sentence each; empty: all is as before. */
export async function wayBack(session: SourceSession): Promise<string[]> {
  const { machine } = session;
  const actions: Readonly<Record<WayBackStep, () => Promise<void>>> = {
    hangUp: async () => session.writer.channel.abort(),
    attachInterrupts: async () => {
      if (session.interruptsDetached) machine.attachInterrupts();
      session.interruptsDetached = false;
    },
    runDevices: () => runDevices(machine),
    resume: async () => {
      if (session.stateBefore === null) return;
      const pausedNs = BigInt(Math.round((performance.now() - session.pausedAt) * 1e6));
      await resume(machine, session.stateBefore, pausedNs);
      session.stateBefore = null;
    },
    trackingOff: async () => {
      if (session.trackingOn) await machine.dirty.stop();
      session.trackingOn = false;
    },
  };
  const troubles: string[] = [];
  for (const { name } of WAY_BACK) {
    try {
      await actions[name]();
    } catch (thrown) {
      troubles.push(asError(thrown).message);
    }
  }
  return troubles;
}

async function runDevices(machine: Machine): Promise<void> {
  const results = await Promise.allSettled(
    machine.devices.map(async ({ id, live }) => {
      try {
        await live?.cancel();
      } catch (thrown) {
        throw new Error(`device ${id} did not come back: ${asError(thrown).message}`);
      }
    }),
  );
  const failed = results.filter((result) => result.status === 'rejected').map(({ reason }) => asError(reason).message);
  if (failed.length > 0) throw new Error(failed.join('; '));
}

async function resume(machine: Machine, before: RunState, pausedNs: bigint): Promise<void> {
  // A guest that ended while it was being paused stays ended.
  if (machine.state !== 'finish-migrate' && machine.state !== 'postmigrate') return;
  machine.setState(before === 'running' ? 'paused' : before);
  if (before !== 'running') return;
  machine.clockAfterPause(pausedNs);
  await machine.start();
}

/** `cont` on a machine that is postmigrate: only ever by hand, for the guest may run at the destination. */
export async function resumeByHand(machine: Machine): Promise<void> {
  machine.attachInterrupts();
  await runDevices(machine);
  await resume(machine, 'running', 0n);
}
