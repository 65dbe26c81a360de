// Sizes as users write them: 512M, 2G, 4096K, 1.5G. Called by config.ts and device-syntax.ts; pure.

const UNITS: Readonly<Record<string, number>> = { b: 1, k: 2 ** 10, m: 2 ** 20, g: 2 ** 30, t: 2 ** 40 };

/** Bytes, or null when the text is no size. A bare number counts in `unit` bytes (MiB for --memory, as in QEMU's -m). */
export function parseSize(text: string, unit: number): number | null {
  const match = /^([0-9]+(?:\.[0-9]+)?)([bkmgt])?(?:i?b)?$/i.exec(text.trim());
  if (match === null) return null;
  const factor = match[2] === undefined ? unit : UNITS[match[2].toLowerCase()]!;
  const bytes = Number(match[1]) * factor;
  return Number.isSafeInteger(bytes) ? bytes : null;
}

/** For messages: the largest unit that says it exactly, else MiB with one decimal. */
export function sizeText(bytes: number): string {
  for (const [name, factor] of [
    ['GiB', 2 ** 30],
    ['MiB', 2 ** 20],
    ['KiB', 2 ** 10],
  ] as const) {
    if (bytes >= factor && bytes % factor === 0) return `${bytes / factor} ${name}`;
  }
  return bytes < 2 ** 20 ? `${bytes} bytes` : `${(bytes / 2 ** 20).toFixed(1)} MiB`;
}
