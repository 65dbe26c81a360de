// The CPUID that a guest sees: what KVM supports, with our topology (one package, a core a vCPU), without what cannot move to another
// host. Pure functions on entries; called by vmm's CPU code, which hands the result to KVM_SET_CPUID2 and into the stream's first section.
// Specs: Intel SDM 2A CPUID; AMD APM 3 appendix E; KVM cpuid.rst for the leaves at 0x40000000.
import type { CpuidEntry } from '../api.ts';

/** KVM_CPUID_FLAG_SIGNIFCANT_INDEX (sic): the subleaf counts. */
const SIGNIFICANT_INDEX = 1;

export interface CpuidOptions {
  readonly cpus: number;
  /** KVM_CAP_TSC_DEADLINE_TIMER: KVM_GET_SUPPORTED_CPUID does not report the bit itself (KVM api.rst). */
  readonly tscDeadlineTimer: boolean;
  /** KVM knows what the guest sets in XCR0 (probe.ts). False: XSAVE and all that needs it is not offered. */
  readonly xsave: boolean;
}

type Registers = Pick<CpuidEntry, 'eax' | 'ebx' | 'ecx' | 'edx'>;

const bit = (n: number): number => 2 ** n;
const bits = (...numbers: number[]): number => numbers.reduce((sum, n) => sum + bit(n), 0);
const without = (value: number, mask: number): number => (value & ~mask) >>> 0;
const withBits = (value: number, mask: number): number => (value | mask) >>> 0;
/** Replaces bits low..high. */
function field(value: number, low: number, high: number, content: number): number {
  const mask = bit(high + 1) - bit(low);
  return (without(value, mask) | ((content * bit(low)) & mask)) >>> 0;
}

const MONITOR = 3;
const VMX = 5;
const PDCM = 15;
const X2APIC = 21;
const TSC_DEADLINE = 24;
const OSXSAVE = 27;
const HYPERVISOR = 31;
const HTT = 28;

/** 0x80000001 ecx: SVM, the performance counters (core, northbridge, L2/L3), MWAITX. */
const AMD_IMMOVABLE = bits(2, 23, 24, 28, 29);
const AMD_CMP_LEGACY = bit(1);
const INVARIANT_TSC = bit(8);

/** What needs registers that only XSAVE saves, by leaf, subleaf and register: AVX and its kin, MPX, protection keys, AMX. */
const NEEDS_XSAVE: readonly { leaf: number; index: number; register: keyof Registers; mask: number }[] = [
  { leaf: 1, index: 0, register: 'ecx', mask: bits(12, 26, 28, 29) },
  { leaf: 7, index: 0, register: 'ebx', mask: bits(5, 14, 16, 17, 21, 26, 27, 28, 30, 31) },
  { leaf: 7, index: 0, register: 'ecx', mask: bits(1, 3, 4, 6, 9, 10, 11, 12, 14) },
  { leaf: 7, index: 0, register: 'edx', mask: bits(2, 3, 8, 22, 23, 24, 25) },
  { leaf: 7, index: 1, register: 'eax', mask: bits(4, 5, 21, 23) },
  { leaf: 0x8000_0001, index: 0, register: 'ecx', mask: bits(11, 15, 16) },
];
const XSAVE_LEAF = 0xd;

/** Leaves that describe what is not offered: monitor, PMU, SGX, processor trace, TSC and core frequencies of this host, LBRs, SVM, perfmon v2. */
const EMPTY_LEAVES = new Set([0x5, 0xa, 0x12, 0x14, 0x15, 0x16, 0x1c, 0x8000_000a, 0x8000_0022]);

/**
 * KVM's paravirtual features that move with the MSRs we save: clocks (0, 3, 24), no I/O delay 1, steal time 5, PV EOI 6, PV unhalt 7,
 * TLB flush 9, send IPI 11, poll control 12, yield 13. Not: async page faults (4, 10, 14), whose pending ones would be lost.
 */
const KVM_FEATURES = bits(0, 1, 3, 5, 6, 7, 9, 11, 12, 13, 24);
const KVM_BASE = 0x4000_0000;
const KVM_SIGNATURE: Registers = { eax: 0x4000_0001, ebx: 0x4b4d_564b, ecx: 0x564b_4d56, edx: 0x4d };

/** For vCPU 0; the others differ in their APIC ids (cpuidOfVcpu). The same for every vCPU otherwise, and what the stream carries. */
export function guestCpuid(supported: readonly CpuidEntry[], options: CpuidOptions): CpuidEntry[] {
  const isAmd = isAmdVendor(supported);
  const highest = supported.find((e) => e.function === 0)?.eax ?? 0;
  const kept = supported.filter((e) => !isReplaced(e.function)).map((e) => ({ ...e, ...judged(e, options, isAmd) }));
  const topology = [0xb, 0x1f].filter((leaf) => leaf <= highest).flatMap((leaf) => topologyLeaf(leaf, options.cpus));
  const entries = [...kept, ...topology, ...kvmLeaves(supported)];
  return options.xsave ? entries : withoutXsave(entries);
}

function withoutXsave(entries: readonly CpuidEntry[]): CpuidEntry[] {
  return entries
    .filter((e) => e.function !== XSAVE_LEAF)
    .map((e) => {
      const made = { ...e };
      for (const { leaf, index, register, mask } of NEEDS_XSAVE) {
        if (e.function === leaf && e.index === index) made[register] = without(e[register], mask);
      }
      return made;
    });
}

/** The same with the APIC ids of vCPU `index` (initial APIC id, x2APIC id, AMD's extended id). */
export function cpuidOfVcpu(entries: readonly CpuidEntry[], index: number): CpuidEntry[] {
  return entries.map((e) => {
    if (e.function === 1) return { ...e, ebx: field(e.ebx, 24, 31, index) };
    if (e.function === 0xb || e.function === 0x1f) return { ...e, edx: index };
    if (e.function === 0x8000_001e) return { ...e, eax: index, ebx: field(e.ebx, 0, 7, index) };
    return e;
  });
}

function isAmdVendor(entries: readonly CpuidEntry[]): boolean {
  const ebx = entries.find((e) => e.function === 0)?.ebx;
  return ebx === 0x6874_7541 || ebx === 0x6f67_7948; // "Auth"enticAMD, "Hygo"nGenuine
}

function isReplaced(leaf: number): boolean {
  return leaf === 0xb || leaf === 0x1f || (leaf >= KVM_BASE && leaf < 0x5000_0000);
}

function judged(e: CpuidEntry, options: CpuidOptions, isAmd: boolean): Registers {
  const { eax, ebx, ecx, edx } = e;
  if (EMPTY_LEAVES.has(e.function)) return { eax: 0, ebx: 0, ecx: 0, edx: 0 };
  switch (e.function) {
    case 0x1:
      return featureLeaf(e, options);
    case 0x4:
    case 0x8000_001d:
      return cacheLeaf(e, options.cpus);
    case 0x6: // thermal and power: only "the APIC timer always runs"
      return { eax: eax & bit(2), ebx: 0, ecx: 0, edx: 0 };
    case 0x7: // SGX, processor trace; SGX launch control; architectural LBRs
      return e.index === 0
        ? { eax, ebx: without(ebx, bits(2, 25)), ecx: without(ecx, bit(30)), edx: without(edx, bit(19)) }
        : { eax, ebx, ecx, edx };
    case 0x8000_0001: {
      const topology = isAmd && options.cpus > 1 ? AMD_CMP_LEGACY : 0;
      return { eax, ebx, ecx: withBits(without(ecx, AMD_IMMOVABLE | AMD_CMP_LEGACY), topology), edx };
    }
    case 0x8000_0007:
      return { eax, ebx, ecx, edx: without(edx, INVARIANT_TSC) };
    case 0x8000_0008:
      return isAmd ? { eax, ebx, ecx: amdCoreCount(options.cpus), edx } : { eax, ebx, ecx, edx };
    case 0x8000_001e: // one thread a core, one node
      return { eax: 0, ebx: 0, ecx: 0, edx: 0 };
    default:
      return { eax, ebx, ecx, edx };
  }
}

function featureLeaf(e: CpuidEntry, options: CpuidOptions): Registers {
  // OSXSAVE mirrors CR4 and is KVM's to set.
  let ecx = without(e.ecx, bits(MONITOR, VMX, PDCM, OSXSAVE, TSC_DEADLINE));
  ecx = withBits(ecx, bits(X2APIC, HYPERVISOR) + (options.tscDeadlineTimer ? bit(TSC_DEADLINE) : 0));
  const edx = options.cpus > 1 ? withBits(e.edx, bit(HTT)) : without(e.edx, bit(HTT));
  // Bits 16-23: how many APIC ids the package has, a power of two.
  return { eax: e.eax, ebx: field(field(e.ebx, 16, 23, 2 ** idBits(options.cpus)), 24, 31, 0), ecx, edx };
}

/** Levels 1 and 2 belong to a core, level 3 is everybody's. Bits 14-25: APIC ids that share it - 1; 26-31 (Intel): cores - 1. */
function cacheLeaf(e: CpuidEntry, cpus: number): Registers {
  const type = e.eax & 0x1f;
  if (type === 0) return { eax: e.eax, ebx: e.ebx, ecx: e.ecx, edx: e.edx };
  const level = (e.eax >>> 5) & 7;
  let eax = field(e.eax, 14, 25, level >= 3 ? 2 ** idBits(cpus) - 1 : 0);
  if (e.function === 0x4) eax = field(eax, 26, 31, 2 ** idBits(cpus) - 1);
  return { eax, ebx: e.ebx, ecx: e.ecx, edx: e.edx };
}

/** Bits of an APIC id that number the cores of the package. */
function idBits(cpus: number): number {
  return Math.ceil(Math.log2(cpus));
}

function amdCoreCount(cpus: number): number {
  return idBits(cpus) * bit(12) + (cpus - 1);
}

/** Intel SDM 2A, CPUID 0BH: subleaf 0 threads of a core, 1 cores of the package, 2 the end. edx is the x2APIC id. */
function topologyLeaf(leaf: number, cpus: number): CpuidEntry[] {
  const entry = (index: number, eax: number, ebx: number, type: number): CpuidEntry => ({
    function: leaf,
    index,
    flags: SIGNIFICANT_INDEX,
    eax,
    ebx,
    ecx: index + type * 256,
    edx: 0,
  });
  return [entry(0, 0, 1, 1), entry(1, idBits(cpus), cpus, 2), entry(2, 0, 0, 0)];
}

function kvmLeaves(supported: readonly CpuidEntry[]): CpuidEntry[] {
  const offered = supported.find((e) => e.function === KVM_BASE + 1);
  if (offered === undefined) return [];
  return [
    { function: KVM_BASE, index: 0, flags: 0, ...KVM_SIGNATURE },
    { function: KVM_BASE + 1, index: 0, flags: 0, eax: (offered.eax & KVM_FEATURES) >>> 0, ebx: 0, ecx: 0, edx: 0 },
  ];
}
