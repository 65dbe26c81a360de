// What the destination does with a machine once all of its sections are here, and once it has been handed over: walks phases.LOAD and
// phases.RESUME. Called by destination.ts. States are loaded only after the check sum has been found right.
import { StateError, StreamError } from '../native/errno.ts';
import type { CoreState, Machine } from '../vmm/api.ts';
import type { ExpectedSections } from './expected-sections.ts';
import { LOAD, type LoadStep, RESUME, type ResumeStep } from './phases.ts';
import { asError, settleAll } from './stop-flag.ts';
import type { ReturnWriter } from './stream/return-path.ts';

/** ferry/core, decoded. */
export interface CoreSection {
  readonly running: boolean;
  readonly realtimeNs: bigint;
  readonly core: CoreState;
}

export interface IncomingMachine {
  readonly machine: Machine;
  readonly expected: ExpectedSections;
  /** By device id, with the version that the source wrote. */
  readonly states: ReadonlyMap<string, { readonly state: unknown; readonly version: number }>;
  readonly core: CoreSection | null;
  readonly dropDeviceState: boolean;
}

export function parseCore(value: unknown): CoreSection {
  const core = value as Readonly<Record<string, unknown>> | null;
  if (typeof core !== 'object' || core === null || Array.isArray(core))
    throw new StreamError('ferry/core is no record');
  const { running, realtimeNs, core: state } = core;
  if (typeof running !== 'boolean' || typeof realtimeNs !== 'bigint' || typeof state !== 'object' || state === null)
    throw new StreamError('ferry/core is not what it should be');
  return { running, realtimeNs, core: state as CoreState };
}

/** What the source is told of it. */
export interface Loaded {
  readonly ms: number;
  /** Ids of the devices whose driver has not judged its state yet. */
  readonly late: readonly string[];
}

/** Up to and including PONG. */
export async function loadMachine(incoming: IncomingMachine, pong: () => Promise<void>): Promise<Loaded> {
  const { machine, expected, states, core } = incoming;
  const began = performance.now();
  let ms = 0;
  const late: string[] = [];
  const actions: Readonly<Record<LoadStep, () => Promise<void>>> = {
    checkComplete: async () => expected.checkComplete(),
    loadStates: async () => {
      for (const { id, state } of machine.devices) {
        const saved = states.get(id);
        if (state === null || saved === undefined) continue;
        try {
          state.load(saved.state, saved.version);
        } catch (thrown) {
          throw new StateError(`device ${id} refuses its state: ${asError(thrown).message}`, { cause: thrown });
        }
      }
    },
    loadCore: async () => {
      if (core === null) throw new StreamError('missing section "ferry/core"');
      machine.loadCore(core.core);
    },
    attachInterrupts: async () => machine.attachInterrupts(),
    leaveResuming: async () => {
      if (incoming.dropDeviceState) return;
      await settleAll(
        machine.devices.map(async ({ id, live }) => {
          try {
            if ((await live?.loadEnd()) === 'late') late.push(id);
          } catch (thrown) {
            throw new StateError(`device ${id} refuses its data: ${asError(thrown).message}`, { cause: thrown });
          }
        }),
      );
    },
    pong: async () => {
      ms = performance.now() - began;
      await pong();
    },
  };
  for (const { name } of LOAD) await actions[name]();
  return { ms, late: late.sort() };
}

/** After EOF: the guest is ours. `loaded` goes into the report to the source. */
export async function resumeMachine(incoming: IncomingMachine, returns: ReturnWriter, loaded: Loaded): Promise<void> {
  const { machine, core } = incoming;
  const began = performance.now();
  const live = machine.devices.flatMap((device) => (device.live === null ? [] : [device.live]));
  const actions: Readonly<Record<ResumeStep, () => Promise<void>>> = {
    quiesce: () => settleAll(live.map((each) => each.quiesce())),
    runDevices: () => settleAll(live.map((each) => each.run())),
    startCpus: async () => {
      machine.setState('paused');
      if (core?.running !== true) return;
      const awayNs = BigInt(Date.now()) * 1_000_000n - core.realtimeNs;
      machine.clockAfterPause(awayNs > 0n ? awayNs : 0n);
      await machine.start();
    },
    shut: async () => {
      // The guest runs; that the source cannot be told is the source's trouble (it says so), not a reason to end here.
      try {
        await returns.report({ loadMs: loaded.ms, resumeMs: performance.now() - began, late: loaded.late });
        await returns.shut(0);
      } catch {
        return;
      }
    },
  };
  for (const { name } of RESUME) await actions[name]();
}
