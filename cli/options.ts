// Options of the verbs as data: parsed by node's parseArgs, and the help text made from the same table. Called by every verb.
import { type ParseArgsConfig, parseArgs } from 'node:util';
import { VmmError } from '../native/errno.ts';

export interface OptionSpec {
  /** 'flag' takes no value; 'list' may be given several times. */
  readonly kind: 'flag' | 'value' | 'list';
  /** Shown in the help: PATH, SIZE, ... Empty for flags. */
  readonly value: string;
  readonly help: string;
  readonly short?: string;
}
export type OptionTable = Readonly<Record<string, OptionSpec>>;

export interface Parsed {
  readonly words: readonly string[];
  flag(name: string): boolean;
  value(name: string): string | null;
  list(name: string): readonly string[];
}

/** One verb of the command line. run() resolves with the exit code; throws VmmError for bad input. */
export interface Verb {
  readonly summary: string;
  help(): string;
  run(args: readonly string[]): Promise<number>;
}

/** Throws VmmError (exit code 2) naming the verb, what was found and where the help is. */
export function parseOptions(verb: string, table: OptionTable, args: readonly string[]): Parsed {
  const options: NonNullable<ParseArgsConfig['options']> = { help: { type: 'boolean', short: 'h' } };
  for (const [name, spec] of Object.entries(table)) {
    options[name] = {
      type: spec.kind === 'flag' ? 'boolean' : 'string',
      multiple: spec.kind === 'list',
      ...(spec.short === undefined ? {} : { short: spec.short }),
    };
  }
  try {
    const { values, positionals } = parseArgs({ args: [...args], options, allowPositionals: true, strict: true });
    return {
      words: positionals,
      flag: (name) => values[name] === true,
      value: (name) => (typeof values[name] === 'string' ? values[name] : null),
      list: (name) => (Array.isArray(values[name]) ? values[name].map(String) : []),
    };
  } catch (error) {
    // Node's words go on with advice in further sentences and lines.
    const found = (error as Error).message.split(/\.\s/)[0]?.replace(/\.$/, '') ?? 'bad options';
    throw new VmmError('usage', `ferry ${verb}: ${found}; see ferry ${verb} --help`);
  }
}

export function wantsHelp(args: readonly string[]): boolean {
  return args.includes('--help') || args.includes('-h');
}

/** The rows of a help text, aligned. */
export function optionHelp(table: OptionTable): string {
  const rows = Object.entries(table).map(([name, spec]) => {
    const short = spec.short === undefined ? '    ' : `-${spec.short}, `;
    const left = `  ${short}--${name}${spec.value === '' ? '' : ` ${spec.value}`}`;
    return { left, help: spec.help.split('\n') };
  });
  const width = Math.min(34, Math.max(...rows.map(({ left }) => left.length)) + 2);
  return rows
    .map(({ left, help }) => {
      const head =
        left.length < width ? left.padEnd(width) + (help[0] ?? '') : `${left}\n${' '.repeat(width)}${help[0] ?? ''}`;
      return [head, ...help.slice(1).map((line) => ' '.repeat(width) + line)].join('\n');
    })
    .join('\n');
}

/** A whole number of at least `min`, or VmmError. */
export function wholeNumber(verb: string, name: string, text: string | null, min: number): number | null {
  if (text === null) return null;
  const number = Number(text);
  if (!/^\d+$/.test(text) || !Number.isSafeInteger(number) || number < min) {
    throw new VmmError('usage', `ferry ${verb}: --${name} ${text}: a whole number of at least ${min} is wanted`);
  }
  return number;
}
