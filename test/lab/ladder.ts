// Climbs a fault ladder with one guest in a pair of lab hosts: each fault is a move that fails, after which the guest is where it was, and
// at work. Used by bringup.pair.test.ts.
import { expect } from 'vitest';
import type { ConsoleLog } from '../../cli/demo-console.ts';
import { judge } from '../../images/guest/verdict.ts';
import type { BringupDevices } from './bringup-devices.ts';
import { expectFailed, type FaultBench } from './fault-bench.ts';
import type { Fault } from './ladder-faults.ts';
import { BOOT_LIMIT_MS, type Guest, type GuestOptions } from './pair.ts';

export interface Climber {
  readonly bench: FaultBench;
  readonly devices: readonly BringupDevices[];
  readonly options: GuestOptions;
  /** Where the guest was before, and where it is now. */
  readonly lives: readonly Guest[];
  readonly limits: readonly string[];
}

export class Ladder {
  readonly #climber: Climber;
  readonly #source: Guest;
  /** What the guest's driver has to have noted so far. */
  readonly #met: string[] = [];
  #next: Promise<Guest> | null = null;

  constructor(climber: Climber) {
    this.#climber = climber;
    this.#source = climber.lives.at(-1)!;
  }

  async climb(faults: readonly Fault[]): Promise<void> {
    for (const fault of faults) await this.#try(fault);
  }

  /** For the move that succeeds at last. */
  async destination(): Promise<Guest> {
    const to = await (this.#next ?? this.#receive());
    this.#next = null;
    return to;
  }

  /** What the guest's driver has to have noted, in all. */
  get met(): readonly string[] {
    return this.#met;
  }

  /** The guest is where it was in spite of `fault`, and its device is at work again. */
  async #try(fault: Fault): Promise<void> {
    const { name, met, next } = fault;
    const began = performance.now();
    await this.#fails(fault);
    if (next !== null) {
      await this.#goesOn(met, false);
      await this.#fails({ why: next.why, source: {}, destination: {}, met: null });
    }
    await this.#goesOn(next === null ? met : next.met, true);
    console.log(`  ${name}: ${((performance.now() - began) / 1000).toFixed(1)} s`);
  }

  async #fails({
    why,
    source,
    destination,
    met,
  }: Pick<Fault, 'why' | 'source' | 'destination' | 'met'>): Promise<void> {
    const { bench, devices, limits } = this.#climber;
    const { at } = this.#source;
    const there = at === 0 ? 1 : 0;
    const to = await this.destination();
    await Promise.all([devices[at]!.set(source), devices[there]!.set(destination)]);
    const move = await bench.pair.migrate(this.#source, to, limits);
    // A device that is back before the driver has looked was never away.
    if (met === 'gone') await this.#noted(met, this.#notesHere() + 1);
    await devices[at]!.mend();
    expectFailed(move, why);
    expect(/the destination refused/.test(move.outcome!.error!), 'who is to blame').toBe(
      Object.keys(destination).length > 0,
    );
    await bench.gaveUp(to, /the guest did not arrive: ./);
    await devices[there]!.mend();
  }

  #receive(): Promise<Guest> {
    return this.#climber.bench.pair.receive(this.#source.at === 0 ? 1 : 0, this.#climber.options);
  }

  /** No tick is lost and nothing is wrong but what the driver has met; `atWork`: DMA and interrupts go on. */
  async #goesOn(met: string | null, atWork: boolean): Promise<void> {
    const { bench, lives } = this.#climber;
    if (met !== null) this.#met.push(met);
    this.#next = this.#receive();
    this.#next.catch(() => undefined);
    expect(await bench.status(this.#source)).toEqual({ status: 'running', migration: 'failed' });
    await this.#noted(met, this.#notesHere());
    const look = () => judge(lives.map((life) => life.console.text));
    await this.#stat();
    const before = look();
    if (atWork) {
      await this.#until('DMA and interrupts after a failed move', () => {
        const now = look();
        return now.ticks > before.ticks && now.dmaBytes > before.dmaBytes && now.irqs > before.irqs;
      });
    } else await bench.pair.runsOn(this.#source, 1);
    const { lostTicks, errors } = look();
    expect({ lostTicks, errors }).toEqual({ lostTicks: 0, errors: [] });
    expect(notesOf(lives)).toEqual(this.#met);
  }

  #noted(met: string | null, notes: number): Promise<void> {
    return this.#until(
      `the driver's note of ${met}`,
      ({ text }) => (text.match(/^note kind=bringup/gm) ?? []).length >= notes,
    );
  }

  /** A guest that does not do it is heard once more. */
  async #until(what: string, done: (log: ConsoleLog) => boolean): Promise<void> {
    const { console, stderr } = this.#source;
    try {
      await console.until(what, done, BOOT_LIMIT_MS);
    } catch (cause) {
      const said = `${(cause as Error).message}; the guest: ${console.text.slice(-2500)}; its ferry: ${stderr()}`;
      throw new Error(said, { cause });
    }
  }

  #notesHere(): number {
    const before = notesOf(this.#climber.lives.slice(0, -1)).length;
    return this.#met.length - before;
  }

  /** The workload's counters of now, not of the last second. */
  async #stat(): Promise<void> {
    const { console, process } = this.#source;
    const count = (text: string) => (text.match(/^stat /gm) ?? []).length;
    const had = count(console.text);
    process.stdin.write('stat\n');
    await console.until('the counters of the workload', ({ text }) => count(text) > had, BOOT_LIMIT_MS);
  }
}

/** What the driver has met, in order. */
export function notesOf(lives: readonly Guest[]): string[] {
  const text = lives.map(({ console }) => console.text).join('');
  return [...text.matchAll(/^note kind=bringup text=device-(\w+)/gm)].map((match) => match[1]!);
}
