// The switch-over: walks phases.SWITCH_OVER, each step timed for the report; a step that fails leaves the session in a state from which
// way-back.ts leads to a running guest. Called by source.ts once rounds.ts says so. main-job.md, "Order at switch-over".
import { VmmError } from '../native/errno.ts';
import type { DirtyRound } from '../vmm/api.ts';
import type { DirtyPages } from './api.ts';
import { SWITCH_OVER, type SwitchOverStep } from './phases.ts';
import { opened, type SourceSession } from './session.ts';
import { keepTalking } from './silence.ts';
import { settleAll } from './stop-flag.ts';
import { writeCrc } from './stream/crc-section.ts';
import { sendBulk } from './stream/device-section.ts';
import { CORE_SECTION_VERSION, PING, SECTION } from './stream/format.ts';
import { packState } from './stream/packed.ts';
import { sendRam } from './stream/ram-section.ts';

interface SavedState {
  readonly name: string;
  readonly version: number;
  readonly packed: Uint8Array;
}

/** Steps that a real QEMU, which takes RAM alone, has part in. */
const FOR_QEMU: ReadonlySet<SwitchOverStep> = new Set<SwitchOverStep>(['pause', 'collectRest', 'sendRest']);

export class SwitchOver {
  readonly #session: SourceSession;
  #saved: SavedState[] = [];
  #lastRound: DirtyRound | null = null;
  readonly #actions: Readonly<Record<SwitchOverStep, () => Promise<void>>>;

  constructor(session: SourceSession) {
    this.#session = session;
    const { machine, live, writer } = session;
    this.#actions = {
      pause: () => this.#pause(),
      quiesce: () => keepTalking(session, () => settleAll(live.map((entry) => entry.live.quiesce()))),
      stop: () => keepTalking(session, () => settleAll(live.map((entry) => entry.live.stop()))),
      detachInterrupts: async () => {
        session.interruptsDetached = true;
        machine.detachInterrupts();
      },
      saveStates: async () => this.#saveStates(),
      collectRest: () => this.#collectRest(),
      sendRest: () => this.#sendRest(),
      drainDevices: () => this.#drainDevices(),
      sendStates: () => this.#sendStates(),
      sendCrc: () => writeCrc(writer),
      ping: () => this.#ping(PING.handOver),
      awaitPong: async () => {
        await session.returns.pong(PING.handOver);
      },
    };
  }

  /** From pause to PONG; no PONG within the deadline is a failure. */
  async run(): Promise<void> {
    const { stop, limits, options } = this.#session;
    const deadlineMs = answerDeadlineMs(limits.downtimeLimitMs);
    const deadline = setTimeout(
      () =>
        stop.fail(
          new VmmError('no-answer', `no answer from the destination within ${deadlineMs} ms of the pause`, {
            exitCode: 1,
          }),
        ),
      deadlineMs,
    );
    const ends = new Map<SwitchOverStep, { readonly from: number; readonly to: number }>();
    try {
      for (const { name } of SWITCH_OVER) {
        if (options.peerIsQemu && !FOR_QEMU.has(name)) continue;
        stop.check();
        const from = performance.now();
        await this.#actions[name]();
        ends.set(name, { from, to: performance.now() });
      }
      stop.check();
    } finally {
      clearTimeout(deadline);
    }
    this.#attribute(ends);
  }

  async #pause(): Promise<void> {
    const { machine } = this.#session;
    this.#session.pausedAt = performance.now();
    const before = machine.state;
    if (before === 'running') {
      this.#session.stateBefore = before;
      await machine.pause('finish-migrate');
    } else if (before === 'paused' || before === 'prelaunch') {
      this.#session.stateBefore = before;
      machine.setState('finish-migrate');
    } else throw new VmmError('not-movable', `the machine is ${before} and cannot move`, { exitCode: 1 });
  }

  #saveStates(): void {
    const { machine } = this.#session;
    this.#saved = saveStates(machine.devices);
    const core = {
      running: this.#session.stateBefore === 'running',
      realtimeNs: BigInt(Date.now()) * 1_000_000n,
      core: machine.saveCore(),
    };
    this.#saved.push({
      name: SECTION.core,
      version: CORE_SECTION_VERSION,
      packed: packState('the state of the machine', core),
    });
  }

  async #collectRest(): Promise<void> {
    this.#lastRound = await this.#session.machine.dirty.collect(true);
  }

  async #sendRest(): Promise<void> {
    const { machine, report, writer, ramSection, options } = this.#session;
    const round = this.#lastRound!;
    const began = performance.now();
    // The guest waits: the bandwidth limit is for rounds in which it runs (QEMU lifts it here, too).
    const slice = { from: 0, maxPages: round.bitmap.pages, bytesPerSecond: 0 };
    const sent = await sendRam(writer, 'end', opened(ramSection), { ram: machine.ram, bitmap: round.bitmap }, slice);
    report.bytes.ram += sent.bytes;
    report.bytes.zeroPages += sent.zeroPages;
    report.round({
      ms: Math.round(performance.now() - began),
      sentPages: sent.pages,
      zeroPages: sent.zeroPages,
      dirty: addPages(this.#session.unsent, report.dirtyOf(round, false)),
      ended: 'guest stopped',
    });
    if (!options.peerIsQemu) await this.#ping(PING.ramArrived);
  }

  async #drainDevices(): Promise<void> {
    const { live, writer, report, stop } = this.#session;
    for (const entry of live) {
      stop.check();
      report.bytes.device += await sendBulk(writer, 'end', opened(entry.section), (sink) => entry.live.drain(sink));
    }
    await this.#ping(PING.deviceDataArrived);
  }

  async #sendStates(): Promise<void> {
    const { writer, report } = this.#session;
    for (const { name, version, packed } of this.#saved) {
      await writer.packed(name, version, packed);
      report.bytes.state += packed.length;
    }
  }

  async #ping(value: number): Promise<void> {
    this.#session.returns.expect(value);
    await this.#session.writer.ping(value);
  }

  /**
   * Time by parts. A part ends when the destination has read it, not when the socket has taken it: the PONGs of the two early PINGs date
   * that on this clock. What of the wait for the last PONG was not loading (the destination says how long that took) went into transit.
   */
  #attribute(ends: ReadonlyMap<SwitchOverStep, { readonly from: number; readonly to: number }>): void {
    const { report, returns } = this.#session;
    let covered = this.#session.pausedAt;
    for (const { name, part } of SWITCH_OVER) {
      const end = ends.get(name);
      if (end === undefined || part === null) continue;
      if (name === 'awaitPong') {
        this.#session.answerWaitMs = end.to - covered;
        this.#session.answeredAt = end.to;
      }
      let to = end.to;
      if (name === 'sendRest') to = Math.max(to, returns.pongAt(PING.ramArrived) ?? to);
      if (name === 'drainDevices') to = Math.max(to, returns.pongAt(PING.deviceDataArrived) ?? to);
      if (to <= covered || name === 'awaitPong') continue;
      report.add(part, to - covered);
      covered = to;
    }
  }
}

function addPages(before: DirtyPages | null, last: DirtyPages): DirtyPages {
  const sum = (kind: keyof DirtyPages): number | null =>
    last[kind] === null ? null : last[kind] + (before?.[kind] ?? 0);
  return {
    kvm: sum('kvm'),
    vmm: sum('vmm'),
    deviceLog: sum('deviceLog'),
    region: sum('region'),
    container: sum('container'),
    iommufd: sum('iommufd'),
  };
}

/** No PONG, and no SHUT, within this is a failure. */
export function answerDeadlineMs(downtimeLimitMs: number): number {
  return Math.max(10_000, 5 * downtimeLimitMs);
}

/**
 * Save and pack while the guest still runs: the first time costs some 5 ms more (node-performance 6), which would be downtime. Not those
 * with an interrupt gate: their save notes pending vectors, which only means something once the gate is shut. Returns the milliseconds
 * of the second time, which say how fast this host is.
 */
export function rehearse(devices: SourceSession['machine']['devices']): number {
  const gateless = devices.filter(({ interrupts }) => interrupts === null);
  saveStates(gateless);
  const began = performance.now();
  saveStates(gateless);
  return performance.now() - began;
}

/** Every device's state into a buffer, in machine order. */
function saveStates(devices: SourceSession['machine']['devices']): SavedState[] {
  const saved: SavedState[] = [];
  for (const { id, state } of devices) {
    if (state === null) continue;
    saved.push({ name: id, version: state.version, packed: packState(`the state of ${id}`, state.save()) });
  }
  return saved;
}
