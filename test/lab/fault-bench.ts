// What the tests of faults do in a pair of lab hosts: a link that does harm, a move that is to fail, and what must be true afterwards at both
// ends. Used by faults.pair.test.ts.
import { join } from 'node:path';
import { expect } from 'vitest';
import { judge } from '../../images/guest/verdict.ts';
import type { RemoteProcess } from '../../lab/client.ts';
import { LINK_ADDRESS } from '../../lab/link.ts';
import { repoRoot } from '../../lab/root.ts';
import { FaultDesk, type OpenLink } from './fault-desk.ts';
import { BOOT_LIMIT_MS, type Guest, type Move, type Pair } from './pair.ts';
import type { HarmOrder } from './programs/fault-desk.ts';
import { soon } from './soon.ts';

/** Generous: what a fault leaves of TCP's own patience (30 s and some) comes in here. */
const GIVE_UP_LIMIT_MS = 180_000;

export type Place = Pick<HarmOrder, 'marker' | 'direction' | 'occurrence' | 'after'>;
const hex = (text: string) => Buffer.from(text).toString('hex');
const ping = (value: string) => `0800020004${value}`;

/** Where in a migration's bytes something breaks; docs/stream.md. */
export const PLACES = {
  setup: { marker: hex('ferry/config'), direction: 'forward', occurrence: 1 },
  /** Its name in START, in the list of blocks, and in the first page's record. */
  ram: { marker: `03${hex('ram')}`, direction: 'forward', occurrence: 3, after: 1 << 20 },
  pageHeader: { marker: `03${hex('ram')}`, direction: 'forward', occurrence: 3 },
  /** Behind PING 3: in the middle of edu's 4 KiB. */
  deviceData: { marker: ping('00000003'), direction: 'forward', occurrence: 1, after: 1000 },
  states: { marker: hex('ferry/core'), direction: 'forward', occurrence: 1, after: 300 },
  lastPing: { marker: ping('7e5ac33d'), direction: 'forward', occurrence: 1 },
  pong: { marker: '000200047e5ac33d', direction: 'back', occurrence: 1 },
  shut: { marker: '0001000400000000', direction: 'back', occurrence: 1 },
} satisfies Record<string, Place>;

export interface HarmfulLink extends OpenLink {
  readonly uri: string;
}

/** A guest's process that ends badly or never gets a guest: its exit code and what it said. */
export interface Ended {
  readonly code: number | null;
  readonly stderr: string;
  readonly console: string;
}

export class FaultBench {
  readonly pair: Pair;
  /** One on each side. */
  readonly #desks: readonly [FaultDesk, FaultDesk];
  #links = 0;

  private constructor(pair: Pair, desks: readonly [FaultDesk, FaultDesk]) {
    this.pair = pair;
    this.#desks = desks;
  }

  static async over(pair: Pair): Promise<FaultBench> {
    const [a, b] = await Promise.all(pair.sides.map(({ host }) => FaultDesk.open(host)));
    return new FaultBench(pair, [a!, b!]);
  }

  /** Runs in the destination's host, in front of it. */
  async link(to: Guest, place: Place, fate: HarmOrder['fate']): Promise<HarmfulLink> {
    const port = 5000 + this.#links++;
    const order: HarmOrder = { ...place, port, target: Number(to.uri?.split(':').at(-1)), fate };
    const link = await this.#desks[to.at].link(order);
    return { ...link, uri: `tcp:${LINK_ADDRESS[to.at]}:${port}` };
  }

  /** Starts a migrate that goes on while the test does harm. */
  migrate(
    from: Guest,
    uri: string,
    ...args: string[]
  ): { readonly process: RemoteProcess; readonly moved: Promise<Move> } {
    const argv = [join(repoRoot(), 'bin/ferry'), 'migrate', from.control, uri, '--json', ...args];
    const process = this.pair.sides[from.at].host.spawn(argv);
    const out = { stdout: '', stderr: '' };
    process.stdout.on('data', (bytes: Buffer) => (out.stdout += bytes.toString()));
    process.stderr.on('data', (bytes: Buffer) => (out.stderr += bytes.toString()));
    const moved = soon('the end of ferry migrate', process.done, GIVE_UP_LIMIT_MS).then(
      ({ code, signal }): Move => ({
        ...{ code, signal, ...out, stdoutBytes: Buffer.from(out.stdout) },
        outcome: out.stdout.startsWith('{') ? (JSON.parse(out.stdout) as Move['outcome']) : null,
      }),
    );
    moved.catch(() => undefined);
    return { process, moved };
  }

  /** One command to a guest's control socket, and its answer. */
  qmp(guest: Guest, command: { execute: string; arguments?: object }): Promise<Record<string, unknown>> {
    return this.#desks[guest.at].ask({ path: guest.control.replace(/^unix:/, ''), command });
  }

  async status(guest: Guest): Promise<{ status: string; migration: string | undefined }> {
    const { return: status } = await this.qmp(guest, { execute: 'query-status' });
    const { return: migration } = await this.qmp(guest, { execute: 'query-migrate' });
    return {
      status: (status as { status: string }).status,
      migration: (migration as { status?: string }).status,
    };
  }

  /** Of a process that is about to end. */
  async ended(guest: Guest): Promise<Ended> {
    const { code } = await soon('the end of the destination', guest.process.done, GIVE_UP_LIMIT_MS);
    return { code, stderr: guest.stderr(), console: guest.console.text };
  }

  /** The destination has given up by itself: exit code 1, one line that says why, and no byte of a guest. */
  async gaveUp(destination: Guest, why: RegExp): Promise<void> {
    const ended = await this.ended(destination);
    expect(ended.code, ended.stderr).toBe(1);
    expect(ended.stderr).toMatch(why);
    expect(ended.stderr.match(/did not arrive/g), ended.stderr).toHaveLength(1);
    expect(ended.console).toBe('');
  }

  /** The guest runs at its source as if nothing had been: no tick lost, its DMA and interrupts go on, and QMP says so. */
  async goesOn(source: Guest, migration: 'failed' | 'cancelled'): Promise<void> {
    const before = judge([source.console.text]);
    expect(await this.status(source)).toEqual({ status: 'running', migration });
    const worked = () => {
      const now = judge([source.console.text]);
      return now.ticks > before.ticks && now.dmaChecks > before.dmaChecks && now.irqs > before.irqs;
    };
    await source.console.until('DMA and interrupts after a failed move', worked, BOOT_LIMIT_MS);
    const { lostTicks, errors } = judge([source.console.text]);
    expect({ lostTicks, errors }).toEqual({ lostTicks: 0, errors: [] });
  }
}

/** The move has failed, and the verb says so: exit code 1, the guest is here, nothing is open. */
export function expectFailed(move: Move, why: RegExp): void {
  expect(move.code, move.stderr).toBe(1);
  expect(move.outcome, move.stderr).toMatchObject({ status: 'failed', unanswered: false });
  expect(move.outcome?.error).toMatch(why);
  expect(move.stderr).toMatch(/the guest runs here/);
}

export function expectCancelled(move: Move): void {
  expect(move.code, move.stderr).toBe(1);
  expect(move.outcome, move.stderr).toMatchObject({ status: 'cancelled', error: null, unanswered: false });
  expect(move.stderr).toMatch(/the guest runs here/);
}
