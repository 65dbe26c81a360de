// Go on, switch over, or give up: a pure decision on the history of rounds. Called by rounds.ts after each collect, before that round is sent.
// Three rounds without progress do not end a migration; it goes on and says which limit would do. `--timeout` ends it. main-job.md, "Convergence".
import { expectedDowntimeMs, fixedMs, type RestOfMachine, switchOverBytes } from './estimate.ts';

export interface RoundFacts {
  readonly rest: RestOfMachine;
  readonly bytesPerSecond: number;
}
export interface Limits {
  readonly downtimeLimitMs: number;
  readonly timeoutMs: number | null;
}
export type Decision =
  | { readonly kind: 'go-on'; readonly expectedMs: number | null; readonly hint: string | null }
  | { readonly kind: 'switch'; readonly expectedMs: number }
  | { readonly kind: 'give-up'; readonly reason: string };

const ROUNDS_WITHOUT_PROGRESS = 3;
/** A round counts as progress when it brings the expected downtime down by more than this part. */
const PROGRESS = 0.05;

/** `history`: one entry a collect, oldest first; the first one, all of RAM and no bandwidth yet, is never enough to switch on. */
export function decide(history: readonly RoundFacts[], limits: Limits, elapsedMs: number): Decision {
  const now = history.at(-1);
  const measured = now !== undefined && history.length > 1 && now.bytesPerSecond > 0;
  const expectedMs = measured ? expectedDowntimeMs(now.rest, now.bytesPerSecond) : null;
  const initial = now?.rest.devices.find((device) => device.initialBytes > 0) ?? null;
  if (expectedMs !== null && initial === null && expectedMs <= limits.downtimeLimitMs)
    return { kind: 'switch', expectedMs };
  const hint = expectedMs !== null && isStuck(history) ? explain(now!, expectedMs, limits) : null;
  if (limits.timeoutMs !== null && elapsedMs >= limits.timeoutMs)
    return {
      kind: 'give-up',
      reason: `not converged within the time-out of ${limits.timeoutMs} ms: ${
        expectedMs === null ? 'the first round was not through' : explain(now!, expectedMs, limits)
      }`,
    };
  return { kind: 'go-on', expectedMs, hint };
}

/** True when none of the last three rounds got the expected downtime below the best one before them. */
function isStuck(history: readonly RoundFacts[]): boolean {
  const expected = history.slice(1).map((facts) => expectedDowntimeMs(facts.rest, facts.bytesPerSecond));
  if (expected.length <= ROUNDS_WITHOUT_PROGRESS) return false;
  const before = Math.min(...expected.slice(0, -ROUNDS_WITHOUT_PROGRESS));
  return Math.min(...expected.slice(-ROUNDS_WITHOUT_PROGRESS)) > before * (1 - PROGRESS);
}

/** Why it does not fit, and the limit that would do: what is expected now, a fifth more, rounded up to 50 ms. */
function explain(facts: RoundFacts, expectedMs: number, limits: Limits): string {
  const fixed = fixedMs(facts.rest);
  const would = suggestedLimitMs(expectedMs);
  const initial = facts.rest.devices.find((device) => device.initialBytes > 0);
  if (initial !== undefined)
    return `does not converge: device ${initial.id} still has ${initial.initialBytes} bytes to send before the guest may stop`;
  const cause =
    fixed > limits.downtimeLimitMs
      ? `the devices alone take ${Math.round(fixed)} ms`
      : `${mebibytes(switchOverBytes(facts.rest))} MiB are left after each round and ${mebibytes(facts.bytesPerSecond)} MiB go a second`;
  return `does not converge: ${cause}, the limit is ${limits.downtimeLimitMs} ms; a limit of ${would} ms would do`;
}

export function suggestedLimitMs(expectedMs: number): number {
  return Math.ceil((expectedMs * 1.2) / 50) * 50;
}

function mebibytes(bytes: number): string {
  return (bytes / (1 << 20)).toFixed(1);
}
