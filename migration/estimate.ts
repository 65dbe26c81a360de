// The downtime model: what is still to be sent, how fast it goes, and what costs time of its own. Pure arithmetic, called by rounds.ts after
// each round; converge.ts decides on it. vfio-migration.md section 4.

/** What is known when a round's dirty pages have been collected and nothing of it is sent yet. */
export interface RestOfMachine {
  readonly dirtyBytes: number;
  /** What a coarse dirty source will add in the last round. */
  readonly coarseBytes: number;
  readonly devices: readonly DeviceRest[];
  /** Pausing, saving and loading the machine itself. */
  readonly machineMs: number;
}
export interface DeviceRest {
  readonly id: string;
  /** Must be sent, and taken by the destination, before the switch-over. */
  readonly initialBytes: number;
  readonly precopyBytes: number;
  readonly stopCopyBytes: number;
  readonly fixedMs: number;
}

/** Pausing, saving and loading a small machine takes 8-15 ms on an unhurried host; on slow ones it goes with what a save takes there. */
export function machineFixedMs(saveMs: number): number {
  return Math.max(20, 3 * saveMs);
}

export function switchOverBytes(rest: RestOfMachine): number {
  let bytes = rest.dirtyBytes + rest.coarseBytes;
  for (const device of rest.devices) bytes += device.initialBytes + device.precopyBytes + device.stopCopyBytes;
  return bytes;
}

/** The device streams share one connection, and one data fd is read after another: their fixed times add up. */
export function fixedMs(rest: RestOfMachine): number {
  return rest.devices.reduce((sum, device) => sum + device.fixedMs, rest.machineMs);
}

export function expectedDowntimeMs(rest: RestOfMachine, bytesPerSecond: number): number {
  const bytes = switchOverBytes(rest);
  if (bytes === 0) return fixedMs(rest);
  return fixedMs(rest) + (bytes / Math.max(bytesPerSecond, 1)) * 1000;
}

/** Bytes on the wire over time, destination's reading included (a round ends with its PONG), over the last rounds that weigh something. */
export class Bandwidth {
  static readonly #WINDOW_BYTES = 16 << 20;
  readonly #rounds: { bytes: number; ms: number }[] = [];

  add(bytes: number, ms: number): void {
    this.#rounds.push({ bytes, ms });
    let newer = 0;
    for (let at = this.#rounds.length - 1; at > 0; at -= 1) {
      newer += this.#rounds[at]!.bytes;
      if (newer >= Bandwidth.#WINDOW_BYTES) {
        this.#rounds.splice(0, at);
        break;
      }
    }
  }

  /** 0 before the first round. */
  get bytesPerSecond(): number {
    let bytes = 0;
    let ms = 0;
    for (const round of this.#rounds) {
      bytes += round.bytes;
      ms += round.ms;
    }
    return ms === 0 ? 0 : (bytes / ms) * 1000;
  }
}
