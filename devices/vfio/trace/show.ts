// A trace as a list for people: one line a call, what was asked, what came back, how long it took. Used by `ferry vfio trace`, live and with
// --show. Pure.
import type { Value, Values } from './fields.ts';
import { keyText, textOf } from './request.ts';
import type { CallLine, EndLine, Payload, Trace, TraceHeader, TraceLine } from './trace-file.ts';

/** Kept on one line; the file has all of it. */
const LONGEST = 300;

export function showTrace(trace: Trace): string {
  const lines = [
    ...headerLines(trace.header),
    ...trace.devices.map((device) => deviceText(device)),
    ...trace.calls.map(({ call }) => callText(call)),
    ...trace.ends.map(endText),
    ...(trace.cut ? ['the last line is cut off: the program was killed while it wrote'] : []),
  ];
  return `${lines.join('\n')}\n`;
}

export function showLine(line: TraceLine): string {
  if ('trace' in line) return headerLines(line).join('\n');
  if ('device' in line) return deviceText(line.device);
  return 'end' in line ? endText(line.end) : callText(line);
}

function headerLines(header: TraceHeader): string[] {
  return [
    `trace of: ${header.program.join(' ')}`,
    `began ${header.began}, Linux ${header.kernel}; payloads ${header.data ? 'are kept' : 'as length and hash'}`,
    ...header.notes.map((note) => `note: ${note}`),
  ];
}

function deviceText(device: { bdf: string; vendor: number; device: number; driver: string | null }): string {
  const hex = (value: number) => value.toString(16).padStart(4, '0');
  return `device ${device.bdf}: ${hex(device.vendor)}:${hex(device.device)}, driver ${device.driver ?? 'none'}`;
}

function endText(end: EndLine['end']): string {
  const how = end.signal === null ? `exit code ${end.code}` : `killed by ${end.signal}`;
  return `${seconds(end.at)}  [${end.pid}] ended: ${how}`;
}

function seconds(micros: number): string {
  return (micros / 1e6).toFixed(6).padStart(12);
}

export function callText(call: CallLine): string {
  const who = call.tid === undefined ? '' : `[${call.tid}] `;
  const result = call.errno === undefined ? String(call.result) : call.errno;
  const parts = [
    rest(call.given ?? {}, call.what),
    rest(call.answer ?? {}, ''),
    call.made === undefined ? '' : `new fd ${call.made.fd}: ${call.made.on}`,
    payloadText('', call.payload),
    payloadText('bitmap ', call.bitmap),
    // What no table knows is shown as it is.
    call.what.startsWith('ioctl ') && call.before !== undefined
      ? `${call.before}${call.after ? ` -> ${call.after}` : ''}`
      : '',
  ].filter((part) => part !== '');
  const text = parts.join('; ');
  const shown = text.length > LONGEST ? `${text.slice(0, LONGEST)}...` : text;
  const tail = shown === '' ? '' : `  ${shown}`;
  return `${seconds(call.at)}  ${who}${call.on}: ${call.what} = ${result}${tail}  (${call.us} us)`;
}

/** Without what the call's own words say already, and without sizes of structs. */
function rest(values: Values, said: string): string {
  const left = Object.entries(values).filter(
    ([name, value]) => name !== 'argsz' && name !== 'cap_offset' && !said.includes(textIn(name, value)),
  );
  return keyText(
    values,
    left.map(([name]) => name),
  );
}

function textIn(name: string, value: Value): string {
  // A scalar argument stands alone in the call's words: VFIO_SET_IOMMU(VFIO_TYPE1v2_IOMMU).
  return name === 'extension' || name === 'type' || name === 'container' || name === 'device'
    ? `(${textOf(value)})`
    : `${name}=${textOf(value)}`;
}

function payloadText(what: string, payload: Payload | undefined): string {
  if (payload === undefined) return '';
  const bytes = payload.data === undefined ? null : Buffer.from(payload.data, 'base64');
  if (bytes !== null && bytes.length <= 16) return `${what}${bytes.toString('hex')}`;
  return `${what}${payload.length} bytes, hash ${payload.hash}`;
}
