// native/abi/vfio-legacy.ts against a C compiler and structs written down here a second time from the texts: every field's offset and
// every struct's size. The numbers of the regions are asserted as the texts have them.
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import * as vfio from '../../../native/abi/vfio.ts';
import * as legacy from '../../../native/abi/vfio-legacy.ts';

const C = `
#include <linux/types.h>
#include <stddef.h>
#include <stdio.h>
struct vfio_device_state_ctl {
  __u32 version;
  __u32 device_state;
  __u32 caps;
  struct { __u32 action; __u64 size; } device_config;
  struct { __u32 action; __u64 size; __u64 pos; } device_memory;
  struct { __u64 start_addr; __u64 page_nr; } system_memory;
} __attribute__((packed));
struct vfio_device_migration_info_v7 {
  __u32 device_state;
  __u32 reserved;
  __u64 pending_bytes;
  __u64 data_offset;
  __u64 data_size;
  __u64 start_pfn;
  __u64 page_size;
  __u64 total_pfns;
  __u64 copied_pfns;
} __attribute__((packed));
struct vfio_device_migration_info_v1 {
  __u32 device_state;
  __u32 reserved;
  __u64 pending_bytes;
  __u64 data_offset;
  __u64 data_size;
};
`;

type Fields = { readonly [field: string]: number | Fields };

/** [what C says of it, what we say], for each field. `at` and `size` are of the struct itself. */
function claims(struct: string, fields: Fields, path: readonly string[] = []): [string, number][] {
  return Object.entries(fields).flatMap(([name, value]): [string, number][] => {
    if (typeof value !== 'number') return claims(struct, value, [...path, name]);
    if (name === 'size') return [[`sizeof(struct ${struct})`, value]];
    const field = name === 'at' ? path : [...path, name === 'size_at' ? 'size' : name];
    return [[`offsetof(struct ${struct}, ${field.join('.')})`, value]];
  });
}

function compiled(expressions: readonly string[]): number[] {
  const dir = mkdtempSync(join(tmpdir(), 'ferry-abi-'));
  try {
    const prints = expressions.map((expression) => `printf("%zu\\n", ${expression});`);
    writeFileSync(join(dir, 'a.c'), `${C}int main(void) {\n${prints.join('\n')}\n}\n`);
    execFileSync('gcc', ['-Wall', '-Werror', join(dir, 'a.c'), '-o', join(dir, 'a')]);
    return execFileSync(join(dir, 'a'), { encoding: 'utf8' })
      .trim()
      .split('\n')
      .map((line) => Number(line));
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}

describe('abi/vfio-legacy', () => {
  it.each([
    ['vfio_device_state_ctl', legacy.vfio_device_state_ctl as Fields, 14],
    ['vfio_device_migration_info_v7', legacy.vfio_device_migration_info_v7 as Fields, 10],
    ['vfio_device_migration_info_v1', legacy.vfio_device_migration_info_v1 as Fields, 6],
  ])('%s lies as the compiler lays it out', (struct, fields, count) => {
    const made = claims(struct, fields);
    expect(made).toHaveLength(count);
    expect(made.map(([, value]) => value)).toEqual(compiled(made.map(([expression]) => expression)));
  });

  it('has the padding after each action, and the odd places that follow from it', () => {
    const { device_config, device_memory, system_memory, size } = legacy.vfio_device_state_ctl;
    expect(size).toBe(68);
    expect([device_config.action, device_config.size_at]).toEqual([12, 20]);
    expect([device_memory.action, device_memory.size_at, device_memory.pos]).toEqual([28, 36, 44]);
    expect([system_memory.start_addr, system_memory.page_nr]).toEqual([52, 60]);
  });

  it('v1 is what the kernel kept under deprecated names, and v7 begins with it', () => {
    const { size: _, ...v1 } = legacy.vfio_device_migration_info_v1;
    expect(legacy.vfio_device_migration_info_v1).toEqual(vfio.vfio_device_migration_info);
    expect(legacy.vfio_device_migration_info_v7).toMatchObject(v1);
    expect(legacy.VFIO_REGION_TYPE_MIGRATION_V1).toBe(vfio.VFIO_REGION_TYPE_MIGRATION_DEPRECATED);
    expect(legacy.VFIO_REGION_SUBTYPE_MIGRATION).toBe(vfio.VFIO_REGION_SUBTYPE_MIGRATION_DEPRECATED);
  });

  it('has the numbers of the texts', () => {
    expect(legacy).toMatchObject({
      VFIO_REGION_TYPE_DEVICE_STATE: 2,
      VFIO_REGION_TYPE_MIGRATION_V7: 2,
      VFIO_DEVICE_STATE_CTL_RUNNING: 0,
      VFIO_DEVICE_STATE_CTL_STOP: 1,
      VFIO_DEVICE_STATE_CTL_LOGGING: 2,
      VFIO_DEVICE_DATA_ACTION_GET_BUFFER: 1,
      VFIO_DEVICE_DATA_ACTION_SET_BUFFER: 2,
      VFIO_DEVICE_DIRTY_PFNS_NONE: 0,
      VFIO_DEVICE_DIRTY_PFNS_ALL: 2n ** 64n - 1n,
    });
  });
});
