// Makes native/abi/vfio-legacy.ts: layouts and numbers of the migration interfaces that no installed header has (any more): the device
// state regions of February 2019, the migration region of July 2019 (v7) and the one of Linux 5.8-5.17 (v1).
// Use: node scripts/gen-abi-legacy.mjs            The fields are listed here; gcc says where they lie.
// A's outer struct is packed and the structs inside are not: each of those keeps the padding after its `action`.
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';

const ROOT = resolve(import.meta.dirname, '..');
const TYPES = { u32: 'unsigned int', u64: 'unsigned long long' };

const DATA = [
  ['u32', 'device_state'],
  ['u32', 'reserved'],
  ['u64', 'pending_bytes'],
  ['u64', 'data_offset'],
  ['u64', 'data_size'],
];

/** A field is [type, name], or [fields, name] for a struct written in place. */
const STRUCTS = [
  {
    name: 'vfio_device_state_ctl',
    packed: true,
    fields: [
      ['u32', 'version'],
      ['u32', 'device_state'],
      ['u32', 'caps'],
      [
        [
          ['u32', 'action'],
          ['u64', 'size'],
        ],
        'device_config',
      ],
      [
        [
          ['u32', 'action'],
          ['u64', 'size'],
          ['u64', 'pos'],
        ],
        'device_memory',
      ],
      [
        [
          ['u64', 'start_addr'],
          ['u64', 'page_nr'],
        ],
        'system_memory',
      ],
    ],
  },
  {
    name: 'vfio_device_migration_info_v7',
    packed: true,
    fields: [...DATA, ['u64', 'start_pfn'], ['u64', 'page_size'], ['u64', 'total_pfns'], ['u64', 'copied_pfns']],
  },
  { name: 'vfio_device_migration_info_v1', packed: false, fields: DATA },
];

const CONSTANTS = {
  // Device state regions.
  VFIO_REGION_TYPE_DEVICE_STATE: '1 << 1',
  VFIO_REGION_SUBTYPE_DEVICE_STATE_CTL: '1',
  VFIO_REGION_SUBTYPE_DEVICE_STATE_DATA_CONFIG: '2',
  VFIO_REGION_SUBTYPE_DEVICE_STATE_DATA_MEMORY: '3',
  VFIO_REGION_SUBTYPE_DEVICE_STATE_DATA_DIRTYBITMAP: '4',
  VFIO_DEVICE_STATE_INTERFACE_VERSION: '1',
  VFIO_DEVICE_DATA_CAP_DEVICE_MEMORY: '1',
  VFIO_DEVICE_DATA_CAP_SYSTEM_MEMORY: '2',
  // Their text calls these VFIO_DEVICE_STATE_RUNNING and so on, as linux/vfio.h calls others today.
  VFIO_DEVICE_STATE_CTL_RUNNING: '0',
  VFIO_DEVICE_STATE_CTL_STOP: '1',
  VFIO_DEVICE_STATE_CTL_LOGGING: '2',
  VFIO_DEVICE_DATA_ACTION_GET_BUFFER: '1',
  VFIO_DEVICE_DATA_ACTION_SET_BUFFER: '2',
  // Migration region. v7 took a type that is CCW's; its review asked for another one.
  VFIO_REGION_TYPE_MIGRATION_V7: '2',
  VFIO_REGION_TYPE_MIGRATION_V1: '3',
  VFIO_REGION_SUBTYPE_MIGRATION: '1',
  VFIO_DEVICE_DIRTY_PFNS_NONE: '0',
  VFIO_DEVICE_DIRTY_PFNS_ALL: '~0ULL',
};

const declare = (fields) =>
  fields
    .map(([type, name]) =>
      typeof type === 'string' ? `${TYPES[type]} ${name};` : `struct { ${declare(type)} } ${name};`,
    )
    .join(' ');

function pathsOf(fields, before = []) {
  return fields.flatMap(([type, name]) => {
    const path = [...before, name];
    return typeof type === 'string' ? [path] : [path, ...pathsOf(type, path)];
  });
}

/** key -> number, as a compiled program says. */
function evaluate(work) {
  const structs = STRUCTS.map(
    ({ name, packed, fields }) => `struct ${name} { ${declare(fields)} }${packed ? ' __attribute__((packed))' : ''};`,
  );
  const print = (key, expression) => `printf("%s %llu\\n", "${key}", (unsigned long long)(${expression}));`;
  const lines = Object.entries(CONSTANTS).map(([name, expression]) => print(name, expression));
  for (const { name, fields } of STRUCTS) {
    lines.push(print(`${name}:`, `sizeof(struct ${name})`));
    for (const path of pathsOf(fields))
      lines.push(print(`${name}:${path.join('.')}`, `offsetof(struct ${name}, ${path.join('.')})`));
  }
  const head = ['#include <stddef.h>', '#include <stdio.h>'];
  writeFileSync(join(work, 'abi.c'), [...head, ...structs, 'int main(void) {', ...lines, '}', ''].join('\n'));
  execFileSync('gcc', [join(work, 'abi.c'), '-o', join(work, 'abi')]);
  const text = execFileSync(join(work, 'abi'), { encoding: 'utf8' });
  return new Map(
    text
      .trim()
      .split('\n')
      .map((line) => [line.split(' ')[0], BigInt(line.split(' ')[1])]),
  );
}

/** As scripts/gen-abi.mjs: a field called size is `size_at`, and a struct written in place is an object with `at`. */
function layout({ name, fields }, values) {
  const made = { size: Number(values.get(`${name}:`)) };
  for (const path of pathsOf(fields)) {
    let into = made;
    for (const part of path.slice(0, -1)) {
      if (typeof into[part] === 'number') into[part] = { at: into[part] };
      into = into[part];
    }
    const own = path.at(-1);
    into[own === 'size' ? 'size_at' : own] = Number(values.get(`${name}:${path.join('.')}`));
  }
  return made;
}

const number = (value) => (value < 10n ? `${value}` : `0x${value.toString(16)}`) + (value > 2n ** 53n ? 'n' : '');
const object = (fields) =>
  `{ ${Object.entries(fields)
    .map(([key, value]) => `${key}: ${typeof value === 'number' ? value : object(value)}`)
    .join(', ')} }`;

const work = mkdtempSync(join(tmpdir(), 'gen-abi-legacy-'));
try {
  const values = evaluate(work);
  const text = [
    '// Made by scripts/gen-abi-legacy.mjs out of the texts of the older VFIO migration interfaces: do not edit.',
    "// A struct is its size and its fields' offsets. A field called size is `size_at`; one that is itself a struct written in place is an",
    '// object whose `at` is where it starts; offsets are from the start of the outermost struct. Used with DataView.',
    ...Object.keys(CONSTANTS).map((name) => `export const ${name} = ${number(values.get(name))};`),
    ...STRUCTS.map((struct) => `export const ${struct.name} = ${object(layout(struct, values))} as const;`),
    '',
  ].join('\n');
  writeFileSync(join(ROOT, 'native/abi/vfio-legacy.ts'), text);
} finally {
  rmSync(work, { recursive: true, force: true });
}
