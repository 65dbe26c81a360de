// The incoming migration: reads the stream, builds the machine from its first section, takes RAM and device data, loads, answers, and runs
// the guest only after EOF. receiveFrom() is called by control and cli. Whatever fails before: the source is told why, everything is put
// back, the guest never runs here. All on the JS thread; RAM and device data move on the channel's. docs/stream.md.
import type { Channel } from '../native/addon.ts';
import { StreamError, VmmError } from '../native/errno.ts';
import type { CpuContract, Machine, MachineConfig, MachineHost } from '../vmm/api.ts';
import { checkCpuContract } from '../vmm/cpu-contract.ts';
import { buildForIncoming } from '../vmm/machine.ts';
import type { Incoming, MigrationStatus, ReceiveHost } from './api.ts';
import { ExpectedSections } from './expected-sections.ts';
import { checkBuilt, checkCpu, configFor } from './fit.ts';
import { type CoreSection, type Loaded, loadMachine, parseCore, resumeMachine } from './incoming-load.ts';
import { TALK_MS, watchSilence } from './silence.ts';
import { asError, StopFlag } from './stop-flag.ts';
import { parseConfig, type StreamConfig } from './stream/config-section.ts';
import { checkCrc } from './stream/crc-section.ts';
import { receiveBulk, receiveBulkStart } from './stream/device-section.ts';
import {
  CONFIG_SECTION_VERSION,
  CORE_SECTION_VERSION,
  CRC_SECTION_VERSION,
  MACHINE_NAME,
  PING,
  SECTION,
} from './stream/format.ts';
import { receiveRam, receiveRamStart } from './stream/ram-section.ts';
import { type SectionHead, StreamReader } from './stream/reader.ts';
import { ReturnWriter } from './stream/return-path.ts';

/** What vmm/machine.ts offers to build a machine for a stream. */
export interface MachineBuilder {
  checkCpuContract(wanted: CpuContract): string[];
  buildForIncoming(config: MachineConfig, cpu: CpuContract, host: MachineHost): Promise<Machine>;
}

/** After our last word, how long the source may take to read it before the socket goes. */
const LAST_WORDS_MS = 3_000;

/** `builder`: vmm/; tests of the state machine bring their own. */
export function receiveFrom(
  peer: Channel,
  host: ReceiveHost,
  builder: MachineBuilder = { checkCpuContract: (wanted) => checkCpuContract(wanted), buildForIncoming },
): Incoming {
  return new Destination(peer, host, builder);
}

/** From ferry/config on. */
interface Built {
  readonly machine: Machine;
  readonly config: StreamConfig;
  readonly expected: ExpectedSections;
  readonly states: Map<string, { readonly state: unknown; readonly version: number }>;
  readonly loading: Set<string>;
  core: CoreSection | null;
}

class Destination implements Incoming {
  readonly machine: Promise<Machine>;
  readonly #peer: Channel;
  readonly #host: ReceiveHost;
  readonly #builder: MachineBuilder;
  readonly #reader: StreamReader;
  readonly #stop: StopFlag;
  readonly #listeners: ((status: MigrationStatus) => void)[] = [];
  #status: MigrationStatus = 'setup';
  #returns: ReturnWriter | null = null;
  #built: Built | null = null;
  /** At work of its own: the source need not say anything meanwhile. */
  #busy = false;
  /** Set by PONG to the last PING; then EOF alone may follow. */
  #loaded: Loaded | null = null;

  constructor(peer: Channel, host: ReceiveHost, builder: MachineBuilder) {
    this.#peer = peer;
    this.#host = host;
    this.#builder = builder;
    this.#reader = new StreamReader(peer);
    this.#stop = new StopFlag(() => peer.abort());
    this.machine = new Promise((resolve) => setImmediate(resolve)).then(() => this.#run());
    // Whoever only looks at `status` must not bring the process down.
    this.machine.catch(() => undefined);
  }

  get status(): MigrationStatus {
    return this.#status;
  }

  cancel(): void {
    this.#stop.cancel();
  }

  onChange(listener: (status: MigrationStatus) => void): void {
    this.#listeners.push(listener);
  }

  #become(status: MigrationStatus): void {
    this.#status = status;
    for (const listener of this.#listeners) listener(status);
  }

  async #run(): Promise<Machine> {
    this.#become('setup');
    const silenceOver = watchSilence(
      () => (this.#busy ? null : this.#peer.rxBytes),
      (reason) => this.#stop.fail(reason),
    );
    try {
      const type = await this.#reader.header();
      this.#become('active');
      if (type !== MACHINE_NAME.ferry)
        throw new StreamError(`the stream is of a machine ${JSON.stringify(type)}; ferry takes those of ferry`);
      await this.#readSections();
      silenceOver();
      const built = this.#mustBeBuilt();
      await resumeMachine(this.#incoming(built), this.#mustAnswer(), this.#loaded ?? { ms: 0, late: [] });
      this.#become('completed');
      void this.#hangUp();
      return built.machine;
    } catch (thrown) {
      silenceOver();
      const error = this.#stop.reason ?? asError(thrown);
      await this.#giveUp(error);
      throw error;
    }
  }

  #incoming(built: Built): Parameters<typeof resumeMachine>[0] {
    const { machine, expected, states, core, config } = built;
    return { machine, expected, states, core, dropDeviceState: config.dropDeviceState };
  }

  /** Up to EOF. */
  async #readSections(): Promise<void> {
    for (;;) {
      this.#stop.check();
      const record = await this.#reader.next();
      if (this.#loaded !== null && record.kind !== 'eof')
        throw new StreamError(`a record of kind ${record.kind} where only the hand-over may come`);
      switch (record.kind) {
        case 'eof':
          if (this.#loaded === null) throw new StreamError('the stream ends before the machine is complete');
          this.#stop.check();
          return;
        case 'openReturnPath':
          if (this.#returns !== null) throw new StreamError('the return path is opened twice');
          this.#returns = new ReturnWriter(this.#peer);
          break;
        case 'ping':
          await this.#answer(record.value);
          break;
        case 'start':
          await this.#start(record.section);
          break;
        case 'part':
        case 'end':
          await this.#part(record.section, record.kind === 'end');
          break;
        case 'full':
          await this.#full(record.section);
          break;
      }
    }
  }

  async #answer(value: number): Promise<void> {
    const returns = this.#mustAnswer();
    if (value !== PING.handOver) return returns.pong(value);
    const built = this.#mustBeBuilt();
    this.#busy = true;
    this.#loaded = await loadMachine(this.#incoming(built), async () => {
      this.#stop.check();
      this.#busy = false;
      await returns.pong(value);
    });
  }

  #mustAnswer(): ReturnWriter {
    if (this.#returns === null) throw new StreamError('the source has opened no return path');
    return this.#returns;
  }

  #mustBeBuilt(): Built {
    if (this.#built === null) throw new StreamError('the stream does not begin with ferry/config');
    return this.#built;
  }

  async #start(section: SectionHead): Promise<void> {
    const built = this.#mustBeBuilt();
    const role = built.expected.start(section.name);
    if (role.kind !== 'bulk') return receiveRamStart(this.#reader, section, built.machine.ram);
    await receiveBulkStart(this.#reader, section);
    if (built.config.dropDeviceState) return;
    built.loading.add(role.deviceId);
    this.#busy = true;
    await this.#live(built, role.deviceId).loadSetup();
    this.#busy = false;
  }

  async #part(section: SectionHead, last: boolean): Promise<void> {
    const built = this.#mustBeBuilt();
    const role = built.expected.part(section.name, last);
    if (role.kind !== 'bulk') {
      await receiveRam(this.#reader, section, built.machine.ram);
      return;
    }
    const target = built.config.dropDeviceState ? null : this.#live(built, role.deviceId);
    await receiveBulk(this.#reader, section, target);
  }

  #live(built: Built, deviceId: string): NonNullable<Machine['devices'][number]['live']> {
    const live = built.machine.devices.find(({ id }) => id === deviceId)?.live ?? null;
    if (live === null) throw new StreamError(`device ${deviceId} takes no device data here`);
    return live;
  }

  async #full(section: SectionHead): Promise<void> {
    if (section.name === SECTION.config) return this.#build(section);
    const built = this.#mustBeBuilt();
    const role = built.expected.full(section.name);
    switch (role.kind) {
      case 'state': {
        const newest = built.machine.devices.find(({ id }) => id === role.deviceId)?.state?.version ?? 0;
        if (section.version > newest)
          throw new StreamError(
            `device ${role.deviceId} has state version ${section.version}; ${newest} is the newest known here`,
          );
        built.states.set(role.deviceId, { state: await this.#reader.state(section), version: section.version });
        return;
      }
      case 'core':
        wantVersion(section, CORE_SECTION_VERSION);
        built.core = parseCore(await this.#reader.state(section));
        return;
      case 'crc':
        wantVersion(section, CRC_SECTION_VERSION);
        return checkCrc(this.#reader, section);
      default:
        throw new StreamError(`section ${JSON.stringify(section.name)} must come in parts`);
    }
  }

  /** The first section: nothing of the machine moves before this host has been found to fit and the machine has been built. */
  async #build(section: SectionHead): Promise<void> {
    this.#mustAnswer();
    if (this.#built !== null) throw new StreamError('section "ferry/config" comes twice');
    wantVersion(section, CONFIG_SECTION_VERSION);
    const config = parseConfig(await this.#reader.state(section));
    checkCpu(this.#builder.checkCpuContract(config.cpu));
    this.#busy = true;
    const alive = setInterval(() => void this.#returns?.alive().catch(() => undefined), TALK_MS);
    try {
      const machine = await this.#builder.buildForIncoming(configFor(config, this.#host), config.cpu, this.#host);
      const expected = new ExpectedSections(config.devices);
      this.#built = { machine, config, expected, states: new Map(), loading: new Set(), core: null };
      checkBuilt(config, machine);
    } finally {
      clearInterval(alive);
      this.#busy = false;
    }
  }

  async #giveUp(error: Error): Promise<void> {
    const built = this.#built;
    // First the word to the source, whose guest may be standing still; then what takes time here.
    const told = this.#tellSource(error);
    if (built !== null) {
      const cancelled = [...built.loading].map(async (id) => this.#live(built, id).cancel());
      await Promise.allSettled(cancelled);
      await built.machine.close().catch(() => undefined);
    }
    await told;
    this.#become(this.#stop.cancelled ? 'cancelled' : 'failed');
  }

  async #tellSource(error: Error): Promise<void> {
    try {
      await this.#returns?.refused(reasonFor(error));
      await this.#returns?.shut(1);
    } catch {
      // The source has gone first; it needs no word.
    }
    await this.#hangUp();
  }

  /** FIN, then reads on until the source closes: a close with unread bytes would be a RST that overtakes our last words. */
  async #hangUp(): Promise<void> {
    const timer = setTimeout(() => this.#peer.abort(), LAST_WORDS_MS);
    try {
      await this.#peer.end();
      for (;;) await this.#peer.read(1 << 12);
    } catch {
      // Ended, one way or another.
    }
    clearTimeout(timer);
    this.#peer.abort();
  }
}

function wantVersion(section: SectionHead, version: number): void {
  if (section.version !== version)
    throw new StreamError(
      `section ${JSON.stringify(section.name)} has version ${section.version}; ${version} is read here`,
    );
}

/** VmmErrors are written for the user; their causes are not for the other host. */
function reasonFor(error: Error): string {
  return error instanceof VmmError || error instanceof StreamError ? error.message : `${error.name}: ${error.message}`;
}
