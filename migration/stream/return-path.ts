// The return path, destination to source on the same socket: u16 type, u16 length, bytes. PONG and SHUT are QEMU's; refused, report and
// alive are ours and go to a ferry source only. ReturnWriter is the destination's, readReturn the source's. qemu-compat A4.
import type { Channel } from '../../native/addon.ts';
import { StreamError } from '../../native/errno.ts';
import { ByteBuilder, viewOf } from './bytes.ts';
import { RETURN, RETURN_MESSAGE_MAX } from './format.ts';

export interface DestinationReport {
  readonly loadMs: number;
  readonly resumeMs: number;
  /** Ids of the devices whose driver judges its state only on the way to RUNNING. */
  readonly late: readonly string[];
}

export type ReturnMessage =
  | { readonly kind: 'shut'; readonly value: number }
  | { readonly kind: 'pong'; readonly value: number }
  | { readonly kind: 'refused'; readonly reason: string }
  | ({ readonly kind: 'report' } & DestinationReport)
  | { readonly kind: 'alive' };

export class ReturnWriter {
  readonly #channel: Channel;

  constructor(channel: Channel) {
    this.#channel = channel;
  }

  #send(type: number, payload: Uint8Array): Promise<void> {
    return this.#channel.write(new ByteBuilder().u16(type).u16(payload.length).bytes(payload).take());
  }

  pong(value: number): Promise<void> {
    return this.#send(RETURN.pong, new ByteBuilder().u32(value).take());
  }

  shut(value: 0 | 1): Promise<void> {
    return this.#send(RETURN.shut, new ByteBuilder().u32(value).take());
  }

  refused(reason: string): Promise<void> {
    return this.#send(RETURN.refused, new TextEncoder().encode(reason.slice(0, RETURN_MESSAGE_MAX / 4)));
  }

  report({ loadMs, resumeMs, late }: DestinationReport): Promise<void> {
    const micros = (ms: number): number => Math.min(0xffffffff, Math.max(0, Math.round(ms * 1000)));
    const ids = new TextEncoder().encode(late.join('\n')).subarray(0, RETURN_MESSAGE_MAX - 8);
    return this.#send(RETURN.report, new ByteBuilder().u32(micros(loadMs)).u32(micros(resumeMs)).bytes(ids).take());
  }

  alive(): Promise<void> {
    return this.#send(RETURN.alive, new Uint8Array(0));
  }
}

const LENGTHS = new Map<number, number>([
  [RETURN.shut, 4],
  [RETURN.pong, 4],
  [RETURN.alive, 0],
]);

export async function readReturn(channel: Channel): Promise<ReturnMessage> {
  const head = viewOf(await channel.read(4));
  const type = head.getUint16(0);
  const length = head.getUint16(2);
  const wanted = LENGTHS.get(type);
  if (
    (wanted === undefined && type !== RETURN.refused && (type !== RETURN.report || length < 8)) ||
    (wanted !== undefined && wanted !== length) ||
    length > RETURN_MESSAGE_MAX
  )
    throw new StreamError(`unknown message ${type} with ${length} bytes on the return path`);
  const bytes = length === 0 ? new Uint8Array(0) : await channel.read(length);
  const view = viewOf(bytes);
  switch (type) {
    case RETURN.shut:
      return { kind: 'shut', value: view.getUint32(0) };
    case RETURN.pong:
      return { kind: 'pong', value: view.getUint32(0) };
    case RETURN.report:
      return {
        kind: 'report',
        loadMs: view.getUint32(0) / 1000,
        resumeMs: view.getUint32(4) / 1000,
        late: new TextDecoder().decode(bytes.subarray(8)).split('\n').filter(Boolean).map(printable),
      };
    case RETURN.alive:
      return { kind: 'alive' };
    default:
      return { kind: 'refused', reason: printable(new TextDecoder().decode(bytes)) };
  }
}

/** A peer's words go to a terminal: one line, no control characters. */
function printable(text: string): string {
  return text.replace(/\p{Cc}+/gu, ' ');
}
