// The migration part of a trace, walked again by Ferry's own FeatureV2: each state change, size and stream that was recorded is asked for in
// that order, and what Ferry makes of the answer is one step. Called by cli/vfio-trace.ts and tests.
// linux/vfio.h, VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE
import { SysError } from '../../../native/errno.ts';
import type { ChunkSink, ChunkSource, PumpResult } from '../../contract.ts';
import { FeatureV2, openFeatureV2, STATE_DEADLINE_MS, word } from '../migration/feature-v2.ts';
import { stateOf } from '../migration/states.ts';
import type { VfioState } from '../transport.ts';
import { MIG_STATES } from './device-requests.ts';
import { ReplayDoor } from './replay-door.ts';
import { ReplayHost } from './replay-host.ts';
import type { ReplayInput } from './replay-info.ts';
import type { CallLine, NumberedCall } from './trace-file.ts';

export interface WalkStep {
  /** Of the trace. */
  readonly line: number;
  readonly device: string;
  readonly text: string;
  readonly ok: boolean;
}

const FEATURE = /^VFIO_DEVICE_FEATURE\((GET |SET )(MIGRATION|MIG_DEVICE_STATE|MIG_DATA_SIZE)\b(?: device_state=(\w+))?/;

/** Asked for by Ferry when it opens the device; programs older than Linux 6.15 do not. */
function isVersion2(what: string): boolean {
  return what.includes('MIG_PRECOPY_INFOv2');
}

function isMigration(call: CallLine): boolean {
  return call.on.startsWith('data ') || FEATURE.test(call.what) || isVersion2(call.what);
}

export function hasWalk(calls: readonly NumberedCall[]): boolean {
  return calls.some(({ call }) => call.what.startsWith('VFIO_DEVICE_FEATURE(SET MIG_DEVICE_STATE'));
}

export async function replayWalk(input: ReplayInput): Promise<WalkStep[]> {
  const host = new ReplayHost(input.trace);
  const door = new ReplayDoor({ ...input, paths: host.paths, only: isMigration, optional: isVersion2 });
  try {
    const walk = new Walk(door);
    for (let next = door.peek(); next !== null && door.mismatch === null; next = door.peek()) {
      await walk.step(next);
      // Asked in vain: Ferry does not do what the program did here.
      if (door.peek() === next) door.skip(next);
    }
    return walk.steps;
  } finally {
    door.close();
    host.close();
  }
}

class Walk {
  readonly steps: WalkStep[] = [];
  readonly #door: ReplayDoor;
  readonly #ports = new Map<string, FeatureV2>();

  constructor(door: ReplayDoor) {
    this.#door = door;
  }

  async step(next: NumberedCall): Promise<void> {
    const { line, call } = next;
    const device = call.on.replace(/^(device|data \d+ of) /, '');
    try {
      const text = await this.#text(next, device);
      this.steps.push({ line, device, text, ok: this.#door.mismatch === null });
    } catch (error) {
      const why = error instanceof Error ? error.message : String(error);
      this.steps.push({ line, device, text: why, ok: false });
    }
    const { mismatch } = this.#door;
    if (mismatch !== null) this.steps.push({ line, device, text: mismatch.message, ok: false });
  }

  async #text(next: NumberedCall, device: string): Promise<string> {
    const { call } = next;
    const [, how = '', feature, state] = FEATURE.exec(call.what) ?? [];
    if (feature === 'MIGRATION' && how === 'GET ') return this.#open(device);
    const port = this.#portOf(device);
    if (feature === 'MIG_DEVICE_STATE' && how === 'SET ') return this.#set(port, state ?? '');
    if (feature === 'MIG_DATA_SIZE' && how === 'GET ') return sizeText(await port.stopCopySize());
    if (!port.sessionOpen) return `${call.what}: the session has ended, so Ferry does not ask`;
    if (call.what.startsWith('VFIO_MIG_GET_PRECOPY_INFO')) return this.#precopy(port);
    if (call.call === 'read') return this.#save(port, call.on);
    if (call.call === 'write') return this.#load(port, next);
    return `${call.what}: Ferry does not ask this`;
  }

  #open(device: string): string {
    if (this.#ports.has(device)) return 'asked again what it can';
    const fd = this.#door.adopt({ kind: 'device', on: `device ${device}` });
    const port = openFeatureV2(this.#door, fd, device);
    if (port === null) return 'no migration, or none that Ferry knows';
    this.#ports.set(device, port);
    return `can ${['STOP_COPY', ...(port.p2p ? ['P2P'] : []), ...(port.preCopy ? ['PRE_COPY'] : [])].join(' ')}`;
  }

  /** A trace that begins in the middle does not say what the device can: then everything is believed. */
  #portOf(device: string): FeatureV2 {
    const known = this.#ports.get(device);
    if (known !== undefined) return known;
    const fd = this.#door.adopt({ kind: 'device', on: `device ${device}` });
    const able = { preCopy: true, p2p: true, reinit: false };
    const port = new FeatureV2({ door: this.#door, fd }, device, able, STATE_DEADLINE_MS);
    this.#ports.set(device, port);
    return port;
  }

  async #set(port: FeatureV2, name: string): Promise<string> {
    const target = stateByName(name);
    if (target === null) return `${name}: a state that Ferry does not know`;
    const from = word(port.state);
    await port.setState(target);
    return `${from} -> ${name}${port.state === target ? '' : `, but it is in ${word(port.state)}`}`;
  }

  async #save(port: FeatureV2, on: string): Promise<string> {
    let reads = 0;
    const pump = async (fd: number): Promise<PumpResult> => {
      let bytes = 0;
      for (;;) {
        const next = this.#door.peek();
        // The program did something else in between: so do we.
        if (next === null || next.call.call !== 'read' || next.call.on !== on) return { bytes, end: 'more' };
        try {
          const length = this.#door.streamLength(fd);
          reads += 1;
          if (length === 0) return { bytes, end: 'end' };
          bytes += length;
        } catch (error) {
          if (error instanceof SysError && error.code === 'ENOMSG') return { bytes, end: 'drained' };
          throw error;
        }
      }
    };
    const { bytes, end } = await port.save(sinkOf(pump), Number.MAX_SAFE_INTEGER);
    const how = { more: '', drained: ', then ENOMSG: no more for now', end: ', then the end' }[end];
    return `stream: ${bytes} bytes in ${reads} reads${how}`;
  }

  async #precopy(port: FeatureV2): Promise<string> {
    if (port.state !== 'pre-copy' && port.state !== 'pre-copy-p2p') {
      return `what is left of pre-copy: Ferry does not ask in ${word(port.state)}`;
    }
    const info = await port.precopyInfo();
    return info === null
      ? 'the driver does not say what is left of pre-copy'
      : `${info.initial} bytes initial, ${info.dirty} dirty`;
  }

  /** All writes that follow one another: how a program cut the stream says nothing. */
  async #load(port: FeatureV2, first: NumberedCall): Promise<string> {
    let bytes = 0;
    let writes = 0;
    const pump = async (): Promise<void> => {
      let next: NumberedCall | null = first;
      while (next !== null && next.call.call === 'write' && next.call.on === first.call.on) {
        this.#door.skip(next);
        if (next.call.errno !== undefined) {
          throw new Error(`the device refused bytes of the stream (${next.call.errno}) after ${bytes}`);
        }
        bytes += next.call.result;
        writes += 1;
        next = this.#door.peek();
      }
    };
    await port.load(sourceOf(pump), first.call.length ?? 0);
    return `stream: ${bytes} bytes in ${writes} writes`;
  }
}

function sizeText(size: number | null): string {
  return size === null ? 'the driver does not say how large its state is' : `${size} bytes when stopped`;
}

function stateByName(name: string): VfioState | null {
  const number = (MIG_STATES as Record<string, number>)[name];
  return number === undefined ? null : stateOf(number);
}

function sinkOf(pump: ChunkSink['pump']): ChunkSink {
  return { pump, put: noPieces, pumpPieces: noPieces };
}

function sourceOf(pump: ChunkSource['pump']): ChunkSource {
  return { pump, take: noPieces, pumpPieces: noPieces };
}

async function noPieces(): Promise<never> {
  throw new Error('FeatureV2 moves its data through its fd only');
}
