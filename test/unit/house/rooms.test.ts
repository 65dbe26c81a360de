// Rule: imports go one way through the rooms (docs/architecture.md); lab stands apart; each room may only see those to its right.
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import { describe, expect, it } from 'vitest';

const ROOT = resolve(import.meta.dirname, '../../..');
const ORDER = ['cli', 'control', 'migration', 'vmm', 'devices', 'native'];
const BESIDE = ['lab', 'images', 'bench'];
const IMPORT = /(?:\bfrom\s+|\bimport\s*\(\s*|\bimport\s+)['"](\.{1,2}\/[^'"]+)['"]/g;

function sources(dir: string): string[] {
  if (!existsSync(dir)) return [];
  return readdirSync(dir).flatMap((name) => {
    const path = join(dir, name);
    if (name === 'node_modules') return [];
    return statSync(path).isDirectory() ? sources(path) : path.endsWith('.ts') ? [path] : [];
  });
}

interface Arrow {
  readonly from: string;
  readonly to: string;
  readonly file: string;
  readonly target: string;
}

function arrows(): Arrow[] {
  return [...ORDER, ...BESIDE].flatMap((room) =>
    sources(join(ROOT, room)).flatMap((file) =>
      [...readFileSync(file, 'utf8').matchAll(IMPORT)].map((match) => {
        const target = relative(ROOT, resolve(dirname(file), match[1] ?? ''));
        return { from: room, to: target.split('/')[0] ?? '', file: relative(ROOT, file), target };
      }),
    ),
  );
}

/** null when the arrow is allowed, else the sentence that says why not. */
function forbidden({ from, to, file, target }: Arrow): string | null {
  if (from === to) return null;
  if (from === 'lab') return target === 'native/errno.ts' || to === 'images' ? null : `${file} imports ${target}`;
  if (from === 'images') return to === 'lab' || target === 'native/errno.ts' ? null : `${file} imports ${target}`;
  if (from === 'bench') return null;
  if (to === 'lab') return file === 'cli/lab.ts' || file.startsWith('cli/demo') ? null : `${file} imports ${target}`;
  if (to === 'images') return file === 'cli/lab.ts' || file.startsWith('cli/demo') ? null : `${file} imports ${target}`;
  const left = ORDER.indexOf(from);
  const right = ORDER.indexOf(to);
  if (right === -1) return `${file} imports ${target}, which is in no room`;
  return right > left ? null : `${file} (${from}) imports ${target} (${to}), to the left`;
}

describe('rooms', () => {
  it('imports only go right', () => {
    expect(arrows().map(forbidden).filter(Boolean)).toEqual([]);
  });

  it('the rule itself sees an arrow to the left, to lab and out of lab', () => {
    const arrow = (file: string, target: string): Arrow => ({
      from: file.split('/')[0] ?? '',
      to: target.split('/')[0] ?? '',
      file,
      target,
    });
    expect(forbidden(arrow('devices/platform/serial.ts', 'vmm/bus.ts'))).toContain('to the left');
    expect(forbidden(arrow('cli/run.ts', 'lab/host.ts'))).not.toBeNull();
    expect(forbidden(arrow('lab/host.ts', 'native/addon.ts'))).not.toBeNull();
    expect(forbidden(arrow('cli/lab.ts', 'lab/host.ts'))).toBeNull();
  });
});

describe('files', () => {
  it('stay small: at most 450 lines of TypeScript or C++', () => {
    const all = [...ORDER, ...BESIDE].flatMap((room) => sources(join(ROOT, room)));
    const long = all
      .filter((file) => !file.includes('/native/abi/'))
      .map((file) => ({ file: relative(ROOT, file), lines: readFileSync(file, 'utf8').split('\n').length }))
      .filter(({ lines }) => lines > 450);
    expect(long).toEqual([]);
  });

  it('import a module of a user by devices/import-module.ts alone: the bundle has no import() of its own', () => {
    const imports = (file: string) =>
      readFileSync(file, 'utf8')
        .split('\n')
        .some((line) => !/^\s*(\/\/|\/?\*)/.test(line) && /\bimport\s*\((?!\s*['"])/.test(line));
    const found = ORDER.flatMap((room) => sources(join(ROOT, room))).filter(imports);
    expect(found.map((file) => relative(ROOT, file))).toEqual(['devices/import-module.ts']);
  });
});
