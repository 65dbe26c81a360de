// The outgoing migration: connects the phases, owns cancel, silence and the one point of no return. migrateTo() is called by control; it
// never rejects: `done` says how it ended, and the guest runs at exactly one side then. All on the JS thread; bytes move on the channel's.
// Before EOF every failure walks phases.WAY_BACK; after it the source is postmigrate for good. docs/stream.md, architecture.md flow (d).
import type { Channel } from '../native/addon.ts';
import { VmmError } from '../native/errno.ts';
import type { Machine } from '../vmm/api.ts';
import type { MigrateOptions, Migration, MigrationOutcome, MigrationProgress, MigrationStatus } from './api.ts';
import { HAND_OVER, type HandOverStep } from './phases.ts';
import { ReportBuilder } from './report.ts';
import { ReturnListener } from './return-listener.ts';
import { Rounds } from './rounds.ts';
import { liveDevices, type SourceSession } from './session.ts';
import { keepTalking, watchSilence } from './silence.ts';
import { asError, StopFlag, settleAll } from './stop-flag.ts';
import { describeMachine } from './stream/config-section.ts';
import { startBulk } from './stream/device-section.ts';
import { bulkSectionName, CONFIG_SECTION_VERSION, MACHINE_NAME, PING, SECTION } from './stream/format.ts';
import { startRam } from './stream/ram-section.ts';
import { StreamWriter } from './stream/writer.ts';
import { answerDeadlineMs, rehearse, SwitchOver } from './switchover.ts';
import { wayBack } from './way-back.ts';

export function migrateTo(machine: Machine, peer: Channel, options: MigrateOptions): Migration {
  return new SourceMigration(machine, peer, options);
}

class SourceMigration implements Migration {
  readonly done: Promise<MigrationOutcome>;
  readonly #session: SourceSession;
  #status: MigrationStatus = 'setup';
  readonly #listeners: ((status: MigrationStatus, pass: number | null) => void)[] = [];
  #handedOver = false;
  #ended = false;
  #resets: { remove(): void } | null = null;

  constructor(machine: Machine, peer: Channel, options: MigrateOptions) {
    this.#session = {
      machine,
      options,
      writer: new StreamWriter(peer),
      returns: new ReturnListener(peer),
      stop: new StopFlag(() => peer.abort()),
      report: new ReportBuilder(),
      live: liveDevices(machine),
      ramSection: null,
      limits: { downtimeLimitMs: options.downtimeLimitMs, maxBandwidth: options.maxBandwidth },
      progress: firstProgress(machine.ram.size),
      notice: null,
      saveMs: 0,
      unsent: null,
      stateBefore: null,
      pausedAt: 0,
      answerWaitMs: 0,
      answeredAt: 0,
      alivePings: 0,
      interruptsDetached: false,
      trackingOn: false,
      onPass: (pass) => this.#tell(pass),
    };
    // A turn of the loop later, so that a listener set right after migrateTo() hears of 'setup'.
    this.done = new Promise((resolve) => setImmediate(resolve)).then(() => this.#run());
  }

  get status(): MigrationStatus {
    return this.#status;
  }

  get progress(): MigrationProgress {
    return { ...this.#session.progress, elapsedMs: Math.round(this.#session.report.elapsedMs) };
  }

  setLimits(limits: { downtimeLimitMs?: number; maxBandwidth?: number }): void {
    this.#session.limits = { ...this.#session.limits, ...limits };
  }

  onChange(listener: (status: MigrationStatus, pass: number | null) => void): void {
    this.#listeners.push(listener);
  }

  cancel(): boolean {
    if (this.#handedOver || this.#ended) return false;
    if (this.#session.stop.reason === null) this.#become('cancelling');
    this.#session.stop.cancel();
    return true;
  }

  #become(status: MigrationStatus): void {
    if (this.#status === 'cancelling' && status !== 'cancelled' && status !== 'failed') return;
    this.#status = status;
    this.#tell(null);
  }

  #tell(pass: number | null): void {
    for (const listener of this.#listeners) listener(this.#status, pass);
  }

  async #run(): Promise<MigrationOutcome> {
    const session = this.#session;
    this.#tell(null);
    // Only while the guest runs; from the pause on switchover.ts has a deadline.
    const { writer, returns, stop } = session;
    const heard = () => writer.channel.txBytes + writer.channel.rxBytes + returns.heard;
    const silenceOver = watchSilence(heard, (reason) => stop.fail(reason));
    try {
      await this.#setup();
      this.#become('active');
      await this.#precopy();
      silenceOver();
      this.#become('device');
      session.progress = { ...session.progress, phase: 'switchover' };
      await new SwitchOver(session).run();
      // No turn of the loop between this check and the hand-over: a cancel is either in time or refused.
      session.stop.check();
      this.#handedOver = true;
    } catch (thrown) {
      silenceOver();
      return this.#goBack(asError(thrown));
    }
    return this.#handOver();
  }

  async #setup(): Promise<void> {
    const { machine, writer, returns, stop, options, live } = this.#session;
    stop.check();
    this.#refuseUnmovable();
    this.#resets = machine.on(({ event }) => event === 'RESET' && this.#deviceSessionsLost());
    void machine.ended.then(() =>
      stop.fail(new VmmError('guest-ended', 'the guest ended while it was being moved', { exitCode: 1 })),
    );
    void returns.listen((reason) => stop.fail(reason));
    await writer.header(options.peerIsQemu ? MACHINE_NAME.qemu : MACHINE_NAME.ferry);
    await writer.openReturnPath();
    await this.#ping(PING.hello);
    if (!options.peerIsQemu) {
      const config = describeMachine(machine, options.testDrop === 'deviceState');
      await writer.state(SECTION.config, CONFIG_SECTION_VERSION, config);
      await this.#ping(PING.built);
      await returns.pong(PING.built);
    }
    stop.check();
    this.#session.trackingOn = true;
    const drop = options.testDrop === 'deviceState' ? null : options.testDrop;
    await keepTalking(this.#session, () => machine.dirty.start({ deviceLog: options.deviceLog, drop }));
    this.#announceCoarse();
    stop.check();
    await keepTalking(this.#session, () => settleAll(live.map((entry) => entry.live.saveSetup())));
    for (const entry of live) entry.section = await startBulk(writer, entry.device.id);
    this.#session.ramSection = await startRam(writer, machine.ram.size);
    this.#session.saveMs = rehearse(machine.devices);
  }

  /** A device reset ends its migration session (linux/vfio.h, VFIO_DEVICE_RESET): what the destination has of it is of no more use. */
  #deviceSessionsLost(): void {
    if (this.#session.live.length === 0 || this.#handedOver) return;
    const text = 'the guest was reset while it was being moved, and its devices with it: start the migration again';
    this.#session.stop.fail(new VmmError('guest-reset', text, { exitCode: 1 }));
  }

  /** Before the first page: what no round can make smaller. */
  #announceCoarse(): void {
    const { machine } = this.#session;
    const { coarseBytes } = machine.dirty;
    if (coarseBytes === 0) return;
    const mebibytes = Math.ceil(coarseBytes / (1 << 20));
    this.#session.notice = `a device's writes cannot be told page by page: the last round carries up to ${mebibytes} MiB while the guest stands still`;
    this.#session.progress = { ...this.#session.progress, hint: this.#session.notice };
    this.#tell(null);
  }

  async #ping(value: number): Promise<void> {
    this.#session.returns.expect(value);
    await this.#session.writer.ping(value);
  }

  async #precopy(): Promise<void> {
    await new Rounds(this.#session).run();
  }

  #refuseUnmovable(): void {
    const { machine, live, options } = this.#session;
    const refuse = (message: string): never => {
      throw new VmmError('not-movable', message, { exitCode: 1 });
    };
    if (machine.state === 'postmigrate') refuse("Can't migrate the vm that was paused due to previous migration");
    if (!['running', 'paused', 'prelaunch'].includes(machine.state))
      refuse(`a machine that is ${machine.state} cannot move`);
    const names = new Set<string>(Object.values(SECTION));
    for (const { id, live } of machine.devices)
      for (const name of live === null ? [id] : [id, bulkSectionName(id)]) {
        if (names.has(name)) refuse(`two sections of the stream would be named ${name}; give the device another id`);
        names.add(name);
      }
    for (const entry of live) {
      if (options.peerIsQemu) refuse(`a QEMU takes RAM alone, and this machine has device ${entry.device.id}`);
      const blocker = entry.live.blocker();
      if (blocker !== null) refuse(`device ${entry.device.id} cannot move: ${blocker}`);
    }
  }

  async #goBack(thrown: Error): Promise<MigrationOutcome> {
    const session = this.#session;
    const { stop, report } = session;
    // What waited for the peer rejected because of the hang-up; the reason for that is the error. A destination that says why it
    // refuses may still be heard when the socket's own end came first.
    if (stop.reason === null) await patience(session.returns, stop);
    stop.fail(thrown);
    const reason = stop.reason ?? thrown;
    const troubles = await wayBack(session);
    this.#finish();
    const error = [reason.message, ...troubles].join('; ');
    this.#become(stop.cancelled ? 'cancelled' : 'failed');
    return {
      status: stop.cancelled ? 'cancelled' : 'failed',
      error: stop.cancelled && troubles.length === 0 ? null : error,
      unanswered: false,
      report: report.build(),
    };
  }

  #finish(): void {
    const session = this.#session;
    this.#ended = true;
    this.#resets?.remove();
    session.report.devices = session.live.map(({ device, live }) => ({
      id: device.id,
      ...live.moved,
      lateValidation: session.returns.report?.late.includes(device.id) ?? false,
    }));
    session.progress = { ...session.progress, phase: 'ended', sentBytes: session.writer.channel.txBytes };
  }

  async #handOver(): Promise<MigrationOutcome> {
    const session = this.#session;
    const { machine, writer, returns, report, live, options } = session;
    session.progress = { ...session.progress, phase: 'handover' };
    let answer: string | null = null;
    const actions: Readonly<Record<HandOverStep, () => Promise<void>>> = {
      // Not waited for: a link that was cut just now takes long to say so, and only SHUT tells what became of it.
      eof: async () => {
        for (const written of [writer.eof(), writer.description()]) written.catch(() => undefined);
      },
      postmigrate: async () => machine.setState('postmigrate'),
      awaitShut: async () => {
        if (await returns.shutDown(answerDeadlineMs(session.limits.downtimeLimitMs))) return;
        throw new Error('it did not answer in time');
      },
      handedOver: async () => {
        if (answer === null) await settleAll(live.map((entry) => entry.live.handedOver()));
      },
      trackingOff: async () => {
        await machine.dirty.stop();
        session.trackingOn = false;
      },
    };
    for (const { name } of HAND_OVER) {
      try {
        await actions[name]();
      } catch (thrown) {
        // Only the peer's silence makes it unanswered; what fails here after SHUT concerns a machine that is done with.
        if (name === 'awaitShut') answer = asError(thrown).message;
      }
      if (name === 'awaitShut') report.downtimeMs = performance.now() - session.pausedAt;
    }
    if (!options.peerIsQemu) this.#attributeDestination();
    writer.channel.abort();
    this.#finish();
    session.progress = { ...session.progress, remainingBytes: 0 };
    this.#become(answer === null ? 'completed' : 'failed');
    return {
      status: answer === null ? 'completed' : 'failed',
      error:
        answer === null
          ? null
          : `the guest was handed over, but the destination did not confirm that it runs: ${answer}`,
      unanswered: answer !== null,
      report: report.build(),
    };
  }

  /**
   * load and resume are what the destination measured. The rest of the waits for PONG and SHUT was transit of the states and of the words
   * about them, which is long where a busy host's process must first be woken.
   */
  #attributeDestination(): void {
    const { report, returns, answerWaitMs, pausedAt, answeredAt } = this.#session;
    const loadMs = Math.min(returns.report?.loadMs ?? answerWaitMs, answerWaitMs);
    const handOverMs = pausedAt + report.downtimeMs - answeredAt;
    const resumeMs = Math.min(returns.report?.resumeMs ?? 0, handOverMs);
    report.add('load', loadMs);
    report.add('resume', resumeMs);
    report.add('state', answerWaitMs - loadMs + handOverMs - resumeMs);
  }
}

/** A moment for the destination's last words: a failed write is often noticed before what it sent has been read. */
async function patience(returns: ReturnListener, stop: StopFlag): Promise<void> {
  const heard = returns.heard;
  for (let waited = 0; waited < 500 && stop.reason === null && (waited < 100 || returns.heard !== heard); waited += 20)
    await new Promise((resolve) => setTimeout(resolve, 20));
}

function firstProgress(totalBytes: number): MigrationProgress {
  return {
    phase: 'setup',
    round: 0,
    totalBytes,
    sentBytes: 0,
    remainingBytes: totalBytes,
    deviceBytes: 0,
    bytesPerSecond: 0,
    dirtyPagesPerSecond: 0,
    expectedDowntimeMs: null,
    zeroPages: 0,
    normalPages: 0,
    elapsedMs: 0,
    hint: null,
  };
}
