// Which device types there are, by QEMU's names, and what -device help prints about them. Made by cli (and by tests), which adds the
// built-in types and those of --plugin files; vmm/config.ts judges -device against it. No global: a process may hold several.
import { existsSync } from 'node:fs';
import { pathToFileURL } from 'node:url';
import { StateError, VmmError } from '../native/errno.ts';
import type { DeviceType, PropertySpec } from './contract.ts';
import { importModule } from './import-module.ts';
import { createPciFunction } from './pci/simple-function.ts';

/** What a plug-in that exports a function gets. The same for everybody: nothing in here has state. */
export interface PluginApi {
  readonly createPciFunction: typeof createPciFunction;
  readonly VmmError: typeof VmmError;
  readonly StateError: typeof StateError;
}

export interface DeviceRegistry {
  get(name: string): DeviceType | null;
  /** Sorted. */
  names(): readonly string[];
  /** Throws VmmError when the name is taken or the type is not one. */
  register(type: DeviceType): void;
  /** `--plugin FILE`. Returns the type's name. Every failure is one VmmError that names the file. */
  loadPlugin(file: string): Promise<string>;
  /** `-device help`. */
  help(): string;
  /** `-device NAME,help`; null when there is no such type. */
  helpFor(name: string): string | null;
}

export function createRegistry(types: readonly DeviceType[]): DeviceRegistry {
  const registry = new Registry();
  for (const type of types) registry.register(type);
  return registry;
}

const KINDS: readonly PropertySpec['kind'][] = ['string', 'number', 'size', 'boolean'];
const NAME = /^[A-Za-z][A-Za-z0-9._-]*$/;
const PLUGIN_API: PluginApi = Object.freeze({ createPciFunction, VmmError, StateError });

class Registry implements DeviceRegistry {
  readonly #types = new Map<string, DeviceType>();

  get(name: string): DeviceType | null {
    return this.#types.get(name) ?? null;
  }

  names(): readonly string[] {
    return [...this.#types.keys()].sort();
  }

  register(type: DeviceType): void {
    const problem = typeProblem(type);
    if (problem !== null) throw new VmmError('device-type', `cannot register a device type: ${problem}`);
    if (this.#types.has(type.name)) {
      throw new VmmError(
        'device-type',
        `device type '${type.name}' is registered already; give the other one another name`,
      );
    }
    this.#types.set(type.name, type);
  }

  async loadPlugin(file: string): Promise<string> {
    const exported = await importDefault(file);
    const made =
      typeof exported === 'function' ? await callPlugin(file, exported as (api: PluginApi) => unknown) : exported;
    const problem = typeProblem(made);
    if (problem !== null) throw pluginError(file, `${problem}; see docs/plugins.md`);
    const type = made as DeviceType;
    if (this.#types.has(type.name))
      throw pluginError(file, `device type '${type.name}' is registered already; rename one`);
    this.#types.set(type.name, type);
    return type.name;
  }

  help(): string {
    const names = this.names();
    if (names.length === 0) return 'no device types\n';
    const width = Math.max(...names.map((name) => name.length));
    return names.map((name) => `${name.padEnd(width)}  ${this.get(name)!.help}\n`).join('');
  }

  helpFor(name: string): string | null {
    const type = this.get(name);
    if (type === null) return null;
    // `id` and `addr` are the machine's; every type has them.
    const rows: [string, string][] = [
      ['id=<string>', 'names the device; made from type and order when left out'],
      ['addr=<slot>', 'PCI slot, hexadecimal 1-1f; the next free one when left out'],
    ];
    for (const [property, spec] of Object.entries(type.properties)) {
      rows.push([`${property}=<${spec.kind}>`, spec.required ? `${spec.help} (required)` : spec.help]);
    }
    const width = Math.max(...rows.map(([left]) => left.length));
    return [`${name}: ${type.help}\n`, ...rows.map(([left, right]) => `  ${left.padEnd(width)}  ${right}\n`)].join('');
  }
}

/** What keeps a value from being a DeviceType, in one phrase; null when it is one. Plug-ins are plain JavaScript: all is judged. */
function typeProblem(value: unknown): string | null {
  if (typeof value !== 'object' || value === null)
    return 'not a device type (an object with name, help, properties, create)';
  const { name, help, properties, create } = value as Record<string, unknown>;
  if (typeof name !== 'string' || !NAME.test(name)) return 'its name must be letters, digits, dots and dashes';
  if (typeof help !== 'string' || help === '') return `type '${name}' has no help text`;
  if (typeof create !== 'function') return `type '${name}' has no create(host, id, properties)`;
  if (typeof properties !== 'object' || properties === null) return `type '${name}' has no properties record`;
  for (const [property, spec] of Object.entries(properties)) {
    const problem = propertyProblem(property, spec);
    if (problem !== null) return `type '${name}': ${problem}`;
  }
  return null;
}

function propertyProblem(property: string, spec: unknown): string | null {
  if (property === 'id' || property === 'addr') return `property '${property}' is the machine's own`;
  const { kind, required, help } = (spec ?? {}) as Record<string, unknown>;
  if (!KINDS.includes(kind as PropertySpec['kind'])) return `property '${property}' needs kind ${KINDS.join(', ')}`;
  if (typeof required !== 'boolean' || typeof help !== 'string')
    return `property '${property}' needs required and help`;
  return null;
}

async function importDefault(file: string): Promise<unknown> {
  if (!existsSync(file)) throw pluginError(file, 'there is no such file');
  let module: Record<string, unknown>;
  try {
    module = await importModule(pathToFileURL(file).href);
  } catch (error) {
    throw pluginError(file, oneLine(error), error);
  }
  const { default: exported } = module;
  // TypeScript and esbuild compile `export default` to CommonJS as exports.default.
  const inner = (exported as { default?: unknown } | null | undefined)?.default;
  const found = inner ?? exported;
  if (found === undefined)
    throw pluginError(file, 'it has no default export; export a device type, or a function that makes one');
  return found;
}

async function callPlugin(file: string, make: (api: PluginApi) => unknown): Promise<unknown> {
  try {
    return await make(PLUGIN_API);
  } catch (error) {
    throw pluginError(file, oneLine(error), error);
  }
}

function pluginError(file: string, what: string, cause?: unknown): VmmError {
  return new VmmError('plugin', `cannot load plug-in ${file}: ${what}`, cause === undefined ? {} : { cause });
}

function oneLine(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error);
  return text.split('\n', 1)[0]!;
}
