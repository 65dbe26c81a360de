// What both ends of a migration must have in common about the CPU: guest CPUID, XCR0, xsave size, MSRs, TSC rate. Made by machine.ts at
// the source, carried in the stream's first section, checked at the destination before any RAM. JS thread. main-job.md, "ferry/config", "Clock".

import { KVM_CREATE_VCPU } from '../native/abi/kvm.ts';
import { type KvmNode, kvmNode } from '../native/addon.ts';
import type { CpuContract, CpuidEntry } from './api.ts';
import { guestCpuid } from './boot/cpuid.ts';
import { missingFeatures } from './cpu-features.ts';
import { listedMsrs, movableMsrs } from './msrs.ts';
import { setCpuid, supportedCpuid, tscKhz } from './vcpu.ts';
import { Vm } from './vm.ts';

/** How far two TSCs may be apart before a guest's clock drifts more than NTP corrects. main-job.md, "Clock". */
const TSC_TOLERANCE_PPM = 250;

/** The CPUID of this host's guests; the same for each vCPU but for its APIC ids. */
export function hostCpuid(addon: KvmNode, vm: Vm, options: { cpus: number; xsave: boolean }): CpuidEntry[] {
  const { tscDeadlineTimer } = vm.abilities;
  return guestCpuid(supportedCpuid(addon, vm.kvm), { ...options, tscDeadlineTimer });
}

/** `vcpu` has its CPUID already: which MSRs there are depends on it. */
export function readContract(addon: KvmNode, vm: Vm, vcpu: number, cpuid: readonly CpuidEntry[]): CpuContract {
  return {
    cpuid,
    xcr0: xcr0Of(cpuid),
    xsaveSize: vm.abilities.xsaveSize,
    msrs: movableMsrs(addon, vcpu, listedMsrs(addon, vm.kvm)),
    tscKhz: tscKhz(addon, vcpu),
  };
}

/** What a guest from elsewhere could have here. */
export interface HostOffer {
  readonly contract: CpuContract;
  /** KVM can scale the TSC. */
  readonly tscControl: boolean;
}

/** Some 20 ms: a VM is made and given up for it. Throws SysError where KVM cannot do that. */
export function readHostOffer(addon: KvmNode = kvmNode()): HostOffer {
  const vm = new Vm(addon);
  let vcpu: number | null = null;
  try {
    // What the probe would take away a guest from elsewhere cannot do without.
    const cpuid = hostCpuid(addon, vm, { cpus: 1, xsave: true });
    vcpu = addon.ioctl('KVM_CREATE_VCPU', vm.fd, KVM_CREATE_VCPU, 0);
    setCpuid(addon, vcpu, cpuid);
    return { contract: readContract(addon, vm, vcpu, cpuid), tscControl: vm.abilities.tscControl };
  } finally {
    if (vcpu !== null) addon.closeFd(vcpu);
    vm.close();
  }
}

/** What this host lacks, one sentence each; empty when a machine with this contract can run here. */
export function checkCpuContract(wanted: CpuContract, here: HostOffer = readHostOffer()): string[] {
  return compareContracts(wanted, here.contract, here.tscControl);
}

/** `here`: this host's; `tscControl`: its KVM can scale the TSC. Pure. */
export function compareContracts(wanted: CpuContract, here: CpuContract, tscControl: boolean): string[] {
  const lacks: string[] = [];
  const features = missingFeatures(wanted.cpuid, here.cpuid);
  if (features.length > 0) lacks.push(`the CPU here (as KVM offers it) lacks ${features.join(', ')}`);
  if (vendor(wanted.cpuid) !== vendor(here.cpuid)) {
    lacks.push(`the guest runs on ${vendor(wanted.cpuid)}, the CPU here is ${vendor(here.cpuid)}`);
  }
  const bits = physicalBits(wanted.cpuid);
  if (bits > physicalBits(here.cpuid)) {
    lacks.push(`the guest has ${bits} physical address bits, this host ${physicalBits(here.cpuid)}`);
  }
  if ((wanted.xcr0 & ~here.xcr0) !== 0n) {
    lacks.push(`XCR0 here is 0x${here.xcr0.toString(16)}, the guest's 0x${wanted.xcr0.toString(16)}`);
  }
  if (wanted.xsaveSize !== here.xsaveSize) {
    lacks.push(`KVM's XSAVE area has ${here.xsaveSize} bytes here, the guest's ${wanted.xsaveSize}`);
  }
  const msrs = wanted.msrs.filter((index) => !here.msrs.includes(index));
  if (msrs.length > 0)
    lacks.push(`KVM here does not know the MSRs ${msrs.map((index) => `0x${index.toString(16)}`).join(', ')}`);
  if (!tscControl && !tscAgrees(wanted.tscKhz, here.tscKhz)) {
    lacks.push(
      `the guest's TSC runs at ${wanted.tscKhz} kHz, this host's at ${here.tscKhz}, and KVM here cannot scale it (KVM_CAP_TSC_CONTROL)`,
    );
  }
  return lacks;
}

/** main-job.md, "Clock": more than 250 ppm apart is refused where KVM cannot scale. */
export function tscAgrees(wantedKhz: number, hereKhz: number): boolean {
  return Math.abs(wantedKhz - hereKhz) * 1_000_000 <= TSC_TOLERANCE_PPM * wantedKhz;
}

/** CPUID 0xd.0: what the guest may switch on in XCR0. */
function xcr0Of(cpuid: readonly CpuidEntry[]): bigint {
  const leaf = cpuid.find((entry) => entry.function === 0xd && entry.index === 0);
  return leaf === undefined ? 0n : (BigInt(leaf.edx >>> 0) << 32n) | BigInt(leaf.eax >>> 0);
}

/** CPUID 0x80000008 eax, 7-0; 36 where the leaf is missing (SDM 3, 4.1.4). */
export function physicalBits(cpuid: readonly CpuidEntry[]): number {
  const leaf = cpuid.find((entry) => entry.function === 0x8000_0008);
  return leaf === undefined ? 36 : leaf.eax & 0xff;
}

function vendor(cpuid: readonly CpuidEntry[]): string {
  const leaf = cpuid.find((entry) => entry.function === 0);
  if (leaf === undefined) return 'an unknown vendor';
  const bytes = new Uint8Array(12);
  const view = new DataView(bytes.buffer);
  for (const [at, register] of [leaf.ebx, leaf.edx, leaf.ecx].entries()) view.setUint32(4 * at, register >>> 0, true);
  return Buffer.from(bytes).toString('latin1');
}
