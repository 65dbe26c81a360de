// Rules about device config and device memory of the device state regions: sizes, snapshots, chunks, and the verdict on what is set.
// Sentences are of the patch of February 2019.
import { CTL, ctlName, LOGGING, RUNNING, type SavedParts, STOP, type StatesBench } from './bench-states.ts';
import { type Rule, type Trial, Unreachable } from './rule.ts';
import { loadIntoSecond, loadOtherSize } from './second-device.ts';

type StatesRule = Rule<StatesBench>;

const size: StatesRule = {
  name: 'parts.config-size',
  title: 'the size of device config stays, lies within its region, and is more than nothing, in any state',
  cites: 'Size of device config data is smaller than or equal to that of device config region.',
  needs: [],
  async run({ bench, expect }) {
    for (const state of [RUNNING, STOP, LOGGING, STOP | LOGGING]) {
      await bench.go(state);
      const one = await bench.ctl.u64(CTL.configSize, 'device_config.size');
      const two = await bench.ctl.u64(CTL.configSize, 'device_config.size');
      const where = `device_config.size in ${ctlName(state)}`;
      expect(one === two, `${where}, read twice`, `${one}`, `${two}`);
      const room = bench.config.size;
      expect(one > 0n && one <= BigInt(room), where, `between 1 and ${room}`, `${one}`);
    }
    await bench.home();
  },
};

const snapshot: StatesRule = {
  name: 'parts.config-snapshot',
  title: 'GET_BUFFER gives the whole of device config, the same twice while the device is stopped',
  cites: 'Device config should be always accessible and return whole config snapshot regardless of LOGGING state.',
  needs: [],
  async run({ bench, expect, note }) {
    for (const state of [RUNNING, STOP, LOGGING, STOP | LOGGING]) {
      await bench.go(state);
      const before = await bench.ctl.u64(CTL.configSize, 'device_config.size');
      const config = await bench.getConfig();
      if (config.length !== Number(before)) note(`GET_BUFFER changes device_config.size (${before}, ${config.length})`);
    }
    await bench.go(STOP);
    const one = await bench.getConfig();
    const two = await bench.getConfig();
    if (bench.host.exerciser?.claims.deterministic === true && one.length === two.length) {
      expect(Buffer.compare(one, two) === 0, 'GET_BUFFER of device config twice in STOP', 'the same data', 'others');
    }
    await bench.home();
  },
};

const memorySize: StatesRule = {
  name: 'parts.memory-snapshot',
  title: 'outside of LOGGING device memory is given whole each time, chunk by chunk',
  cites: 'outside LOGGING state, get buffer of device memory returns whole snapshot of device memory.',
  needs: ['device-memory'],
  async run({ bench, expect }) {
    await bench.go(STOP);
    const one = await bench.getMemory();
    expect(one.length > 0, 'device_memory.size in STOP', 'more than 0', `${one.length}`);
    const two = await bench.getMemory();
    expect(one.length === two.length, 'device memory got twice in STOP', `${one.length} bytes`, `${two.length} bytes`);
    if (bench.host.exerciser?.claims.deterministic === true && one.length === two.length) {
      expect(Buffer.compare(one, two) === 0, 'device memory got twice in STOP', 'the same data', 'others');
    }
    await bench.home();
  },
};

const SET = 'vendor driver loads whole of device config from region DEVICE_CONFIG.';

const roundTrip: StatesRule = {
  name: 'parts.round-trip',
  title: 'a device takes in STOP what it gave, and runs',
  cites: SET,
  needs: [],
  async run({ bench, expect }) {
    const parts = await bench.save();
    const refused = await bench.load(parts);
    expect(refused === null, 'config and memory of this device set', 'accepted', `${refused}`);
    const error = await bench.put(RUNNING);
    expect(error === null, 'RUNNING after they were set', 'success', `${error}`);
  },
};

/** Loads into a device that has nothing left of what was saved, and lets it run. */
async function tryHash(bench: StatesBench, parts: SavedParts): Promise<string> {
  const { inner } = bench.exerciser;
  if (inner === null) throw new Unreachable('the exerciser has no inner state');
  await bench.reopen();
  await inner.mutate(bench.port, 9);
  const refused = await bench.load(parts);
  if (refused !== null) return `refused (${refused})`;
  await bench.go(RUNNING);
  return inner.hash(bench.port);
}

async function hashOfLoaded(bench: StatesBench, parts: SavedParts): Promise<string> {
  const hash = await tryHash(bench, parts);
  if (hash.startsWith('refused')) throw new Unreachable(`data of this device were ${hash}`);
  return hash;
}

const state: StatesRule = {
  name: 'parts.state',
  title: 'what is set is what was got: all of the internal state',
  cites: 'gets whole snapshot for device config',
  needs: ['inner'],
  async run({ bench, expect }) {
    const { inner } = bench.exerciser;
    if (inner === null) return;
    await inner.mutate(bench.port, 5);
    const before = await inner.hash(bench.port);
    const after = await hashOfLoaded(bench, await bench.save());
    expect(after === before, 'saved, opened anew, changed, loaded; hash of the internal state', before, after);
  },
};

const second: StatesRule = {
  name: 'parts.second',
  title: 'a second save is of the device as it is then, not as it was at the first',
  cites: 'vendor driver has to be notified of the the GET_BUFFER action in advance.',
  needs: ['inner'],
  async run({ bench, expect }) {
    const { inner } = bench.exerciser;
    if (inner === null) return;
    await inner.mutate(bench.port, 5);
    const old = await inner.hash(bench.port);
    if ((await hashOfLoaded(bench, await bench.save())) !== old) throw new Unreachable('a first save is not all there');
    await inner.mutate(bench.port, 6);
    await bench.save();
    await inner.mutate(bench.port, 7);
    const before = await inner.hash(bench.port);
    const after = await hashOfLoaded(bench, await bench.save());
    expect(after === before, 'saved, changed, saved, loaded; hash of the internal state', before, after);
  },
};

const dirty: StatesRule = {
  name: 'parts.memory-dirty',
  title: 'under LOGGING each reading of the size gives what changed since the last, and nothing is left out',
  cites: 'In LOGGING state, get buffer of device memory returns dirty pages since last call',
  needs: ['device-memory', 'inner'],
  async run({ bench, expect }) {
    const { inner } = bench.exerciser;
    if (inner === null) return;
    await inner.mutate(bench.port, 5);
    // All of it once, so that what is told below is no more than what has changed.
    const whole = await bench.save();
    await bench.go(LOGGING);
    const memory = [...whole.memory, await bench.getMemory()];
    for (const seed of [6, 7, 8]) {
      await inner.mutate(bench.port, seed);
      memory.push(await bench.getMemory());
    }
    const before = await inner.hash(bench.port);
    await bench.go(STOP | LOGGING);
    memory.push(await bench.getMemory());
    const config = await bench.getConfig();
    const after = await hashOfLoaded(bench, { config, memory: memory.filter(({ length }) => length > 0) });
    expect(after === before, 'saved in parts under LOGGING, loaded; hash of the internal state', before, after);
  },
};

/** The text gives drivers no duty to find out: a finding only where the exerciser claims that they do. */
function mustRefuse({ bench, finding, note }: Trial<StatesBench>, what: string, refused: string | null): void {
  if (refused !== null) return;
  if (bench.host.exerciser?.claims.checksummed === true) finding(what, 'refused', 'accepted');
  else note(`${what}: accepted`);
}

async function goodParts(bench: StatesBench): Promise<SavedParts> {
  const parts = await bench.save();
  const refused = await bench.load(parts);
  if (refused !== null) throw new Unreachable(`data of this device were refused (${refused})`);
  return parts;
}

function damaged(bytes: Uint8Array): Uint8Array {
  const copy = bytes.slice();
  const at = copy.length - 1;
  copy[at] = (copy[at] as number) ^ 0x5a;
  return copy;
}

const configVerdict: StatesRule = {
  name: 'parts.config-verdict',
  title: 'SET_BUFFER of damaged or cut config data does no harm; a driver with checksums refuses it',
  cites: 'vendor driver has to be notified of the the SET_BUFFER action after data written.',
  needs: [],
  async run(trial) {
    const { config } = await goodParts(trial.bench);
    mustRefuse(trial, 'config with its last byte changed, set', await trial.bench.setConfig(damaged(config)));
    const half = config.subarray(0, Math.floor(config.length / 2));
    mustRefuse(trial, `the first ${half.length} of ${config.length} bytes set`, await trial.bench.setConfig(half));
    await trial.bench.setConfig(config);
    await trial.bench.home();
  },
};

const memoryVerdict: StatesRule = {
  name: 'parts.memory-verdict',
  title: 'SET_BUFFER of damaged memory data does no harm; a driver with checksums refuses it',
  cites: "vendor driver loads N'th chunk of device memory snapshot/dirty data",
  needs: ['device-memory'],
  async run(trial) {
    const { memory } = await goodParts(trial.bench);
    const whole = memory[0];
    if (whole === undefined || whole.length === 0) throw new Unreachable('its device memory is empty');
    mustRefuse(trial, 'memory with its last byte changed, set', await trial.bench.setMemory(damaged(whole)));
    await trial.bench.setMemory(whole);
    await trial.bench.home();
  },
};

const intoSecond: StatesRule = {
  name: 'parts.into-second',
  title: 'a second device takes config and memory and has all of the internal state; both run on, each for itself',
  cites: SET,
  needs: ['inner', 'second', 'same-kind'],
  run: (trial) => loadIntoSecond(trial, (bench) => bench.save(), tryHash),
};

const otherSize: StatesRule = {
  name: 'parts.other-size',
  title: 'a device of another size refuses the data (the text does not ask for it: a note where it does not)',
  cites: SET,
  needs: ['other-size'],
  run: (trial) =>
    loadOtherSize(
      trial,
      goodParts,
      (bench, data) => bench.load(data),
      (from, into) => trial.note(`data of ${from} loaded into ${into}: accepted`),
    ),
};

export const partRules: readonly StatesRule[] = [
  size,
  snapshot,
  memorySize,
  roundTrip,
  state,
  second,
  dirty,
  configVerdict,
  memoryVerdict,
  intoSecond,
  otherSize,
];
