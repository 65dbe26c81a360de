// CPUID feature bits by name, and which of them one host lacks. Called by cpu-contract.ts before any RAM moves; pure.
// Names are those of /proc/cpuinfo, which is what an operator can compare. Specs: Intel SDM 2A CPUID; AMD APM 3, appendix E; KVM cpuid.rst.
import type { CpuidEntry } from './api.ts';

type Register = 'eax' | 'ebx' | 'ecx' | 'edx';

interface FeatureWord {
  readonly leaf: number;
  readonly index: number;
  readonly register: Register;
  /** By bit number; '' has no name. */
  readonly names: readonly string[];
  /** Bits that say nothing about what the host can do (set by the hypervisor or mirrored from control registers). */
  readonly ignore: number;
}

const words = (text: string): string[] => text.split(' ').map((name) => (name === '-' ? '' : name));
const word = (leaf: number, index: number, register: Register, text: string, ignore = 0): FeatureWord => ({
  leaf,
  index,
  register,
  names: words(text),
  ignore,
});

/** OSXSAVE and the hypervisor bit; OSPKE. */
const LEAF1_ECX_IGNORE = 2 ** 27 + 2 ** 31;
/** HTT: topology. */
const LEAF1_EDX_IGNORE = 2 ** 28;
const LEAF7_ECX_IGNORE = 2 ** 4;
/** CmpLegacy and TopologyExtensions: topology. */
const AMD_ECX_IGNORE = 2 ** 1 + 2 ** 22;

export const FEATURE_WORDS: readonly FeatureWord[] = [
  word(
    1,
    0,
    'ecx',
    'sse3 pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - pcid dca sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave osxsave avx f16c rdrand hypervisor',
    LEAF1_ECX_IGNORE,
  ),
  word(
    1,
    0,
    'edx',
    'fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - dts acpi mmx fxsr sse sse2 ss ht tm ia64 pbe',
    LEAF1_EDX_IGNORE,
  ),
  word(
    7,
    0,
    'ebx',
    'fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm cqm zero_fcs_fds mpx rdt_a avx512f avx512dq rdseed adx smap avx512ifma pcommit clflushopt clwb intel_pt avx512pf avx512er avx512cd sha_ni avx512bw avx512vl',
  ),
  word(
    7,
    0,
    'ecx',
    'prefetchwt1 avx512vbmi umip pku ospke waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq avx512_vnni avx512_bitalg tme avx512_vpopcntdq - la57 - - - - - rdpid - bus_lock_detect cldemote - movdiri movdir64b enqcmd sgx_lc pks',
    LEAF7_ECX_IGNORE,
  ),
  word(
    7,
    0,
    'edx',
    '- - avx512_4vnniw avx512_4fmaps fsrm uintr - - avx512_vp2intersect srbds_ctrl md_clear rtm_always_abort - tsx_force_abort serialize hybrid tsxldtrk - pconfig arch_lbr ibt - amx_bf16 avx512_fp16 amx_tile amx_int8 ibrs stibp flush_l1d arch_capabilities core_capabilities ssbd',
  ),
  word(
    7,
    1,
    'eax',
    '- - - - avx_vnni avx512_bf16 - cmpccxadd - - fzrm fsrs fsrc - - - - - - - - amx_fp16 - avx_ifma - - lam',
  ),
  word(
    0xd,
    0,
    'eax',
    'xcr0:x87 xcr0:sse xcr0:avx xcr0:bndregs xcr0:bndcsr xcr0:opmask xcr0:zmm_hi256 xcr0:hi16_zmm - xcr0:pkru - - - - - - - xcr0:tilecfg xcr0:tiledata',
  ),
  word(0xd, 1, 'eax', 'xsaveopt xsavec xgetbv1 xsaves xfd'),
  word(
    0x8000_0001,
    0,
    'ecx',
    'lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt - lwp fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc perfctr_llc mwaitx',
    AMD_ECX_IGNORE,
  ),
  word(
    0x8000_0001,
    0,
    'edx',
    'fpu vme de pse tsc msr pae mce cx8 apic - syscall mtrr pge mca cmov pat pse36 - mp nx - mmxext mmx fxsr fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow',
  ),
  word(0x8000_0007, 0, 'edx', '- - - - - - - - constant_tsc(invariant)'),
  word(
    0x8000_0008,
    0,
    'ebx',
    'clzero irperf xsaveerptr - - - - - - wbnoinvd - - amd_ibpb - amd_ibrs amd_stibp - - - - - - - - amd_ssbd virt_ssbd amd_ssb_no',
  ),
  word(
    0x4000_0001,
    0,
    'eax',
    'kvm_clocksource kvm_nopiodelay kvm_mmu kvm_clocksource2 kvm_asyncpf kvm_steal_time kvm_pv_eoi kvm_pv_unhalt - kvm_tlb_flush kvm_asyncpf_vmexit kvm_send_ipi kvm_poll_control kvm_sched_yield',
  ),
];

/** Names of the features in `wanted` that `offered` has not. */
export function missingFeatures(wanted: readonly CpuidEntry[], offered: readonly CpuidEntry[]): string[] {
  const missing: string[] = [];
  for (const feature of FEATURE_WORDS) {
    const lacks = value(wanted, feature) & ~value(offered, feature) & ~feature.ignore;
    for (let bit = 0; bit < 32; bit++) {
      if (((lacks >>> bit) & 1) === 0) continue;
      const name = feature.names[bit] ?? '';
      missing.push(
        name === '' ? `CPUID 0x${feature.leaf.toString(16)}.${feature.index} ${feature.register} bit ${bit}` : name,
      );
    }
  }
  return [...new Set(missing)];
}

function value(entries: readonly CpuidEntry[], feature: FeatureWord): number {
  const entry = entries.find((one) => one.function === feature.leaf && one.index === feature.index);
  return entry === undefined ? 0 : entry[feature.register];
}
