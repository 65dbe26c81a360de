// What a QMP command takes and how a bad call is answered, in QEMU's own words (shared facts: qemu-compat.md D). Commands are one typed table,
// built from commands/*.ts. Called by qmp-session.ts.
import type { VmSession } from './vm-session.ts';

export type QmpErrorClass = 'GenericError' | 'CommandNotFound' | 'DeviceNotActive' | 'DeviceNotFound';

export class QmpError extends Error {
  override readonly name = 'QmpError';
  readonly errorClass: QmpErrorClass;
  constructor(errorClass: QmpErrorClass, description: string) {
    super(description);
    this.errorClass = errorClass;
  }
}

export type ArgumentKind = 'string' | 'int' | 'size' | 'bool' | 'object' | 'array';
export interface ArgumentSpec {
  readonly kind: ArgumentKind;
  readonly optional: boolean;
}
export type Arguments = Readonly<Record<string, unknown>>;

export interface QmpCommand {
  readonly arguments: Readonly<Record<string, ArgumentSpec>>;
  run(session: VmSession, args: Arguments): unknown;
}
export type QmpCommands = Readonly<Record<string, QmpCommand>>;

const KINDS: Readonly<Record<ArgumentKind, { words: string; is(value: unknown): boolean }>> = {
  string: { words: 'string', is: (value) => typeof value === 'string' },
  int: { words: 'integer', is: (value) => Number.isInteger(value) },
  size: { words: 'uint64', is: (value) => Number.isInteger(value) && (value as number) >= 0 },
  bool: { words: 'boolean', is: (value) => typeof value === 'boolean' },
  object: { words: 'object', is: (value) => typeof value === 'object' && value !== null && !Array.isArray(value) },
  array: { words: 'array', is: (value) => Array.isArray(value) },
};

/** Throws QmpError; `prefix` names the parent in messages about members of a member. */
export function checkArguments(specs: Readonly<Record<string, ArgumentSpec>>, args: Arguments): void {
  for (const [name, spec] of Object.entries(specs)) {
    const value = args[name];
    if (value === undefined) {
      if (!spec.optional) throw new QmpError('GenericError', `Parameter '${name}' is missing`);
    } else if (!KINDS[spec.kind].is(value)) {
      throw new QmpError('GenericError', `Invalid parameter type for '${name}', expected: ${KINDS[spec.kind].words}`);
    }
  }
  for (const name of Object.keys(args)) {
    if (!Object.hasOwn(specs, name)) throw new QmpError('GenericError', `Parameter '${name}' is unexpected`);
  }
}

export const required = (kind: ArgumentKind): ArgumentSpec => ({ kind, optional: false });
export const optional = (kind: ArgumentKind): ArgumentSpec => ({ kind, optional: true });
