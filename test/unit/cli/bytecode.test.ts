// Rules of bin/ferry: the bytecode beside the bundle is used only with the very build that it was made from, and nothing but time is lost
// when it is missing, damaged or another's. (V8 itself compares only the length of the source.)
import { execFileSync } from 'node:child_process';
import { copyFileSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Script } from 'node:vm';
import { afterAll, describe, expect, it } from 'vitest';

const dir = mkdtempSync(join(tmpdir(), 'ferry-bytecode-'));
afterAll(() => rmSync(dir, { recursive: true }));
mkdirSync(join(dir, 'bin'));
mkdirSync(join(dir, 'dist'));
copyFileSync('bin/ferry', join(dir, 'bin/ferry'));

const bundle = (word: string, id: string) => `process.stdout.write((() => "${word}")());//# build=${id.repeat(32)}`;
const bytecodeOf = (source: string): Buffer => {
  const wrapped = `(function (exports, require, module, __filename, __dirname, importFile) {${source}\n})`;
  const script = new Script(wrapped, { filename: join(dir, 'dist/ferry.cjs') });
  return Buffer.concat([Buffer.from(source.slice(-32)), script.createCachedData()]);
};
function run(source: string, bytecode: Buffer | null): string {
  writeFileSync(join(dir, 'dist/ferry.cjs'), source);
  rmSync(join(dir, 'dist/ferry.bytecode'), { force: true });
  if (bytecode !== null) writeFileSync(join(dir, 'dist/ferry.bytecode'), bytecode);
  return execFileSync(process.execPath, [join(dir, 'bin/ferry')], { encoding: 'utf8' });
}

describe('bin/ferry', () => {
  const one = bundle('one', 'a');
  it('runs with its own bytecode, and without any', () => {
    expect(run(one, bytecodeOf(one))).toBe('one');
    expect(run(one, null)).toBe('one');
  });
  it('runs what the bundle says when the bytecode is that of another build of the same length', () => {
    expect(run(bundle('two', 'b'), bytecodeOf(one))).toBe('two');
    // The danger is real: under its own name that bytecode would be taken.
    const disguised = Buffer.concat([Buffer.from('b'.repeat(32)), bytecodeOf(one).subarray(32)]);
    expect(run(bundle('two', 'b'), disguised)).toBe('one');
  });
  it('lets code that runs from bytecode import a module', () => {
    const source = `importFile("node:os").then(({ EOL }) => process.stdout.write(typeof EOL))//# build=${'c'.repeat(32)}`;
    expect(run(source, bytecodeOf(source))).toBe('string');
  });
  it('compiles the bundle when the bytecode is damaged', () => {
    expect(run(one, Buffer.from(`${'a'.repeat(32)}garbage`))).toBe('one');
    expect(run(one, bytecodeOf(one).subarray(0, 90))).toBe('one');
  });
});
