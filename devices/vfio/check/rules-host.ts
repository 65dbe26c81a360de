// Rules about the device as a piece of the host: config space, interrupts set-up and BARs in every state, calls from several threads, leaks over
// many migrations, and how long each change of state takes. linux/vfio.h, enum vfio_device_mig_state
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Bench, SetAnswer } from './bench.ts';
import { expectedSet, RESUMING, RUNNING, STOP, STOP_COPY, stateName } from './oracle.ts';
import { type Rule, Unreachable } from './rule.ts';

const ANSWERS =
  'must accept and respond to interaction to support external subsystems in the STOP state, for example PCI MSI-X and PCI config space';
const CONFIG = 7;

const config: Rule = {
  name: 'config.states',
  title: 'PCI config space answers in every state',
  cites: ANSWERS,
  needs: [],
  async run({ bench, expect }) {
    const region = bench.device.info.regions.find((each) => each.index === CONFIG && each.size >= 64);
    if (region === undefined) throw new Unreachable('the device has no PCI config space');
    const ids = () => {
      const bytes = new Uint8Array(4);
      bench.device.readRegion(CONFIG, 0, bytes);
      return Buffer.from(bytes).toString('hex');
    };
    const running = ids();
    for (const state of bench.states) {
      await bench.enter(state);
      const seen = attempt(() => {
        const command = new Uint8Array(2);
        bench.device.readRegion(CONFIG, 4, command);
        bench.device.writeRegion(CONFIG, 4, command);
        return ids();
      });
      expect(seen === running, `ids read and PCI_COMMAND written in ${stateName(state)}`, running, seen);
    }
  },
};

function attempt(work: () => string): string {
  try {
    return work();
  } catch (error) {
    return (error as Error).message;
  }
}

const vectors: Rule = {
  name: 'irqs.states',
  title: 'SET_IRQS works in every state',
  cites: ANSWERS,
  needs: [],
  async run({ bench, expect }) {
    // Edge-triggered message vectors: INTx would need an owner that unmasks it.
    const index = bench.device.info.irqs.find((each) => each.count > 0 && (each.index === 1 || each.index === 2));
    if (index === undefined) throw new Unreachable('the device has no MSI and no MSI-X');
    const fd = bench.door.eventFd();
    for (const state of bench.states) {
      await bench.enter(state);
      const { irqs } = bench.device;
      const seen = attempt(() => {
        irqs.trigger(index.index, 0, [fd]);
        irqs.disable(index.index);
        return 'success';
      });
      expect(seen === 'success', `SET_IRQS on and off in ${stateName(state)}`, 'success', seen);
    }
    bench.door.closeFd(fd);
  },
};

const access: Rule = {
  name: 'regions.stopped',
  title: 'reading the BARs of a stopped device ends, and the device works afterwards',
  cites: 'must not result in error conditions outside the user context',
  needs: [],
  async run({ bench, expect }) {
    const bars = bench.device.info.regions.filter((each) => each.index < 6 && each.readable && each.size > 0);
    for (const state of [STOP, STOP_COPY]) {
      await bench.enter(state);
      for (const bar of bars) attempt(() => `${bench.device.readRegion(bar.index, 0, new Uint8Array(4))}`);
      const answer = await bench.set(RUNNING);
      const seen = answer.error ?? stateName(answer.state);
      expect(answer.state === RUNNING, `BARs read in ${stateName(state)}, SET RUNNING`, 'RUNNING', seen);
    }
  },
};

const together: Rule = {
  name: 'calls.together',
  title: 'GET and SET from several threads all end, with states that exist',
  cites: 'must fully transition the device to the new state value before the operation returns to the user',
  needs: [],
  async run({ bench, expect }) {
    await bench.go(STOP);
    await bench.go(RUNNING);
    for (let round = 0; round < 5; round++) {
      const sets = [STOP, RUNNING, STOP, RUNNING].map((state) => bench.set(state));
      const seen = [bench.get(), bench.get()];
      const answers: SetAnswer[] = await Promise.all(sets);
      const states = [...seen, ...answers.map((each) => each.state), bench.get()];
      const odd = states.find((state) => !bench.states.includes(state));
      expect(odd === undefined, 'four SETs and three GETs at once', 'states of the device', stateName(odd ?? 0));
      const failed = answers.find((each) => each.error !== null);
      expect(failed === undefined, 'SET STOP and RUNNING at once, twice each', 'success', `${failed?.error}`);
      const end = bench.get();
      expect(end === STOP || end === RUNNING, 'GET after them', 'STOP or RUNNING', stateName(end));
    }
    await bench.home();
  },
};

const leaving: Rule = {
  name: 'calls.read-and-leave',
  title: 'a read that meets the end of its session ends',
  cites: 'The STOP_COPY arc will terminate a data transfer session',
  needs: [],
  async run({ bench, expect }) {
    for (let round = 0; round < 5; round++) {
      const data = await bench.session(STOP_COPY);
      const reads = [1, 4096, 65536].map((size) => data.read(new Uint8Array(size)));
      const answer = await bench.set(STOP);
      await Promise.all(reads);
      expect(answer.state === STOP, 'SET STOP while three reads are under way', 'STOP', stateName(answer.state));
    }
  },
};

/** Bytes that nobody accounts for as his own: slab, vmalloc and raw pages alike. */
function kernelBytes(proc: string): number {
  const text = readFileSync(join(proc, 'meminfo'), 'utf8');
  const kib = (name: string) => Number(new RegExp(`^${name}:\\s*(\\d+)`, 'm').exec(text)?.[1] ?? 0);
  const elsewhere = ['MemFree', 'Buffers', 'Cached', 'AnonPages', 'SReclaimable', 'PageTables'].map(kib);
  return (kib('MemTotal') - elsewhere.reduce((sum, each) => sum + each, 0)) * 1024;
}

function pinnedKib(proc: string): number {
  return Number(/^VmPin:\s*(\d+)/m.exec(readFileSync(join(proc, 'self/status'), 'utf8'))?.[1] ?? 0);
}

async function migrateToItself(bench: Bench): Promise<void> {
  const data = await bench.session(STOP_COPY);
  const stream = await data.readToEnd();
  const refused = await bench.load(stream);
  if (refused !== null) throw new Unreachable(`a stream of this device was refused by write() (${refused})`);
  await bench.go(STOP);
  await bench.go(RUNNING);
}

const BATCHES = 4;
const BATCH_MS = 3000;
const LEAK_BYTES = 32 * 1024;

const leaks: Rule = {
  name: 'leaks.loops',
  title: 'migrations to itself, again and again, cost the host nothing that stays',
  cites: 'The user is responsible to close this FD when it is finished',
  needs: [],
  async run({ bench, expect }) {
    const { proc } = bench.host;
    await migrateToItself(bench);
    bench.closeData();
    const fds = () => readdirSync(join(proc, 'self/fd')).length;
    const before = { fds: fds(), pinned: pinnedKib(proc) };
    const slopes: number[] = [];
    let loops = 0;
    for (let batch = 0; batch < BATCHES; batch++) {
      const bytes = kernelBytes(proc);
      const until = performance.now() + BATCH_MS;
      let count = 0;
      for (; count < bench.host.loops && (count < 2 || performance.now() < until); count++)
        await migrateToItself(bench);
      slopes.push((kernelBytes(proc) - bytes) / count);
      loops += count;
    }
    bench.closeData();
    const after = { fds: fds(), pinned: pinnedKib(proc) };
    expect(after.fds <= before.fds, `${loops} migrations to itself, open fds`, `${before.fds}`, `${after.fds}`);
    const pinned = after.pinned <= before.pinned;
    expect(pinned, `${loops} migrations to itself, pinned KiB`, `${before.pinned}`, `${after.pinned}`);
    // What other processes do goes up and down; a leak goes up in every batch.
    const least = Math.min(...slopes);
    const did = `${loops} migrations to itself in ${BATCHES} batches, kernel memory a migration`;
    expect(least < LEAK_BYTES, did, `less than ${LEAK_BYTES} bytes`, `${Math.round(least)} bytes in every batch`);
  },
};

const ROUNDS = 5;
const ARC_MS = 5000;

const timing: Rule = {
  name: 'timing.arcs',
  title: 'how long each change of state takes (never a finding)',
  cites: 'must fully transition the device to the new state value before the operation returns to the user',
  needs: [],
  async run({ bench, note }) {
    const stream = await bench.stream();
    for (const from of bench.states) {
      for (const to of bench.states.filter((each) => each !== from)) {
        const expected = expectedSet(from, to, bench.able);
        if (expected.kind !== 'goes' || expected.path.length !== 1) continue;
        const times: number[] = [];
        const until = performance.now() + ARC_MS;
        for (let round = 0; round < ROUNDS && (round === 0 || performance.now() < until); round++) {
          if (from === RESUMING) await bench.load(stream);
          else await bench.enter(from);
          const begun = performance.now();
          await bench.set(to);
          times.push(performance.now() - begun);
        }
        times.sort((a, b) => a - b);
        const at = (share: number) =>
          (times[Math.min(times.length - 1, Math.floor(share * times.length))] as number).toFixed(1);
        note(`${stateName(from)} -> ${stateName(to)}: p50 ${at(0.5)} ms, p90 ${at(0.9)} ms, max ${at(1)} ms`);
      }
    }
  },
};

export const hostRules: readonly Rule[] = [config, vectors, access, together, leaving, leaks, timing];
