// Rules about VFIO_DEVICE_RESET, ERROR, and what the next user of a device finds. linux/vfio.h, enum vfio_device_mig_state, "any -> ERROR"
import type { Bench } from './bench.ts';
import type { InnerExercise } from './exerciser.ts';
import { ERROR, RESUMING, RUNNING, STOP, STOP_COPY, stateName } from './oracle.ts';
import { type Rule, Unreachable } from './rule.ts';
import { readLeak } from './rules-fd.ts';

const TO_RUNNING = 'VFIO_DEVICE_RESET must be used to return the device_state back to RUNNING';

const everywhere: Rule = {
  name: 'reset.states',
  title: 'a reset in any state leads to RUNNING, from where a migration can be begun',
  cites: TO_RUNNING,
  needs: ['reset'],
  async run({ bench, expect }) {
    await bench.session(STOP_COPY);
    for (const state of bench.states) {
      await bench.enter(state);
      const error = await bench.reset();
      const seen = error ?? stateName(bench.get());
      expect(seen === 'RUNNING', `VFIO_DEVICE_RESET in ${stateName(state)}`, 'RUNNING', seen);
      if (seen !== 'RUNNING') return;
      const { error: refused, fd } = await bench.set(STOP_COPY);
      expect(
        refused === null && fd >= 0,
        `SET STOP_COPY after a reset in ${stateName(state)}`,
        'a data fd',
        `${refused}`,
      );
    }
  },
};

async function mustReset(bench: Bench): Promise<void> {
  const error = await bench.reset();
  if (error !== null || bench.get() !== RUNNING) throw new Unreachable('VFIO_DEVICE_RESET does not lead to RUNNING');
}

const session: Rule = {
  name: 'reset.session',
  title: 'a reset ends the session: its data fd is good for nothing',
  cites: 'To abort a RESUMING session the device must be reset',
  needs: ['reset'],
  async run({ bench, expect }) {
    const saving = await bench.session(STOP_COPY);
    await mustReset(bench);
    const leak = readLeak(await saving.read(new Uint8Array(4096)));
    expect(leak === null, 'reset in STOP_COPY, read of the old data fd', 'an error', `${leak}`);
    const resuming = await bench.session(RESUMING);
    await mustReset(bench);
    const { bytes, error } = await resuming.write(new Uint8Array(1));
    expect(error !== null, 'reset in RESUMING, write to the old data fd', 'an error', `${bytes} bytes taken`);
  },
};

const flag: Rule = {
  name: 'reset.flag',
  title: 'a device that can be reset says so, and one that says so can be',
  cites: 'Device supports reset',
  needs: [],
  async run({ bench, expect }) {
    const error = await bench.reset();
    if (bench.device.info.canReset) {
      expect(error === null, 'VFIO_DEVICE_RESET, with FLAGS_RESET set', 'success', `${error}`);
    } else expect(error !== null, 'VFIO_DEVICE_RESET, without FLAGS_RESET', 'an error', 'success');
  },
};

/** Whatever brings a device into ERROR: an arc that fails, a stream that it refuses. */
async function driveToError(bench: Bench): Promise<void> {
  for (const state of bench.states) {
    await bench.home();
    if ((await bench.set(state)).state === ERROR) return;
  }
  const stream = await bench.stream();
  for (const bytes of [stream.subarray(0, stream.length - 1), new Uint8Array(stream.length).fill(0xa5)]) {
    await bench.load(bytes);
    if ((await bench.set(STOP)).state === ERROR) return;
  }
  throw new Unreachable('neither a change of state nor a bad stream brought the device into ERROR');
}

const recovery: Rule = {
  name: 'error.recovery',
  title: 'only a reset leads out of ERROR, and it leads to RUNNING',
  cites: TO_RUNNING,
  needs: [],
  async run({ bench, expect }) {
    await driveToError(bench);
    for (const state of bench.states) {
      const answer = await bench.set(state);
      const seen = answer.error === null ? stateName(answer.state) : `in ${stateName(answer.state)}`;
      expect(answer.error !== null && answer.state === ERROR, `SET ${stateName(state)} in ERROR`, 'an error', seen);
      if (answer.state !== ERROR) return;
    }
    const error = await bench.reset();
    const seen = error ?? stateName(bench.get());
    expect(seen === 'RUNNING', 'VFIO_DEVICE_RESET in ERROR', 'RUNNING', seen);
  },
};

const reopened: Rule = {
  name: 'close.states',
  title: 'a device that was closed in any state, with its session open, is in RUNNING for the next user',
  cites: 'If this GET succeeds, the RUNNING and ERROR states are always supported',
  needs: [],
  async run({ bench, expect }) {
    await bench.go(STOP);
    for (const state of bench.states) {
      await bench.enter(state);
      await bench.reopen();
      const seen = stateName(bench.get());
      expect(seen === 'RUNNING', `device fd closed in ${stateName(state)}, opened anew`, 'RUNNING', seen);
      if (seen !== 'RUNNING') return;
      const { error } = await bench.set(STOP);
      expect(error === null, `SET STOP in a device closed in ${stateName(state)}, opened anew`, 'STOP', `${error}`);
    }
  },
};

/** Hash, part by part, of a state of which at least one part is not as at first. */
async function changed(bench: Bench, inner: InnerExercise): Promise<{ fresh: string[]; hash: string[] }> {
  await bench.home();
  const fresh = (await inner.hash(bench.port)).split(':');
  // Two, since a device that keeps its state may have the first one's from the last check.
  for (const seed of [33, 34]) {
    await inner.mutate(bench.port, seed);
    const hash = (await inner.hash(bench.port)).split(':');
    if (hash.some((part, i) => part !== fresh[i])) return { fresh, hash };
  }
  throw new Unreachable('the exerciser changes nothing inside');
}

/** The parts that are as the one before left them; empty: none. */
async function survivors(bench: Bench, inner: InnerExercise, before: { fresh: string[]; hash: string[] }) {
  const after = (await inner.hash(bench.port)).split(':');
  return after.filter((part, i) => part === before.hash[i] && part !== before.fresh[i]);
}

const privacy: Rule = {
  name: 'close.private',
  title: 'the next user finds nothing of the one before',
  cites: 'To recover from ERROR VFIO_DEVICE_RESET must be used',
  needs: ['inner'],
  async run({ bench, expect }) {
    const inner = bench.exerciser.inner;
    if (inner === null) return;
    const before = await changed(bench, inner);
    await bench.reopen();
    await bench.home();
    const left = await survivors(bench, inner, before);
    const did = 'internal state changed, device closed and opened anew, hash';
    expect(left.length === 0, did, 'another one', `${left} as before`);
  },
};

const clean: Rule = {
  name: 'reset.clean',
  title: 'a reset takes the internal state away',
  cites: 'Reset a device.',
  needs: ['reset', 'inner'],
  async run({ bench, expect }) {
    const inner = bench.exerciser.inner;
    if (inner === null) return;
    const before = await changed(bench, inner);
    await mustReset(bench);
    const left = await survivors(bench, inner, before);
    expect(left.length === 0, 'internal state changed, device reset, hash', 'another one', `${left} as before`);
  },
};

export const resetRules: readonly Rule[] = [flag, everywhere, session, clean, recovery, reopened, privacy];
