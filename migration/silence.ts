// Silence between the hosts: nothing moves for 30 s, and the peer is taken for gone, whatever TCP says - a peer that is stopped, or whose
// kernel still answers for it, closes nothing. Watched by source.ts before the pause and by destination.ts while it waits for the stream;
// the side that has nothing to say for long says so (keepTalking). JS thread. docs/stream.md, "Ends".
import { VmmError } from '../native/errno.ts';
import type { SourceSession } from './session.ts';
import { PING } from './stream/format.ts';

export const SILENCE_S = 30;
/** How often a busy side is heard. */
export const TALK_MS = 5_000;

/** `moved`: a count that rises when something has moved; null: nothing is expected just now. Returns what ends the watch. */
export function watchSilence(moved: () => number | null, fail: (reason: VmmError) => void): () => void {
  let last: number | null = -1;
  // Turns of this timer, not the clock: a process that was stopped itself, or a host that slept, has missed nothing.
  let quiet = 0;
  const timer = setInterval(() => {
    const now = moved();
    quiet = now === null || now !== last ? 0 : quiet + 1;
    last = now;
    if (quiet < SILENCE_S) return;
    clearInterval(timer);
    fail(new VmmError('silence', `nothing moved between the hosts for ${SILENCE_S} s`, { exitCode: 1 }));
  }, 1000);
  return () => clearInterval(timer);
}

/** PINGs while devices change state, for which their driver may take as long as the destination waits. Only between two sections. */
export async function keepTalking<T>(session: SourceSession, work: () => Promise<T>): Promise<T> {
  const { writer, returns, options } = session;
  const timer = setInterval(() => {
    const value = PING.alive + (session.alivePings++ % PING.aliveCount);
    returns.expect(value);
    // A write that fails is noticed by whoever writes next.
    writer.ping(value).catch(() => undefined);
  }, TALK_MS);
  if (options.peerIsQemu) clearInterval(timer);
  try {
    return await work();
  } finally {
    clearInterval(timer);
  }
}
