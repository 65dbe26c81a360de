// What the tests of the vCPU loop share: guests that end with their test, waiting for them, and the code they run most.
import { afterEach } from 'vitest';
import type { VcpuLoopHandlers } from '../../native/addon.ts';
import { type Guest, type GuestOptions, makeGuest } from './native-guest.ts';

export interface LoopGuests {
  /** Of this test. */
  readonly open: readonly Guest[];
  guest(options: GuestOptions, handlers: Partial<VcpuLoopHandlers>): Guest;
}

/** To be called once a test file: what guest() makes is closed after each test. */
export function loopGuests(): LoopGuests {
  const open: Guest[] = [];
  afterEach(async () => {
    for (const machine of open.splice(0)) await machine.close();
  });
  const guest = (options: GuestOptions, handlers: Partial<VcpuLoopHandlers>): Guest => {
    const made = makeGuest(options, handlers);
    open.push(made);
    return made;
  };
  return { open, guest };
}

/** A promise and what settles it. */
export function signal<T>() {
  let resolve: (value: T) => void = () => {};
  const promise = new Promise<T>((done) => {
    resolve = done;
  });
  return { promise, resolve };
}

export const turn = () => new Promise<void>((resolve) => setImmediate(resolve));

export async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await turn();
}

export const DONE = 'outb %al, $0xf4\n 1: hlt\n jmp 1b\n';
export const SPIN = '1: incl 0x2000\n jmp 1b\n';
