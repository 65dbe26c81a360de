// Rules: what cannot move is gone (INVTSC, VMX/SVM, PMU, MONITOR); one package with a core a vCPU on both vendors' leaves; TSC_DEADLINE
// by KVM's word and not by the leaf; every vCPU has its own APIC id and nothing else of its own; the input is not changed.
import { describe, expect, test } from 'vitest';
import type { CpuidEntry } from '../../../vmm/api.ts';
import { cpuidOfVcpu, guestCpuid } from '../../../vmm/boot/cpuid.ts';

const ALL = 0xffff_ffff;
const entry = (fn: number, index: number, r: Partial<CpuidEntry>): CpuidEntry => ({
  function: fn,
  index,
  flags: index > 0 ? 1 : 0,
  eax: 0,
  ebx: 0,
  ecx: 0,
  edx: 0,
  ...r,
});
const INTEL = { ebx: 0x756e_6547, edx: 0x4965_6e69, ecx: 0x6c65_746e };
const AMD = { ebx: 0x6874_7541, edx: 0x6974_6e65, ecx: 0x444d_4163 };

/** A KVM that offers everything. */
function everything(vendor: Partial<CpuidEntry>): CpuidEntry[] {
  return [
    entry(0, 0, { eax: 0x1f, ...vendor }),
    entry(1, 0, { eax: 0x306f2, ebx: ALL, ecx: ALL, edx: ALL }),
    entry(4, 0, { eax: 0xffff_c121 }), // level 1 data
    entry(4, 3, { eax: 0xffff_c163 }), // level 3 unified
    entry(5, 0, { eax: 64, ebx: 64, ecx: 3 }),
    entry(6, 0, { eax: ALL, ecx: ALL }),
    entry(7, 0, { eax: 1, ebx: ALL, ecx: ALL, edx: ALL }),
    entry(0xa, 0, { eax: 0x0830_0805 }),
    entry(0xb, 0, { eax: 9, edx: 77 }),
    entry(0xd, 0, { eax: 0x207, ebx: 0x340, ecx: 0xa88 }),
    entry(0x14, 0, { eax: 1, ebx: ALL }),
    entry(0x15, 0, { eax: 2, ebx: 200 }),
    entry(0x4000_0000, 0, { eax: 0x4000_0001, ebx: 0x4b4d_564b, ecx: 0x564b_4d56, edx: 0x4d }),
    entry(0x4000_0001, 0, { eax: ALL }),
    entry(0x8000_0000, 0, { eax: 0x8000_0022, ...vendor }),
    entry(0x8000_0001, 0, { ecx: ALL, edx: ALL }),
    entry(0x8000_0007, 0, { edx: ALL }),
    entry(0x8000_0008, 0, { eax: 0x3030, ecx: 0x7007 }),
    entry(0x8000_000a, 0, { eax: 1, edx: ALL }),
    entry(0x8000_001d, 3, { eax: 0xffff_c163 }),
    entry(0x8000_001e, 0, { eax: 5, ebx: 0x105, ecx: 0x302 }),
    entry(0x8000_0022, 0, { eax: 1 }),
  ];
}
const has = (value: number, n: number): boolean => ((value >>> n) & 1) === 1;
const leaf = (entries: CpuidEntry[], fn: number, index = 0): CpuidEntry => {
  const found = entries.find((e) => e.function === fn && e.index === index);
  if (found === undefined) throw new Error(`no leaf ${fn.toString(16)}.${index}`);
  return found;
};

describe('guest CPUID', () => {
  const intel = guestCpuid(everything(INTEL), { cpus: 4, tscDeadlineTimer: true, xsave: true });
  const amd = guestCpuid(everything(AMD), { cpus: 6, tscDeadlineTimer: false, xsave: true });

  test('features that cannot move are not offered, whatever KVM offers', () => {
    for (const set of [intel, amd]) {
      const one = leaf(set, 1);
      for (const n of [3, 5, 15, 27]) expect(has(one.ecx, n), `1.ecx ${n}`).toBe(false);
      expect(has(leaf(set, 0x8000_0007).edx, 8)).toBe(false);
      for (const n of [2, 23, 24, 28, 29]) expect(has(leaf(set, 0x8000_0001).ecx, n), `80000001.ecx ${n}`).toBe(false);
      for (const fn of [5, 0xa, 0x14, 0x15, 0x8000_000a, 0x8000_0022]) {
        const { eax, ebx, ecx, edx } = leaf(set, fn);
        expect([eax, ebx, ecx, edx], fn.toString(16)).toEqual([0, 0, 0, 0]);
      }
    }
  });

  test('what can move stays as KVM gave it', () => {
    for (const n of [0, 9, 13, 19, 20, 26, 28]) expect(has(leaf(intel, 1).ecx, n)).toBe(true); // SSE3, SSSE3, CX16, SSE4, XSAVE, AVX
    expect(leaf(intel, 0xd)).toEqual(leaf(everything(INTEL), 0xd));
    expect(leaf(intel, 6).eax).toBe(4);
  });

  test('where KVM does not hear of XCR0, neither XSAVE nor anything that needs it is offered, and nothing else is missing', () => {
    const less = guestCpuid(everything(INTEL), { cpus: 4, tscDeadlineTimer: true, xsave: false });
    expect(less.filter((e) => e.function === 0xd)).toEqual([]);
    for (const n of [12, 26, 28, 29]) expect(has(leaf(less, 1).ecx, n), `1.ecx ${n}`).toBe(false);
    for (const n of [5, 16, 31]) expect(has(leaf(less, 7).ebx, n), `7.ebx ${n}`).toBe(false);
    for (const n of [0, 1, 9, 13, 19, 20, 25, 30]) expect(has(leaf(less, 1).ecx, n), `1.ecx ${n}`).toBe(true); // SSE to AES, RDRAND
    const others = (set: CpuidEntry[]) => set.filter((e) => ![1, 7, 0xd, 0x8000_0001].includes(e.function));
    expect(others(less)).toEqual(others(intel));
  });

  test('x2APIC and the hypervisor bit are set; TSC_DEADLINE follows KVM_CAP_TSC_DEADLINE_TIMER', () => {
    expect(has(leaf(intel, 1).ecx, 21) && has(leaf(intel, 1).ecx, 31)).toBe(true);
    expect(has(leaf(intel, 1).ecx, 24)).toBe(true);
    expect(has(leaf(amd, 1).ecx, 24)).toBe(false);
  });

  test('topology: one package, one thread a core, level 3 shared by all (Intel leaves 1, 4, 0xb, 0x1f)', () => {
    expect((leaf(intel, 1).ebx >>> 16) & 0xff).toBe(4);
    expect(has(leaf(intel, 1).edx, 28)).toBe(true);
    expect((leaf(intel, 4, 0).eax >>> 14) & 0xfff).toBe(0);
    expect((leaf(intel, 4, 3).eax >>> 14) & 0xfff).toBe(3);
    expect(leaf(intel, 4, 3).eax >>> 26).toBe(3);
    for (const fn of [0xb, 0x1f]) {
      expect(leaf(intel, fn, 0)).toMatchObject({ eax: 0, ebx: 1, ecx: 0x100 });
      expect(leaf(intel, fn, 1)).toMatchObject({ eax: 2, ebx: 4, ecx: 0x201 });
      expect(leaf(intel, fn, 2)).toMatchObject({ eax: 0, ebx: 0, ecx: 2 });
    }
  });

  test('topology on AMD: 0x80000008 counts 6 cores in 3 id bits, CMP_LEGACY is set', () => {
    expect(leaf(amd, 0x8000_0008).ecx).toBe(0x3005);
    expect(has(leaf(amd, 0x8000_0001).ecx, 1)).toBe(true);
    expect((leaf(amd, 0x8000_001d, 3).eax >>> 14) & 0xfff).toBe(7);
  });

  test('one vCPU: no HTT, no shift', () => {
    const one = guestCpuid(everything(INTEL), { cpus: 1, tscDeadlineTimer: true, xsave: true });
    expect(has(leaf(one, 1).edx, 28)).toBe(false);
    expect(leaf(one, 0xb, 1)).toMatchObject({ eax: 0, ebx: 1 });
  });

  test('KVM leaves: kvmclock stays, async page faults and what needs user space are gone', () => {
    const features = leaf(intel, 0x4000_0001).eax;
    expect(has(features, 0) && has(features, 3) && has(features, 24)).toBe(true);
    for (const n of [4, 10, 14, 15, 16, 17]) expect(has(features, n), `${n}`).toBe(false);
    expect(leaf(intel, 0x4000_0000)).toMatchObject({ eax: 0x4000_0001, ebx: 0x4b4d_564b });
  });

  test('vCPUs differ in their APIC ids and in nothing else', () => {
    const third = cpuidOfVcpu(amd, 3);
    expect(leaf(third, 1).ebx >>> 24).toBe(3);
    expect(leaf(third, 0xb, 1).edx).toBe(3);
    expect(leaf(third, 0x8000_001e)).toMatchObject({ eax: 3, ebx: 3 });
    const differing = third.filter((e, i) => JSON.stringify(e) !== JSON.stringify(amd[i])).map((e) => e.function);
    expect(new Set(differing)).toEqual(new Set([1, 0xb, 0x1f, 0x8000_001e]));
  });

  test('the entries that were given are not changed, and every register is an unsigned 32-bit number', () => {
    const given = everything(AMD);
    const made = guestCpuid(given, { cpus: 16, tscDeadlineTimer: true, xsave: true });
    expect(given).toEqual(everything(AMD));
    for (const e of made) {
      for (const r of [e.eax, e.ebx, e.ecx, e.edx]) expect(r >= 0 && r <= ALL && Number.isInteger(r)).toBe(true);
    }
  });
});
