// Rules (main-job.md, "Convergence, deadlines, ends"; docs/stream.md): 30 s without a byte is a failure at both ends, also when the peer is
// merely stopped and closes nothing; a side whose devices take long says so meanwhile.
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import type { SourceSession } from '../../../migration/session.ts';
import { keepTalking, watchSilence } from '../../../migration/silence.ts';
import { PING } from '../../../migration/stream/format.ts';
import { migratePair } from '../../fakes/migration-pair.ts';

// Only the timers of the rule; what the machines wait for goes on at its own pace.
beforeEach(() => void vi.useFakeTimers({ toFake: ['setInterval', 'clearInterval'] }));
afterEach(() => void vi.useRealTimers());

describe('the watch', () => {
  it('fails once, after 30 s in which nothing moved', () => {
    const fail = vi.fn();
    let moved = 0;
    watchSilence(() => moved, fail);
    vi.advanceTimersByTime(25_000);
    moved += 1;
    vi.advanceTimersByTime(29_000);
    expect(fail).not.toHaveBeenCalled();
    vi.advanceTimersByTime(60_000);
    expect(fail).toHaveBeenCalledOnce();
    expect(fail.mock.calls[0]![0]).toMatchObject({ message: 'nothing moved between the hosts for 30 s', exitCode: 1 });
  });

  it('does not count while nothing is expected, nor when it has been ended', () => {
    const fail = vi.fn();
    let busy = true;
    const over = watchSilence(() => (busy ? null : 7), fail);
    vi.advanceTimersByTime(300_000);
    busy = false;
    vi.advanceTimersByTime(29_000);
    over();
    vi.advanceTimersByTime(300_000);
    expect(fail).not.toHaveBeenCalled();
  });
});

describe('a busy source', () => {
  it('sends a PING that is expected every 5 s, each of another value, and none afterwards', async () => {
    const [sent, expected]: [number[], number[]] = [[], []];
    const session = {
      options: { peerIsQemu: false },
      alivePings: 0,
      writer: { ping: async (value: number) => void sent.push(value) },
      returns: { expect: (value: number) => void expected.push(value) },
    } as unknown as SourceSession;
    let end = () => {};
    const work = keepTalking(session, () => new Promise<void>((resolve) => (end = resolve)));
    await vi.advanceTimersByTimeAsync(21_000);
    end();
    await work;
    await vi.advanceTimersByTimeAsync(60_000);
    expect(sent).toEqual([0, 1, 2, 3].map((n) => PING.alive + n));
    expect(expected).toEqual(sent);
    expect(PING.alive + PING.aliveCount).toBeLessThanOrEqual(PING.rounds);
  });
});

describe('a destination whose source is stopped', () => {
  it('gives up after 30 s, says why, and never runs the guest', async () => {
    let abortedEarly: boolean | null = null;
    const pair = await migratePair({
      prepare: ({ sourceDiary, channels: { source, destination } }) => {
        sourceDiary.onStep = async (step) => {
          if (step !== 'dev0.iterate') return;
          source.out.fault = { silentAt: source.txBytes };
          await vi.advanceTimersByTimeAsync(27_000);
          abortedEarly = destination.aborted;
          await vi.advanceTimersByTimeAsync(6_000);
        };
      },
    });
    expect(abortedEarly).toBe(false);
    expect(pair.destinationError?.message).toBe('nothing moved between the hosts for 30 s');
    expect(pair.built?.ran).toBe(false);
    expect(pair.source.state).toBe('running');
  });
});
