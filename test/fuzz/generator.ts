// Random numbers that a seed repeats, for the fuzz tests: mulberry32, small, and the same everywhere.

export type Generator = (below: number) => number;

export function generator(seed: number): Generator {
  let state = seed;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t = (t + Math.imul(t ^ (t >>> 7), t | 61)) ^ t;
    return Math.floor((((t ^ (t >>> 14)) >>> 0) / 2 ** 32) * below);
  };
}
