// Starts a guest of seven bytes with dist/ferry.cjs and writes the bytecode of all that ran to the file that is named. Run by bundle.mjs, in
// a process of its own. Where there is no /dev/kvm the start fails half-way, and the bytecode is of what ran until then.
// Spec: Multiboot 0.6.96, section 3.1; ELF gABI.
const { mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } = require('node:fs');
const { createRequire } = require('node:module');
const { tmpdir } = require('node:os');
const { dirname, join, resolve } = require('node:path');
const { Script } = require('node:vm');

const LOAD_AT = 0x100000;
const HEADER = 52 + 32;

/** A multiboot ELF32: mov $0, %al; out %al, $0xf4; hlt. */
function kernel() {
  const code = Buffer.from([0xb0, 0x00, 0xe6, 0xf4, 0xf4, 0xeb, 0xfd]);
  const multiboot = new Int32Array([0x1badb002, 0, -0x1badb002]);
  const file = Buffer.alloc(HEADER + 12 + code.length);
  file.set([0x7f, 0x45, 0x4c, 0x46, 1, 1, 1]);
  // e_type EXEC, e_machine 386, e_version; e_entry, e_phoff; e_ehsize, e_phentsize, e_phnum.
  file.writeUInt32LE(2 | (3 << 16), 16);
  file.writeUInt32LE(1, 20);
  file.writeUInt32LE(LOAD_AT + HEADER + 12, 24);
  file.writeUInt32LE(52, 28);
  for (const [at, value] of [
    [40, 52],
    [42, 32],
    [44, 1],
  ])
    file.writeUInt16LE(value, at);
  // PT_LOAD: offset, vaddr, paddr, filesz, memsz, flags, align.
  const load = [1, 0, LOAD_AT, LOAD_AT, file.length, file.length, 7, 4096];
  for (const [i, value] of load.entries()) file.writeUInt32LE(value, 52 + i * 4);
  file.set(new Uint8Array(multiboot.buffer), HEADER);
  file.set(code, HEADER + 12);
  return file;
}

const filename = resolve('dist/ferry.cjs');
const source = readFileSync(filename, 'latin1');
// The very text that bin/ferry compiles.
const wrapped = `(function (exports, require, module, __filename, __dirname, importFile) {${source}\n})`;
const script = new Script(wrapped, { filename });
const dir = mkdtempSync(join(tmpdir(), 'ferry-bytecode-'));
writeFileSync(join(dir, 'kernel'), kernel());

const outfile = resolve(process.argv[2]);
process.on('exit', () => {
  rmSync(dir, { recursive: true });
  writeFileSync(
    `${outfile}.${process.pid}`,
    Buffer.concat([Buffer.from(source.slice(-32)), script.createCachedData()]),
  );
  renameSync(`${outfile}.${process.pid}`, outfile);
  // How the guest ended is of no interest.
  process.exitCode = 0;
});
process.argv = [
  process.execPath,
  resolve('bin/ferry'),
  'run',
  '--kernel',
  join(dir, 'kernel'),
  '--memory',
  '16M',
  '--serial',
  'none',
];
script.runInThisContext()(exports, createRequire(filename), module, filename, dirname(filename), (url) => import(url));
