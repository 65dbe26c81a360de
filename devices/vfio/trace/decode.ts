// One ioctl of a VFIO or iommufd fd, decoded into words: its name with what tells it from its like, what was given, what came back. Used for
// traces of Ferry itself (tracing-door.ts) and of other programs (foreign.ts), and by replay to match calls. Pure.
// linux/vfio.h, linux/iommufd.h. What is not in the tables keeps its number, and its bytes stay in the trace.
import {
  VFIO_DEVICE_FEATURE,
  VFIO_DEVICE_FEATURE_GET,
  VFIO_DEVICE_FEATURE_MASK,
  VFIO_DEVICE_FEATURE_PROBE,
  VFIO_DEVICE_FEATURE_SET,
  vfio_device_feature,
} from '../../../native/abi/vfio.ts';
import { CONTAINER_REQUESTS, GROUP_REQUESTS } from './container-requests.ts';
import { DATA_REQUESTS, DEVICE_REQUESTS } from './device-requests.ts';
import { FEATURES } from './features.ts';
import { listOf, readStruct, type Value, type Values, viewOf, wordFor } from './fields.ts';
import { IOMMUFD_REQUESTS } from './iommufd-requests.ts';
import { type FdKind, keyText, type Pointer, type Request } from './request.ts';

/** Memory that the argument points to at `at`; `bytes` is null where it was not read. */
export interface PointedMemory {
  readonly at: number;
  readonly when: 'before' | 'after';
  readonly bytes: Uint8Array;
}

export interface IoctlCall {
  readonly kind: FdKind;
  readonly request: number;
  /** A number: by value. null: the memory could not be read. */
  readonly before: Uint8Array | number | null;
  /** null: not a struct. */
  readonly after: Uint8Array | null;
  readonly failed: boolean;
  readonly memory: readonly PointedMemory[];
  /** What Ferry's own pointers mean, by their place in the argument: 'RAM+0x1000'. */
  readonly labels: ReadonlyMap<number, string>;
}

export interface DecodedIoctl {
  readonly what: string;
  readonly given: Values;
  readonly answer: Values;
}

const FIRST: Readonly<Record<Exclude<FdKind, 'other'>, readonly (readonly Request[])[]>> = {
  device: [DEVICE_REQUESTS],
  data: [DATA_REQUESTS],
  group: [GROUP_REQUESTS],
  container: [CONTAINER_REQUESTS],
  // /dev/iommu also answers as a container. Documentation/userspace-api/iommufd.rst, "IOMMUFD_VFIO_CONTAINER"
  iommufd: [IOMMUFD_REQUESTS, CONTAINER_REQUESTS],
};

export function requestOf(kind: FdKind, request: number): Request | null {
  // An fd of unknown origin: the same number may be a device's and a container's; a device is the likelier one to be handed around.
  const tables =
    kind === 'other'
      ? [...FIRST.device, ...FIRST.data, ...FIRST.group, ...FIRST.container, ...FIRST.iommufd]
      : FIRST[kind];
  for (const table of tables) {
    const found = table.find((row) => row.request === request);
    if (found !== undefined) return found;
  }
  return null;
}

export function isFeatureCall(kind: FdKind, request: number): boolean {
  return request === VFIO_DEVICE_FEATURE && (kind === 'device' || kind === 'other');
}

export function decodeIoctl(call: IoctlCall): DecodedIoctl {
  if (isFeatureCall(call.kind, call.request) && call.before instanceof Uint8Array) return decodeFeature(call);
  const row = requestOf(call.kind, call.request);
  if (row === null) return { what: `ioctl 0x${call.request.toString(16)}`, given: {}, answer: {} };
  const { argument } = row;
  const { before } = call;
  if (argument.kind === 'none' || before === null) return { what: row.name, given: {}, answer: {} };
  if (argument.kind === 'struct') {
    if (typeof before === 'number') return { what: row.name, given: { argument: before }, answer: {} };
    return decodeStruct(call, before, {
      name: row.name,
      pointers: row.pointers,
      given: argument.given,
      key: argument.key,
      read: (bytes) => readStruct(argument.struct, viewOf(bytes)),
      fieldAt: (at) => argument.struct.fields.find((field) => field.at === at)?.name ?? null,
    });
  }
  const value = scalarOf(argument, before);
  // An fd's number says nothing to who compares two runs.
  const what = argument.kind === 'int' ? row.name : `${row.name}(${value})`;
  return { what, given: { [argument.name]: value }, answer: {} };
}

function scalarOf(
  argument: { readonly kind: 'number' | 'int' | 'text'; readonly words?: Readonly<Record<string, number>> },
  before: Uint8Array | number,
): string | number {
  if (typeof before === 'number') return String(wordFor(argument.words ?? {}, before));
  if (argument.kind === 'text') return Buffer.from(before).toString('latin1').replace(/\0.*$/s, '');
  return before.length < 4 ? 0 : viewOf(before).getInt32(0, true);
}

interface Shape {
  readonly name: string;
  readonly pointers: readonly Pointer[];
  readonly given: readonly string[];
  readonly key: readonly string[];
  read(bytes: Uint8Array): Values;
  fieldAt(at: number): string | null;
}

function decodeStruct(call: IoctlCall, before: Uint8Array, shape: Shape): DecodedIoctl {
  const first: Record<string, Value> = { ...shape.read(before), ...memoryOf(call, shape.pointers, 'before') };
  const given: Record<string, Value> = {};
  for (const name of shape.given) if (first[name] !== undefined) given[name] = first[name];
  for (const [at, text] of call.labels) {
    const name = shape.fieldAt(at) ?? shape.pointers.find((pointer) => pointer.at === at)?.name ?? `at ${at}`;
    if (given[name] === undefined || typeof given[name] !== 'object') given[name] = text;
  }
  const key = keyText(first, shape.key);
  const what = key === '' ? shape.name : `${shape.name}(${key})`;
  return { what, given, answer: answerOf(call, before, shape, given) };
}

/** What came back and was not given. A failed call that wrote nothing has no answer. */
function answerOf(call: IoctlCall, before: Uint8Array, shape: Shape, given: Values): Values {
  const { after } = call;
  if (after === null || (call.failed && Buffer.compare(before, after) === 0)) return {};
  const answer: Record<string, Value> = { ...shape.read(after), ...memoryOf(call, shape.pointers, 'after') };
  const labelled = new Set([...call.labels.keys()].map((at) => shape.fieldAt(at)));
  for (const name of Object.keys(answer)) {
    const same = JSON.stringify(answer[name]) === JSON.stringify(given[name]);
    if (same || labelled.has(name)) delete answer[name];
  }
  return answer;
}

/** Lists that the argument points to; of a bitmap how many bits are set. */
function memoryOf(call: IoctlCall, pointers: readonly Pointer[], when: 'before' | 'after'): Values {
  const values: Record<string, Value> = {};
  for (const { at, bytes } of call.memory.filter((each) => each.when === when)) {
    const pointer = pointers.find((each) => each.at === at);
    if (pointer === undefined) continue;
    if (pointer.length.kind === 'count') {
      values[pointer.name] = listOf(pointer.length.element, viewOf(bytes), 0, Number.MAX_SAFE_INTEGER);
    } else if (pointer.length.kind === 'bitmap' || pointer.name === 'bitmap') {
      values[pointer.name] = { bytes: bytes.length, set: bitsSet(bytes) };
    } else values[pointer.name] = Buffer.from(bytes).toString('hex');
  }
  return values;
}

function bitsSet(bytes: Uint8Array): number {
  let count = 0;
  for (const byte of bytes) for (let left = byte; left !== 0; left &= left - 1) count++;
  return count;
}

function decodeFeature(call: IoctlCall): DecodedIoctl {
  const before = call.before as Uint8Array;
  if (before.length < vfio_device_feature.size) return { what: 'VFIO_DEVICE_FEATURE', given: {}, answer: {} };
  const flags = viewOf(before).getUint32(vfio_device_feature.flags, true);
  const number = flags & VFIO_DEVICE_FEATURE_MASK;
  const row = FEATURES.find((each) => each.feature === number) ?? null;
  const probe = (flags & VFIO_DEVICE_FEATURE_PROBE) !== 0;
  const how = [
    ...(probe ? ['PROBE'] : []),
    ...((flags & VFIO_DEVICE_FEATURE_GET) !== 0 ? ['GET'] : []),
    ...((flags & VFIO_DEVICE_FEATURE_SET) !== 0 ? ['SET'] : []),
  ];
  const wanted = row?.givenBy === 'get' ? VFIO_DEVICE_FEATURE_GET : VFIO_DEVICE_FEATURE_SET;
  const isGiven = row !== null && !probe && (flags & wanted) !== 0;
  const decoded = decodeStruct(call, before, {
    name: [...how, row?.name ?? number].join(' '),
    pointers: row?.pointers ?? [],
    given: isGiven ? row.given : [],
    key: isGiven ? row.key : [],
    read: (bytes) =>
      row?.struct && !probe && bytes.length > vfio_device_feature.data
        ? readStruct(row.struct, viewOf(bytes), vfio_device_feature.data)
        : {},
    fieldAt: (at) => row?.struct?.fields.find((field) => field.at === at - vfio_device_feature.data)?.name ?? null,
  });
  const [, name, key] = /^([^(]*)(?:\((.*)\))?$/.exec(decoded.what) ?? [];
  return { ...decoded, what: `VFIO_DEVICE_FEATURE(${name}${key === undefined ? '' : ` ${key}`})` };
}
