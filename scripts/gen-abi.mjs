// Writes native/abi/*.ts: the kernel's request numbers, constants, struct sizes and field offsets, as a compiler sees them.
// Usage: node scripts/gen-abi.mjs                 from the newest 6.12 headers that Debian gives (apt-get download into .cache/)
//        node scripts/gen-abi.mjs --headers DIR   from DIR/include/uapi and DIR/arch/x86/include/uapi
//        node scripts/gen-abi.mjs --json          prints what the installed linux-libc-dev says; test/unit/native/abi.test.ts compares
// How: the preprocessor lists macros, enumerators and structs of a header; a C program made of them prints values and offsets; entries
// that do not compile (header guards, macros with arguments missing) are dropped and it is compiled again. Nothing is listed by hand.
import { execFileSync, spawnSync } from 'node:child_process';
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join, resolve } from 'node:path';

const ROOT = resolve(import.meta.dirname, '..');
const META_PACKAGE = 'linux-headers-6.12-amd64';

/** What goes into each file: headers, and which names of theirs are wanted. */
const ABIS = [
  {
    name: 'kvm',
    headers: ['linux/kvm.h'],
    from: /(^|\/)(linux|asm)\/kvm(_para)?\.h$/,
    wanted: /^(KVM|__KVM|kvm)_/,
    unwanted:
      /PPC|S390|s390|_ARM|MIPS|RISCV|LOONGARCH|XEN|xen|TDX|tdx|SEV|sev_|SNP|HYPERV|hyperv|_TRC_|SPAPR|BOOKE|_HV_|VGIC|_NESTED|_VMX_|_SVM_|vmx_nested|svm_nested|enc_region|tlbflush/,
  },
  {
    name: 'vfio',
    headers: ['linux/vfio.h'],
    from: /linux\/vfio\.h$/,
    wanted: /^(VFIO|vfio)_/,
    unwanted: /SPAPR|spapr|EEH|eeh|_CCW|_ccw|_AP_|NVLINK|nvlink/,
  },
  {
    name: 'iommufd',
    headers: ['linux/iommufd.h'],
    from: /linux\/iommufd\.h$/,
    wanted: /^(IOMMU|iommu)/,
    unwanted: /ARM|arm_smmu|SELFTEST/,
  },
  {
    name: 'pci',
    headers: ['linux/pci_regs.h'],
    from: /linux\/pci_regs\.h$/,
    wanted:
      /^PCI_(CFG|STD|VENDOR|DEVICE_ID|COMMAND|STATUS|CLASS|REVISION|CACHE|LATENCY|HEADER|BIST|BASE|CARDBUS|SUBSYSTEM|ROM|CAPABILITY|INTERRUPT|MIN|MAX|CAP_|PM_|MSI|AF_|EXP_(FLAGS|TYPE|DEVCAP|DEVCTL|DEVSTA|LNK)|EXT_CAP|SRIOV|ATS_|PASID|PRI_|VNDR)/,
    unwanted: /_HDR_TYPE_SENTINEL/,
  },
];

/** Debian's newest 6.12 uAPI headers, by way of the metapackage. */
function debianHeaders() {
  const cache = join(ROOT, '.cache', 'headers');
  mkdirSync(cache, { recursive: true });
  const depends = (name) =>
    execFileSync('apt-cache', ['depends', name], { encoding: 'utf8' }).matchAll(/Depends: (\S+)/g);
  const versioned = [...depends(META_PACKAGE)]
    .map((found) => found[1])
    .find((name) => name.startsWith('linux-headers-6.12'));
  const common = [...depends(versioned)].map((found) => found[1]).find((name) => name.endsWith('-common'));
  const tree = join(cache, 'usr/src', common);
  if (!existsSync(tree)) {
    execFileSync('apt-get', ['download', common], { cwd: cache, stdio: 'ignore' });
    const deb = readdirSync(cache).find((file) => file.startsWith(`${common}_`));
    execFileSync('dpkg', ['-x', join(cache, deb), cache]);
  }
  return tree;
}

/** Compiler flags that put the headers of `tree` that we read before the installed ones; none for the installed ones. */
function includeFlags(tree, work) {
  if (tree === null) return [];
  const common = ['kvm.h', 'kvm_para.h', 'vfio.h', 'iommufd.h', 'pci_regs.h', 'bits.h', 'const.h'].map((file) => [
    'include/uapi/linux',
    'linux',
    file,
  ]);
  const x86 = ['kvm.h', 'kvm_para.h'].map((file) => ['arch/x86/include/uapi/asm', 'asm', file]);
  for (const [from, to, file] of [...common, ...x86]) {
    mkdirSync(join(work, to), { recursive: true });
    copyFileSync(join(tree, from, file), join(work, to, file));
  }
  writeFileSync(join(work, 'linux/compiler.h'), ''); // `make headers_install` would strip it
  return ['-D__user=', '-I', work];
}

/** The preprocessed text and the macro names of the files that match `from`. */
function preprocess(abi, flags) {
  const source = abi.headers.map((header) => `#include <${header}>\n`).join('');
  const text = execFileSync('gcc', ['-E', '-dD', ...flags, '-xc', '-'], {
    input: source,
    encoding: 'utf8',
    maxBuffer: 2 ** 26,
  });
  const macros = [];
  const code = [];
  let inside = false;
  for (const line of text.split('\n')) {
    const marker = /^# \d+ "([^"]*)"/.exec(line);
    if (marker) {
      inside = abi.from.test(marker[1]);
    } else if (inside) {
      const macro = /^#define (\w+) (.+)$/.exec(line);
      if (macro && !macro[2].includes('"')) macros.push(macro[1]);
      if (!line.startsWith('#')) code.push(line);
    }
  }
  return { macros, code: code.join('\n').replace(/__attribute__\s*\(\((?:[^()]|\([^()]*\))*\)\)/g, ' ') };
}

/** Members of a struct body that starts at tokens[at] (after its brace): [path, ...] relative to the struct, and where it ends. */
function parseBody(tokens, at) {
  const paths = [];
  while (tokens[at] !== '}') {
    const start = at;
    const nested =
      (tokens[at] === 'struct' || tokens[at] === 'union') && (tokens[at + 1] === '{' || tokens[at + 2] === '{');
    let inner = null;
    if (nested) {
      const body = parseBody(tokens, at + (tokens[at + 1] === '{' ? 2 : 3));
      inner = body.paths;
      at = body.end;
    }
    const declared = [];
    let last = null;
    for (; tokens[at] !== ';'; at++) {
      if (tokens[at] === '[') while (tokens[at] !== ']') at++;
      else if (tokens[at] === ':') last = null;
      else if (tokens[at] === ',') declared.push(last);
      else if (/^[A-Za-z_]\w*$/.test(tokens[at]) && (nested || at > start)) last = tokens[at];
    }
    declared.push(last);
    at++;
    for (const name of declared.filter((name) => name !== null)) {
      paths.push([name]);
      if (inner) paths.push(...inner.map((path) => [name, ...path]));
    }
    if (inner && declared[0] === null) paths.push(...inner);
  }
  return { paths, end: at + 1 };
}

function parseTypes(code) {
  const tokens = code.match(/[A-Za-z_]\w*|\d\w*|[{}[\]();:,*=<>+|~-]/g) ?? [];
  const structs = [];
  const enumerators = [];
  for (let at = 0; at < tokens.length; at++) {
    if (tokens[at] === 'struct' && tokens[at + 2] === '{') {
      const name = tokens[at + 1];
      const body = parseBody(tokens, at + 3);
      structs.push({ name, paths: body.paths });
      at = body.end - 1;
    } else if (tokens[at] === 'enum' && (tokens[at + 1] === '{' || tokens[at + 2] === '{')) {
      at += tokens[at + 1] === '{' ? 2 : 3;
      for (let fresh = true; tokens[at] !== '}'; at++) {
        if (fresh) enumerators.push(tokens[at]);
        fresh = tokens[at] === ',';
      }
    }
  }
  return { structs, enumerators };
}

/** Compiles and runs a program that prints one line an entry; drops the entries whose line does not compile. */
function evaluate(abi, entries, flags, work) {
  const source = join(work, 'abi.c');
  const program = join(work, 'abi');
  let left = entries;
  for (let attempt = 0; attempt < 8; attempt++) {
    const head = [...abi.headers.map((header) => `#include <${header}>`), '#include <stddef.h>', '#include <stdio.h>'];
    // A function each: gcc reports an undeclared name once a function.
    const lines = left.map(
      (entry, index) =>
        `static unsigned long long v${index}(void) { return (unsigned long long)(${entry.expression}); }`,
    );
    const prints = left.map((entry, index) => `printf("%s %llu\\n", "${entry.key}", v${index}());`);
    writeFileSync(source, [...head, ...lines, 'int main(void) {', ...prints, '}', ''].join('\n'));
    const run = spawnSync(
      'gcc',
      ['-w', '-fmax-errors=0', '-ftrack-macro-expansion=0', ...flags, source, '-o', program],
      {
        encoding: 'utf8',
      },
    );
    if (run.status === 0) {
      const text = execFileSync(program, { encoding: 'utf8', maxBuffer: 2 ** 26 });
      return new Map(
        text
          .trim()
          .split('\n')
          .map((line) => [line.split(' ')[0], BigInt(line.split(' ')[1])]),
      );
    }
    const bad = new Set(
      [...run.stderr.matchAll(/abi\.c:(\d+):\d+: error/g)].map((found) => Number(found[1]) - head.length - 1),
    );
    left = left.filter((_, index) => !bad.has(index));
  }
  throw new Error(`gen-abi: ${abi.name}: the program does not compile`);
}

/** { constants: name -> bigint, structs: name -> nested offsets with `size` } of one ABI. */
function extract(abi, flags, work) {
  const take = (name) => abi.wanted.test(name) && !abi.unwanted.test(name);
  const { macros, code } = preprocess(abi, flags);
  const { structs, enumerators } = parseTypes(code);
  const names = [...new Set([...macros, ...enumerators])].filter(take);
  const wantedStructs = structs.filter((struct) => take(struct.name));
  const entries = names.map((name) => ({ key: name, expression: name }));
  for (const { name, paths } of wantedStructs) {
    entries.push({ key: `${name}:`, expression: `sizeof(struct ${name})` });
    for (const path of paths)
      entries.push({ key: `${name}:${path.join('.')}`, expression: `offsetof(struct ${name}, ${path.join('.')})` });
  }
  const values = evaluate(abi, entries, flags, work);
  const result = { constants: {}, structs: {} };
  for (const name of names) if (values.has(name)) result.constants[name] = values.get(name);
  for (const { name, paths } of wantedStructs) {
    if (values.has(`${name}:`)) result.structs[name] = layout(name, paths, values);
  }
  return result;
}

/** A field with fields of its own is an object with `at`, its start; a field called size is `size_at`, for `size` is the struct's own. */
function layout(name, paths, values) {
  const fields = { size: Number(values.get(`${name}:`)) };
  for (const path of paths) {
    const value = values.get(`${name}:${path.join('.')}`);
    if (value === undefined) continue;
    let into = fields;
    for (const part of path.slice(0, -1)) {
      if (typeof into[part] === 'number') into[part] = { at: into[part] };
      into = into[part];
    }
    const own = path.at(-1);
    into[own === 'size' ? 'size_at' : own] = Number(value);
  }
  return fields;
}

function print(abi, tree, found) {
  const number = (value) => (value < 10n ? `${value}` : `0x${value.toString(16)}`) + (value > 2n ** 53n ? 'n' : '');
  const object = (fields) =>
    `{ ${Object.entries(fields)
      .map(([key, value]) => `${key}: ${typeof value === 'number' ? value : object(value)}`)
      .join(', ')} }`;
  return [
    `// Made by scripts/gen-abi.mjs out of ${abi.headers.join(', ')} of ${basename(tree)}: do not edit.`,
    "// A struct is its size and its fields' offsets. A field called size is `size_at`; one that is itself a struct or union written in",
    '// place is an object whose `at` is where it starts (the members of an unnamed one are listed directly). Used with DataView.',
    ...Object.entries(found.constants).map(([name, value]) => `export const ${name} = ${number(value)};`),
    ...Object.entries(found.structs).map(([name, fields]) => `export const ${name} = ${object(fields)} as const;`),
    '',
  ].join('\n');
}

const work = mkdtempSync(join(tmpdir(), 'gen-abi-'));
try {
  const json = process.argv.includes('--json');
  const given = process.argv.indexOf('--headers');
  const tree = json ? null : given > 0 ? resolve(process.argv[given + 1]) : debianHeaders();
  const flags = includeFlags(tree, work);
  const all = {};
  for (const abi of ABIS) {
    const present =
      spawnSync('gcc', ['-E', ...flags, '-xc', '-'], { input: `#include <${abi.headers[0]}>\n` }).status === 0;
    if (!present && json) continue; // iommufd.h came after 6.1
    const found = extract(abi, flags, work);
    if (json) all[abi.name] = found;
    else writeFileSync(join(ROOT, 'native/abi', `${abi.name}.ts`), print(abi, tree, found));
  }
  if (json)
    process.stdout.write(JSON.stringify(all, (_, value) => (typeof value === 'bigint' ? value.toString() : value)));
} finally {
  rmSync(work, { recursive: true, force: true });
}
