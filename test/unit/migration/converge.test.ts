// The decision between going on, switching over and giving up, as a table; and the downtime model under it. main-job.md, "Convergence".
import { describe, expect, it } from 'vitest';
import { decide, type RoundFacts } from '../../../migration/converge.ts';
import { Bandwidth, expectedDowntimeMs, machineFixedMs, type RestOfMachine } from '../../../migration/estimate.ts';

const MB = 1_000_000;
const FIRST: RoundFacts = { rest: rest(1000 * MB), bytesPerSecond: 0 };

function rest(dirtyBytes: number, change: Partial<RestOfMachine> = {}): RestOfMachine {
  return { dirtyBytes, coarseBytes: 0, devices: [], machineMs: 20, ...change };
}
function round(dirtyBytes: number, bytesPerSecond = 32 * MB, change: Partial<RestOfMachine> = {}): RoundFacts {
  return { rest: rest(dirtyBytes, change), bytesPerSecond };
}
function device(change: Partial<RestOfMachine['devices'][number]> = {}): RestOfMachine['devices'][number] {
  return { id: 'edu', initialBytes: 0, precopyBytes: 0, stopCopyBytes: 0, fixedMs: 0, ...change };
}

const limits = { downtimeLimitMs: 300, timeoutMs: null };

describe('decide', () => {
  it('never switches before the first round is through, however small the guest', () => {
    expect(decide([{ rest: rest(0), bytesPerSecond: 0 }], limits, 0).kind).toBe('go-on');
    expect(decide([], limits, 0).kind).toBe('go-on');
  });

  it.each([
    ['what is left fits', round(8 * MB), 'switch'],
    ['one byte a second too slow', round(8 * MB, 28 * MB), 'go-on'],
    [
      'nothing is left, but the device alone takes longer',
      round(0, 32 * MB, { devices: [device({ fixedMs: 300 })] }),
      'go-on',
    ],
    ['the time of the device fits', round(0, 32 * MB, { devices: [device({ fixedMs: 250 })] }), 'switch'],
    ['stop-copy data does not fit', round(0, 32 * MB, { devices: [device({ stopCopyBytes: 32 * MB })] }), 'go-on'],
    ['a coarse source adds all of RAM', round(0, 32 * MB, { coarseBytes: 256 * MB }), 'go-on'],
    ['initial bytes are left', round(0, 32 * MB, { devices: [device({ initialBytes: 1 })] }), 'go-on'],
  ] as [string, RoundFacts, string][])('%s: %s', (_name, facts, kind) => {
    expect(decide([FIRST, facts], limits, 0).kind).toBe(kind);
  });

  it('goes on with a hint after three rounds without progress, and the limit it names would do', () => {
    const history = [FIRST, round(64 * MB), round(64 * MB), round(63 * MB), round(65 * MB)];
    for (let n = 1; n < history.length; n += 1) expect(hintOf(decide(history.slice(0, n), limits, 0))).toBeNull();
    const hint = hintOf(decide(history, limits, 0));
    expect(hint).toMatch(/^does not converge: .* the limit is 300 ms; a limit of \d+ ms would do$/);
    const would = Number(/a limit of (\d+) ms/.exec(hint!)![1]);
    expect(decide(history, { ...limits, downtimeLimitMs: would }, 0).kind).toBe('switch');
  });

  it('says so when it is the device that takes too long', () => {
    const slow = round(0, 32 * MB, { devices: [device({ fixedMs: 900 })] });
    expect(hintOf(decide([FIRST, slow, slow, slow, slow], limits, 0))).toContain('the devices alone take 920 ms');
  });

  it('takes the hint back when there is progress again', () => {
    const history = [FIRST, round(64 * MB), round(64 * MB), round(64 * MB), round(64 * MB), round(40 * MB)];
    expect(hintOf(decide(history, limits, 0))).toBeNull();
  });

  it('gives up at the time-out, naming the limit that would do; not when it fits just then', () => {
    const timed = { ...limits, timeoutMs: 5000 };
    expect(decide([FIRST, round(64 * MB)], timed, 4999).kind).toBe('go-on');
    const given = decide([FIRST, round(64 * MB)], timed, 5000);
    expect(given.kind === 'give-up' && given.reason).toMatch(/time-out of 5000 ms.*a limit of \d+ ms would do/);
    expect(decide([FIRST, round(1 * MB)], timed, 6000).kind).toBe('switch');
    expect(decide([FIRST], timed, 5000).kind).toBe('give-up');
  });
});

function hintOf(decision: ReturnType<typeof decide>): string | null {
  return decision.kind === 'go-on' ? decision.hint : null;
}

describe('the downtime model', () => {
  it('is bytes over bandwidth plus what takes time of its own', () => {
    const all = rest(10 * MB, {
      coarseBytes: 20 * MB,
      devices: [device({ precopyBytes: 1 * MB, stopCopyBytes: 1 * MB, fixedMs: 40 }), device({ fixedMs: 60 })],
    });
    expect(expectedDowntimeMs(all, 32 * MB)).toBeCloseTo(1000 + 100 + 20);
    expect(expectedDowntimeMs(rest(0), 0)).toBe(20);
    expect(expectedDowntimeMs(rest(0, { machineMs: machineFixedMs(100) }), 0)).toBe(300);
    expect(machineFixedMs(1)).toBe(20);
    expect(expectedDowntimeMs(rest(1), 0)).toBeGreaterThan(900);
  });

  it('measures bandwidth over the last rounds that weigh something, so tiny rounds do not distort it', () => {
    const bandwidth = new Bandwidth();
    expect(bandwidth.bytesPerSecond).toBe(0);
    bandwidth.add(1000 * MB, 10_000);
    expect(bandwidth.bytesPerSecond).toBeCloseTo(100 * MB);
    for (let n = 0; n < 20; n += 1) bandwidth.add(1000, 2);
    expect(bandwidth.bytesPerSecond).toBeGreaterThan(99 * MB);
    bandwidth.add(32 * MB, 1000);
    expect(bandwidth.bytesPerSecond).toBeCloseTo(32 * MB);
  });
});
