// QEMU's -device syntax, `driver,key=value,...` or a JSON object, judged against the registry. Called by config.ts for --device and by
// `ferry receive`; pure. Wording of the refusals is QEMU's, with the remedy behind it (facts: qemu-compat, section D).
import type { DeviceType, PropertySpec, PropertyValue } from '../devices/contract.ts';
import { VmmError } from '../native/errno.ts';
import type { DeviceConfig, DeviceRegistryView } from './api.ts';
import { type KeyValues, parseKeyValues } from './key-values.ts';
import { parseSize } from './size.ts';

const MAX_SLOT = 31;
const DEVICE = { option: '--device', first: 'driver', code: 'bad-device' };

/** All --device of one machine. Ids that are not given are made from type and order, so both ends of a migration get the same. */
export function parseDevices(texts: readonly string[], registry: DeviceRegistryView): DeviceConfig[] {
  const devices: DeviceConfig[] = [];
  const counts = new Map<string, number>();
  for (const text of texts) {
    const raw = parseKeyValues(text, DEVICE);
    const device = judge(raw, registry, counts);
    if (devices.some((other) => other.id === device.id)) {
      throw refuse(`Duplicate device ID '${device.id}'; give each --device an id= of its own`);
    }
    if (device.slot !== null && devices.some((other) => other.slot === device.slot)) {
      throw refuse(`addr=0x${device.slot.toString(16)} is taken twice; give '${device.id}' another slot, or none`);
    }
    devices.push(device);
  }
  return devices;
}

function judge(raw: KeyValues, registry: DeviceRegistryView, counts: Map<string, number>): DeviceConfig {
  const driver = raw.get('driver');
  if (typeof driver !== 'string' || driver === '') throw refuse(`--device: Parameter 'driver' is missing`);
  const type = registry.get(driver);
  if (type === null) {
    throw refuse(`'${driver}' is not a valid device model name; there are: ${registry.names().join(', ') || 'none'}`);
  }
  const order = counts.get(driver) ?? 0;
  counts.set(driver, order + 1);
  const properties: Record<string, PropertyValue> = {};
  let id = `${driver}-${order}`;
  let slot: number | null = null;
  for (const [key, value] of raw) {
    if (key === 'driver') continue;
    else if (key === 'id') id = judgeId(value);
    else if (key === 'addr') slot = judgeAddr(value);
    else if (key === 'bus') judgeBus(value);
    else properties[key] = judgeProperty(type, key, value);
  }
  for (const [key, spec] of Object.entries(type.properties)) {
    if (spec.required && properties[key] === undefined) {
      throw refuse(`Parameter '${key}' is missing: --device ${driver} needs it (${spec.help})`);
    }
  }
  return { type: driver, id, slot, properties };
}

export function judgeId(value: string | number | boolean): string {
  // QEMU, "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter."
  if (typeof value === 'string' && /^[A-Za-z][A-Za-z0-9._-]*$/.test(value)) return value;
  throw refuse(
    `Parameter 'id' expects an identifier, not '${value}': letters, digits, '-', '.', '_', starting with a letter`,
  );
}

/** As in QEMU the slot is hexadecimal, with or without 0x, and may be followed by a function number. */
function judgeAddr(value: string | number | boolean): number {
  const match = /^(?:0x)?([0-9a-f]{1,2})(?:\.(?:0x)?([0-9a-f]))?$/i.exec(String(value));
  const slot = match === null ? Number.NaN : Number.parseInt(match[1]!, 16);
  if (!(slot >= 1 && slot <= MAX_SLOT)) {
    throw refuse(`addr=${value}: no such PCI slot; give 0x1 to 0x1f (0 is the host bridge)`);
  }
  if (match?.[2] !== undefined && match[2] !== '0') {
    throw refuse(`addr=${value}: functions other than 0 are not there; give the slot alone`);
  }
  return slot;
}

function judgeBus(value: string | number | boolean): void {
  if (value === 'pci.0' || value === 'pcie.0') return;
  throw refuse(`Bus '${value}' not found; there is pci.0`);
}

function judgeProperty(type: DeviceType, key: string, value: string | number | boolean): PropertyValue {
  const spec = Object.hasOwn(type.properties, key) ? type.properties[key] : undefined;
  if (spec === undefined) {
    const names = Object.keys(type.properties).join(', ') || 'none';
    throw refuse(`Property '${type.name}.${key}' not found; it has: ${names}`);
  }
  const judged = convert(spec, value);
  if (judged !== null) return judged;
  throw refuse(`Parameter '${key}' expects ${EXPECTS[spec.kind]}, not '${value}'`);
}

const EXPECTS: Readonly<Record<PropertySpec['kind'], string>> = {
  string: 'a string',
  number: 'a number',
  size: 'a size such as 64K or 1G',
  boolean: "'on' or 'off'",
};

function convert(spec: PropertySpec, value: string | number | boolean): PropertyValue | null {
  switch (spec.kind) {
    case 'boolean':
      if (typeof value === 'boolean') return value;
      if (['on', 'yes', 'true', 'y'].includes(String(value))) return true;
      return ['off', 'no', 'false', 'n'].includes(String(value)) ? false : null;
    case 'number': {
      if (typeof value === 'number') return Number.isFinite(value) ? value : null;
      if (typeof value !== 'string' || !/^-?(0x[0-9a-f]+|[0-9]+)$/i.test(value)) return null;
      const magnitude = Number(value.replace(/^-/, ''));
      if (!Number.isSafeInteger(magnitude)) return null;
      return value.startsWith('-') ? -magnitude : magnitude;
    }
    case 'size':
      if (typeof value === 'number') return Number.isSafeInteger(value) && value >= 0 ? value : null;
      return typeof value === 'string' ? parseSize(value, 1) : null;
    default:
      return typeof value === 'string' ? value : null;
  }
}

function refuse(message: string): VmmError {
  return new VmmError('bad-device', message);
}
