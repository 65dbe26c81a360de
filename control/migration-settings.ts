// Capabilities and parameters of migration as QMP shows and sets them; ranges and refusals in QEMU's words (qemu-compat.md D).
// Owned by VmSession; read when a migration starts, and while it runs (limits).
import type { MigrateOptions } from '../migration/api.ts';
import { QmpError } from './qmp-schema.ts';

/** What we offer. 'return-path' is always on: Ferry's hand-over needs it. */
const CAPABILITIES = ['events', 'return-path'] as const;
type Capability = (typeof CAPABILITIES)[number];

interface ParameterRange {
  readonly min: number;
  readonly max: number;
  readonly words: string;
}
const RANGES: Readonly<Record<string, ParameterRange>> = {
  'downtime-limit': {
    min: 0,
    max: 2_000_000,
    words: "Parameter 'downtime_limit' expects an integer in the range of 0 to (2000 * 1000) ms",
  },
  'max-bandwidth': {
    min: 0,
    max: Number.MAX_SAFE_INTEGER,
    words: "Parameter 'max_bandwidth' expects an integer in the range of 0 to 2^53 - 1 bytes/second",
  },
  'x-timeout': {
    min: 0,
    max: 86_400_000,
    words: "Parameter 'x_timeout' expects an integer in the range of 0 to 86400000 ms",
  },
};
const TEST_DROPS = ['deviceLog', 'kvmLastRound', 'deviceState'] as const;

export class MigrationSettings {
  readonly #enabled = new Set<Capability>(['return-path']);
  #downtimeLimitMs = 300;
  #maxBandwidth = 0;
  #timeoutMs = 0;
  #deviceLog = true;
  #testDrop: MigrateOptions['testDrop'] = null;

  capabilities(): object[] {
    return CAPABILITIES.map((capability) => ({ capability, state: this.#enabled.has(capability) }));
  }

  has(capability: Capability): boolean {
    return this.#enabled.has(capability);
  }

  setCapabilities(list: readonly unknown[]): void {
    const wanted = list.map((entry) => checkCapability(entry));
    for (const { capability, state } of wanted) {
      if (state) this.#enabled.add(capability);
      else if (capability !== 'return-path') this.#enabled.delete(capability);
    }
  }

  parameters(): object {
    return {
      'downtime-limit': this.#downtimeLimitMs,
      'max-bandwidth': this.#maxBandwidth,
      'x-timeout': this.#timeoutMs,
      'x-device-log': this.#deviceLog,
      ...(this.#testDrop === null ? {} : { 'x-test-drop': this.#testDrop }),
    };
  }

  setParameters(args: Readonly<Record<string, unknown>>): void {
    for (const [name, range] of Object.entries(RANGES)) {
      const value = args[name];
      if (typeof value === 'number' && (value < range.min || value > range.max))
        throw new QmpError('GenericError', range.words);
    }
    const drop = args['x-test-drop'];
    if (drop !== undefined && drop !== 'none' && !TEST_DROPS.some((known) => known === drop)) {
      throw new QmpError('GenericError', `Parameter 'x-test-drop' does not accept value '${String(drop)}'`);
    }
    this.#downtimeLimitMs = (args['downtime-limit'] as number | undefined) ?? this.#downtimeLimitMs;
    this.#maxBandwidth = (args['max-bandwidth'] as number | undefined) ?? this.#maxBandwidth;
    this.#timeoutMs = (args['x-timeout'] as number | undefined) ?? this.#timeoutMs;
    this.#deviceLog = (args['x-device-log'] as boolean | undefined) ?? this.#deviceLog;
    if (drop !== undefined) this.#testDrop = drop === 'none' ? null : (drop as MigrateOptions['testDrop']);
  }

  options(): MigrateOptions {
    return {
      downtimeLimitMs: this.#downtimeLimitMs,
      maxBandwidth: this.#maxBandwidth,
      timeoutMs: this.#timeoutMs === 0 ? null : this.#timeoutMs,
      deviceLog: this.#deviceLog,
      testDrop: this.#testDrop,
      peerIsQemu: false,
    };
  }
}

function checkCapability(entry: unknown): { capability: Capability; state: boolean } {
  const { capability, state } = (entry ?? {}) as { capability?: unknown; state?: unknown };
  const known = CAPABILITIES.find((name) => name === capability);
  if (known === undefined) {
    throw new QmpError('GenericError', `Parameter 'capability' does not accept value '${String(capability)}'`);
  }
  if (typeof state !== 'boolean')
    throw new QmpError('GenericError', "Invalid parameter type for 'state', expected: boolean");
  return { capability: known, state };
}
