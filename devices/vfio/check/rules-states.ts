// Rules about the states: which changes work, where they end, which give a data fd. What is expected comes from oracle.ts.
// linux/vfio.h, VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE and enum vfio_device_mig_state
import type { Bench, SetAnswer } from './bench.ts';
import { codeOf } from './opened.ts';
import {
  ERROR,
  type Expected,
  expectedSet,
  PRE_COPY,
  PRE_COPY_P2P,
  RESUMING,
  RUNNING,
  RUNNING_P2P,
  stateName,
} from './oracle.ts';
import { type Rule, Unreachable } from './rule.ts';

/** Into `from`, ready to leave it: RESUMING is left with a whole stream. */
async function prepare(bench: Bench, from: number): Promise<void> {
  if (from !== RESUMING) {
    await bench.enter(from);
    return;
  }
  const refused = await bench.load(await bench.stream());
  if (refused !== null) throw new Unreachable(`a stream of this device was refused by write() (${refused})`);
}

interface Pair {
  readonly from: number;
  readonly to: number;
  readonly expected: Expected;
}

/** Each pair of two different states; one that cannot be prepared is another pair's finding. */
async function eachPair(bench: Bench, wanted: Expected['kind'], see: (pair: Pair, answer: SetAnswer) => void) {
  let tried = 0;
  let kept: Unreachable | null = null;
  for (const from of bench.states) {
    for (const to of [...bench.states, ERROR].filter((each) => each !== from)) {
      const expected = expectedSet(from, to, bench.able);
      if (expected.kind !== wanted) continue;
      try {
        await prepare(bench, from);
      } catch (error) {
        if (!(error instanceof Unreachable)) throw error;
        kept = error;
        continue;
      }
      tried++;
      see({ from, to, expected }, await bench.set(to));
    }
  }
  await bench.home();
  if (tried === 0 && kept !== null) throw kept;
}

const said = ({ from, to }: Pair) => `SET ${stateName(to)} in ${stateName(from)}`;

const arcs: Rule = {
  name: 'states.arcs',
  title: 'every change that the state machine allows works, and the device is in the new state when it returns',
  cites: 'must fully transition the device to the new state value before the operation returns to the user',
  needs: [],
  run: ({ bench, expect }) =>
    eachPair(bench, 'goes', (pair, answer) => {
      const seen = answer.error === null ? stateName(answer.state) : `${answer.error}, in ${stateName(answer.state)}`;
      expect(answer.error === null && answer.state === pair.to, said(pair), stateName(pair.to), seen);
    }),
};

const failures: Rule = {
  name: 'states.failures',
  title: 'a change that fails leaves the device on the way that it was going, or in ERROR',
  cites:
    'current device_state may be the original operating state or some other state along the combination transition path',
  needs: [],
  run: ({ bench, expect }) =>
    eachPair(bench, 'goes', (pair, answer) => {
      if (answer.error === null || pair.expected.kind !== 'goes') return;
      const may = [pair.from, ...pair.expected.path, ERROR];
      const seen = `${answer.error}, in ${stateName(answer.state)}`;
      expect(may.includes(answer.state), said(pair), `one of ${may.map(stateName).join(', ')}`, seen);
    }),
};

const fds: Rule = {
  name: 'states.data-fd',
  title: 'a data fd comes back exactly when a session begins',
  cites:
    'If the new_state starts a new data transfer session then the FD associated with that session is returned in data_fd',
  needs: [],
  run: ({ bench, expect }) =>
    eachPair(bench, 'goes', (pair, answer) => {
      if (answer.error !== null || answer.state !== pair.to || pair.expected.kind !== 'goes') return;
      const seen = answer.fd < 0 ? `data_fd ${answer.fd}` : 'a data fd';
      expect(answer.fd >= 0 === pair.expected.fd, said(pair), pair.expected.fd ? 'a data fd' : 'data_fd -1', seen);
    }),
};

const refusals: Rule = {
  name: 'states.refusals',
  title: 'ERROR cannot be asked for, nor pre-copy in STOP_COPY, and the state stays as it was',
  cites: 'These arcs are not permitted and return error if requested',
  needs: [],
  run: ({ bench, expect, note }) =>
    eachPair(bench, 'refused', (pair, answer) => {
      const seen = answer.error === null ? `success, in ${stateName(answer.state)}` : `in ${stateName(answer.state)}`;
      const right = answer.error !== null && answer.state === pair.from;
      expect(right, said(pair), `an error, still in ${stateName(pair.from)}`, seen);
      if (right && answer.error !== 'EINVAL') note(`${said(pair)} gives ${answer.error}, where others give EINVAL`);
    }),
};

const optional: Rule = {
  name: 'states.optional',
  title: 'states that the device has not are refused',
  cites: 'The optional states cannot be used with SET_STATE if the device does not support them',
  needs: [],
  async run({ bench, expect }) {
    const missing = [RUNNING_P2P, PRE_COPY, PRE_COPY_P2P].filter((state) => !bench.states.includes(state));
    for (const state of missing) {
      await bench.home();
      const answer = await bench.set(state);
      const seen = answer.error === null ? `success, in ${stateName(answer.state)}` : `in ${stateName(answer.state)}`;
      const right = answer.error !== null && answer.state === RUNNING;
      expect(right, `SET ${stateName(state)} in RUNNING, flags ${bench.flags}`, 'an error, still in RUNNING', seen);
    }
  },
};

const numbers: Rule = {
  name: 'states.numbers',
  title: 'numbers that are no state are refused in every state, and it stays as it was',
  cites: 'From enum vfio_device_mig_state',
  needs: [],
  async run({ bench, expect }) {
    for (const from of bench.states) {
      await bench.enter(from);
      for (const number of [8, 9, 0xffffffff]) {
        const answer = await bench.set(number);
        const seen = answer.error === null ? `success, in ${stateName(answer.state)}` : `in ${stateName(answer.state)}`;
        const right = answer.error !== null && answer.state === from;
        expect(right, `SET ${number} in ${stateName(from)}`, `an error, still in ${stateName(from)}`, seen);
        if (answer.state !== from) break;
      }
    }
  },
};

const same: Rule = {
  name: 'states.same',
  title: 'asking for the present state changes nothing and opens no second session',
  cites:
    'If the new_state starts a new data transfer session then the FD associated with that session is returned in data_fd',
  needs: [],
  async run({ bench, expect, note }) {
    for (const state of bench.states) {
      await bench.enter(state);
      const answer = await bench.set(state);
      const name = stateName(state);
      const seen = `${answer.fd < 0 ? 'no data fd' : 'a second data fd'}, in ${stateName(answer.state)}`;
      expect(answer.fd < 0 && answer.state === state, `SET ${name} in ${name}`, `no data fd, in ${name}`, seen);
      if (answer.error !== null) note(`SET ${name} in ${name} gives ${answer.error}; others take it as done`);
    }
  },
};

/** A GET that fails shows as no state at all. */
function whole(bench: Bench): { readonly state: number; readonly fd: number } {
  try {
    return bench.getWhole();
  } catch (error) {
    codeOf(error);
    return { state: -1, fd: -1 };
  }
}

const get: Rule = {
  name: 'states.get',
  title: 'GET gives the state and data_fd -1, in every state',
  cites: 'get the current migration state of the VFIO device, data_fd will be -1',
  needs: [],
  async run({ bench, expect }) {
    for (const state of bench.states) {
      await bench.enter(state);
      const { state: seen, fd } = whole(bench);
      const right = seen === state && fd === -1;
      expect(
        right,
        `GET in ${stateName(state)}`,
        `${stateName(state)}, data_fd -1`,
        `${stateName(seen)}, data_fd ${fd}`,
      );
      if (fd >= 0) bench.door.closeFd(fd);
    }
  },
};

const flags: Rule = {
  name: 'states.flags',
  title: 'a device that can migrate has STOP_COPY, and no flags that nobody knows',
  cites: 'at least VFIO_MIGRATION_STOP_COPY must be set',
  needs: [],
  async run({ bench, expect, note }) {
    expect(
      (bench.flags & 1n) !== 0n,
      'GET VFIO_DEVICE_FEATURE_MIGRATION',
      'STOP_COPY among the flags',
      `${bench.flags}`,
    );
    if (bench.flags >> 3n !== 0n) note(`flags 0x${bench.flags.toString(16)}: newer than this program`);
  },
};

const first: Rule = {
  name: 'states.first',
  title: 'an opened device is in RUNNING',
  cites: 'RUNNING - The device is running normally',
  needs: [],
  async run({ bench, expect }) {
    const state = bench.get();
    expect(state === RUNNING, 'GET after opening the device', 'RUNNING', stateName(state));
  },
};

const quiet: Rule = {
  name: 'states.by-itself',
  title: 'the state changes by SET and by reset, never by itself',
  cites: 'must not generate asynchronous device state transitions outside of manipulation by the user',
  needs: [],
  async run({ bench, expect }) {
    for (const state of bench.states) {
      await bench.enter(state);
      await bench.settle();
      const seen = bench.get();
      expect(seen === state, `GET some time after entering ${stateName(state)}`, stateName(state), stateName(seen));
    }
  },
};

export const stateRules: readonly Rule[] = [
  flags,
  first,
  get,
  arcs,
  failures,
  fds,
  refusals,
  optional,
  numbers,
  same,
  quiet,
];
