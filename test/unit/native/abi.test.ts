// native/abi/*.ts against what this machine's compiler says of its installed linux-libc-dev: every request number, constant, struct size
// and offset that both know must be equal. The kernel may only add: a struct may have grown and a "one past the last" count moved on.
import { execFileSync } from 'node:child_process';
import { describe, expect, it } from 'vitest';
import * as kvm from '../../../native/abi/kvm.ts';
import * as pci from '../../../native/abi/pci.ts';
import * as vfio from '../../../native/abi/vfio.ts';

type Fields = { readonly [field: string]: number | Fields };
interface Abi {
  readonly constants: Record<string, string>;
  readonly structs: Record<string, Fields>;
}
const installed = JSON.parse(
  execFileSync('node', ['scripts/gen-abi.mjs', '--json'], { encoding: 'utf8', maxBuffer: 2 ** 26 }),
) as Record<string, Abi>;

/** Names whose value says how many there are, so that a newer kernel has another one. */
const COUNTS = /(_NR|_NUM_|_NUM|_MAX|_SIZEOF.*|_VALID_MASK|_LAST)$|KVM_SYNC_X86_VALID|_NUM_(REGIONS|IRQS)/;

function flatten(fields: Fields, path = ''): Map<string, number> {
  const flat = new Map<string, number>();
  for (const [name, value] of Object.entries(fields)) {
    if (typeof value === 'number') flat.set(path + name, value);
    else for (const [inner, offset] of flatten(value, `${path}${name}.`)) flat.set(inner, offset);
  }
  return flat;
}

describe.each([
  ['kvm', kvm as Record<string, unknown>, 350],
  ['vfio', vfio as Record<string, unknown>, 120],
  ['pci', pci as Record<string, unknown>, 400],
])('abi/%s', (name, ours, least) => {
  const theirs = installed[name]!;

  it('has the constants that the installed headers have, with their values', () => {
    const shared = Object.keys(theirs.constants).filter((key) => key in ours && !COUNTS.test(key));
    expect(shared.length).toBeGreaterThan(least);
    const differing = shared.filter((key) => BigInt(ours[key] as number) !== BigInt(theirs.constants[key]!));
    expect(differing).toEqual([]);
  });

  it('has their structs, field by field', () => {
    for (const [struct, fields] of Object.entries(theirs.structs)) {
      const mine = ours[struct] as Fields | undefined;
      if (mine === undefined) continue;
      const flat = flatten(mine);
      for (const [field, offset] of flatten(fields)) {
        if (field === 'size') expect(flat.get(field), struct).toBeGreaterThanOrEqual(offset);
        else if (flat.has(field)) expect(flat.get(field), `${struct}.${field}`).toBe(offset);
      }
    }
  });
});

it('the argument length in a request number is its struct’s size', () => {
  const size = (request: number) => (request >>> 16) & 0x3fff;
  expect(size(kvm.KVM_GET_REGS)).toBe(kvm.kvm_regs.size);
  expect(size(kvm.KVM_SET_USER_MEMORY_REGION)).toBe(kvm.kvm_userspace_memory_region.size);
  expect(size(kvm.KVM_IRQFD)).toBe(kvm.kvm_irqfd.size);
  expect(size(kvm.KVM_IOEVENTFD)).toBe(kvm.kvm_ioeventfd.size);
  expect(size(kvm.KVM_GET_SREGS2)).toBe(kvm.kvm_sregs2.size);
});
