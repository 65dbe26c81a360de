// Precopy: collect what is dirty, decide, send it and the devices' share, wait until the destination has taken it; again until the rest fits
// the downtime limit. Called by source.ts while the guest runs. A round ends with a PONG, so bandwidth is what the destination really takes,
// and what a device refuses of its early data is known before the guest stops. architecture.md, flow (c).
import { setTimeout as sleep } from 'node:timers/promises';
import type { PageBitmap } from '../native/addon.ts';
import { VmmError } from '../native/errno.ts';
import type { DirtyRound } from '../vmm/api.ts';
import type { DirtyPages } from './api.ts';
import { type Decision, decide, type RoundFacts } from './converge.ts';
import { Bandwidth, machineFixedMs, switchOverBytes } from './estimate.ts';
import { type LiveDevice, opened, type SourceSession } from './session.ts';
import { sendBulk } from './stream/device-section.ts';
import { PAGE_SIZE, PING } from './stream/format.ts';
import { sendRam } from './stream/ram-section.ts';

/** CPUs write all the time; a device's DMA ends a few times a second (edu: at most 10). */
const LOSS_WINDOW_MS = { kvmLastRound: 200, deviceLog: 1500, deviceState: 0 } as const;
/** A slice of a round is about this long, so that limits, progress and cancel are looked at. */
const SLICE_SECONDS = 0.2;
const SLICE_PAGES = { least: 256, first: 4096, most: 32768 };
/** From here on what a round has sent so far says how fast it goes; before, the rounds before it do. */
const TELLING_MS = 100;
/** Tiny rounds of a guest that does not converge for another reason must not keep the host busy. */
const SHORTEST_ROUND_MS = 50;

export class Rounds {
  readonly #session: SourceSession;
  readonly #bandwidth = new Bandwidth();
  readonly #history: RoundFacts[] = [];
  #n = 0;

  constructor(session: SourceSession) {
    this.#session = session;
  }

  /** Returns when it is time to switch over; the tracker keeps what was collected and not sent. */
  async run(): Promise<void> {
    const { stop, report } = this.#session;
    for (;;) {
      stop.check();
      const began = performance.now();
      const round = await this.#session.machine.dirty.collect(false);
      const dirty = report.dirtyOf(round, this.#n === 0);
      const decision = await this.#decide(round.bitmap.count);
      this.#warn(round);
      if (decision.kind === 'switch') {
        // A negative control throws away what the last collect finds: the guest gets time to write something that is then missing.
        const { testDrop } = this.#session.options;
        if (testDrop !== null) await sleep(LOSS_WINDOW_MS[testDrop]);
        this.#session.unsent = dirty;
        return;
      }
      this.#n += 1;
      this.#session.onPass(this.#n);
      await this.#send(round.bitmap, dirty, began);
      const spent = performance.now() - began;
      if (spent < SHORTEST_ROUND_MS) await sleep(SHORTEST_ROUND_MS - spent);
    }
  }

  /** Nothing is lost when a source fails, for all of RAM is sent again, but the user should know why it takes so long. */
  #warn(round: DirtyRound): void {
    if (round.failed.length === 0) return;
    const hint = `dirty tracking by ${round.failed.join(', ')} failed; all of RAM is sent again`;
    this.#session.progress = { ...this.#session.progress, hint };
  }

  async #decide(dirtyPages: number): Promise<Decision> {
    const { machine, live } = this.#session;
    const devices = await Promise.all(
      live.map(async ({ device, live }) => {
        const pending = await live.pending();
        return {
          id: device.id,
          initialBytes: pending.precopyInitial,
          precopyBytes: pending.precopy,
          stopCopyBytes: pending.stopCopy,
          fixedMs: live.fixedDowntimeMs,
        };
      }),
    );
    this.#history.push({
      rest: {
        dirtyBytes: dirtyPages * PAGE_SIZE,
        coarseBytes: machine.dirty.coarseBytes,
        devices,
        machineMs: machineFixedMs(this.#session.saveMs),
      },
      bytesPerSecond: this.#bandwidth.bytesPerSecond,
    });
    if (this.#history.length > 16) this.#history.splice(1, 1);
    return this.#judge();
  }

  #judge(): Decision {
    const session = this.#session;
    const facts = this.#history.at(-1)!;
    const limits = { downtimeLimitMs: session.limits.downtimeLimitMs, timeoutMs: session.options.timeoutMs };
    const decision = decide(this.#history, limits, session.report.elapsedMs);
    if (decision.kind === 'give-up') throw new VmmError('not-converged', decision.reason, { exitCode: 1 });
    session.progress = {
      ...session.progress,
      phase: 'precopy',
      round: this.#n + 1,
      remainingBytes: switchOverBytes(facts.rest),
      expectedDowntimeMs: decision.expectedMs,
      hint: (decision.kind === 'go-on' ? decision.hint : null) ?? session.notice,
    };
    return decision;
  }

  async #send(rest: PageBitmap, dirty: DirtyPages, began: number): Promise<void> {
    const { report, writer, returns } = this.#session;
    const bytesBefore = writer.channel.txBytes;
    const sendBegan = performance.now();
    const pages = await this.#sendPages(rest);
    for (const device of this.#session.live) await this.#sendDevice(device);
    const ping = PING.rounds + this.#n;
    returns.expect(ping);
    await writer.ping(ping);
    await returns.pong(ping);
    const now = performance.now();
    this.#bandwidth.add(writer.channel.txBytes - bytesBefore, now - sendBegan);
    report.round({ ms: Math.round(now - began), ...pages, dirty, ended: 'all sent' });
    this.#session.progress = {
      ...this.#session.progress,
      bytesPerSecond: Math.round(this.#bandwidth.bytesPerSecond),
      sentBytes: writer.channel.txBytes,
    };
  }

  async #sendPages(rest: PageBitmap): Promise<{ sentPages: number; zeroPages: number }> {
    const { machine, report, writer, ramSection, stop } = this.#session;
    const total = rest.count;
    const sum = { sentPages: 0, zeroPages: 0 };
    const began = performance.now();
    const bytesBefore = writer.channel.txBytes;
    let from = 0;
    while (sum.sentPages + sum.zeroPages < total) {
      stop.check();
      const { maxBandwidth } = this.#session.limits;
      const slice = { from, maxPages: this.#slicePages(maxBandwidth), bytesPerSecond: maxBandwidth };
      const sent = await sendRam(writer, 'part', opened(ramSection), { ram: machine.ram, bitmap: rest }, slice);
      if (sent.pages + sent.zeroPages === 0) break;
      from = sent.next;
      sum.sentPages += sent.pages;
      sum.zeroPages += sent.zeroPages;
      report.bytes.ram += sent.bytes;
      report.bytes.zeroPages += sent.zeroPages;
      const ms = performance.now() - began;
      const rate =
        ms < TELLING_MS ? this.#bandwidth.bytesPerSecond : ((writer.channel.txBytes - bytesBefore) / ms) * 1000;
      this.#progress((total - sum.sentPages - sum.zeroPages) * PAGE_SIZE, sent, rate);
      if (this.#session.options.timeoutMs !== null) this.#judge();
    }
    const seconds = (performance.now() - began) / 1000;
    if (this.#n > 1 && seconds > 0)
      this.#session.progress = { ...this.#session.progress, dirtyPagesPerSecond: Math.round(total / seconds) };
    return sum;
  }

  #slicePages(maxBandwidth: number): number {
    const measured = this.#bandwidth.bytesPerSecond;
    const rate = maxBandwidth > 0 ? Math.min(maxBandwidth, measured || maxBandwidth) : measured;
    if (rate === 0) return SLICE_PAGES.first;
    return Math.min(SLICE_PAGES.most, Math.max(SLICE_PAGES.least, Math.round((rate * SLICE_SECONDS) / PAGE_SIZE)));
  }

  #progress(remainingBytes: number, sent: { pages: number; zeroPages: number }, rate: number): void {
    const session = this.#session;
    const { progress } = session;
    session.progress = {
      ...progress,
      remainingBytes,
      sentBytes: session.writer.channel.txBytes,
      bytesPerSecond: Math.round(rate),
      zeroPages: progress.zeroPages + sent.zeroPages,
      normalPages: progress.normalPages + sent.pages,
    };
  }

  /** What the device has for now, but no more than it had when the round began: a busy device must not hold up the RAM. */
  async #sendDevice(entry: LiveDevice): Promise<void> {
    const { writer, report, stop } = this.#session;
    const facts = this.#history.at(-1)!.rest.devices.find((device) => device.id === entry.device.id);
    let budget = Math.max(1 << 20, (facts?.initialBytes ?? 0) + (facts?.precopyBytes ?? 0));
    const bytes = await sendBulk(writer, 'part', opened(entry.section), async (sink) => {
      while (budget > 0) {
        stop.check();
        const slice = Math.min(budget, 4 << 20);
        if ((await entry.live.iterate(sink, slice)) === 'drained') return;
        budget -= slice;
      }
    });
    report.bytes.device += bytes;
    this.#session.progress = {
      ...this.#session.progress,
      deviceBytes: report.bytes.device,
    };
  }
}

/** Names what a failed source means: its pages are all sent again, so nothing is lost, but the user should know why it takes so long. */
export function failedSources(round: DirtyRound): string | null {
  return round.failed.length === 0
    ? null
    : `dirty tracking by ${round.failed.join(', ')} failed; all of RAM is sent again`;
}
