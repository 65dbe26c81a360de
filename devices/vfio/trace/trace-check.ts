// Whether a line of a trace is one. A trace comes from somebody else: its names become paths of a directory in replay and must not lead out of
// it, and what it lacks must be said by its line, not by a failure somewhere later. Called by trace-file.ts. Pure.

import { isMediated } from '../host-pci.ts';

type Test = (value: unknown) => boolean;

const isText: Test = (value) => typeof value === 'string';
const isNumber: Test = (value) => typeof value === 'number' && Number.isSafeInteger(value);
const isFlag: Test = (value) => typeof value === 'boolean';
const isObject: Test = (value) => typeof value === 'object' && value !== null && !Array.isArray(value);
const isName: Test = (value) => typeof value === 'string' && /^[A-Za-z0-9_][\w.-]*$/.test(value);
const isHex: Test = (value) => typeof value === 'string' && /^([0-9a-f]{2})*$/.test(value);
const isPlace: Test = (value) => typeof value === 'string' && /^0x[0-9a-f]{1,16}$/.test(value);
const isAddress: Test = (value) =>
  typeof value === 'string' && (/^[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$/.test(value) || isMediated(value));
const isBase64: Test = (value) => typeof value === 'string' && /^[A-Za-z0-9+/]*={0,2}$/.test(value);
const or =
  (...tests: readonly Test[]): Test =>
  (value) =>
    tests.some((test) => test(value));
const isNull: Test = (value) => value === null;
const isMissing: Test = (value) => value === undefined;
const optional = (test: Test) => or(isMissing, test);
const shaped =
  (shape: Readonly<Record<string, Test>>): Test =>
  (value) =>
    isObject(value) && badField(shape, value as object) === null;
const each =
  (test: Test): Test =>
  (value) =>
    isObject(value) && Object.values(value as object).every(test);

const PAYLOAD = shaped({ length: isNumber, hash: isText, seen: optional(isNumber), data: optional(isBase64) });

const DEVICE = {
  bdf: isAddress,
  vendor: isNumber,
  device: isNumber,
  classCode: isNumber,
  driver: or(isNull, isName),
  driverOverride: or(isNull, isText),
  isVfio: isFlag,
  group: or(isNull, isNumber),
  cdev: or(isNull, isName),
  iommufd: isFlag,
};

const CALL = {
  at: isNumber,
  us: isNumber,
  call: isText,
  fd: isNumber,
  on: isText,
  what: isText,
  result: isNumber,
  pid: optional(isNumber),
  tid: optional(isNumber),
  request: optional(isNumber),
  length: optional(isNumber),
  errno: optional(isText),
  before: optional(isHex),
  after: optional(isHex),
  offset: optional(isPlace),
  given: optional(isObject),
  answer: optional(isObject),
  lists: optional(each(isHex)),
  made: optional(shaped({ fd: isNumber, on: isText })),
  payload: optional(PAYLOAD),
  bitmap: optional(PAYLOAD),
};

const END = { at: isNumber, pid: isNumber, code: or(isNull, isNumber), signal: or(isNull, isText) };

/** What is wrong with the line, to be said after its number; null: nothing. */
export function faultOf(line: object): string | null {
  const [what, shape, value] =
    'device' in line
      ? (['device', DEVICE, line.device] as const)
      : 'call' in line
        ? (['call', CALL, line] as const)
        : (['end', END, 'end' in line ? line.end : null] as const);
  // A kind of line that this version does not know.
  if (what === 'end' && !('end' in line)) return null;
  if (!isObject(value)) return `describes no ${what}`;
  const bad = badField(shape, value as object);
  return bad === null ? null : `has no usable '${bad}' of its ${what}`;
}

function badField(shape: Readonly<Record<string, Test>>, value: object): string | null {
  return Object.entries(shape).find(([name, test]) => !test((value as Record<string, unknown>)[name]))?.[0] ?? null;
}
