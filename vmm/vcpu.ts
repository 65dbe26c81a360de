// One vCPU's set-up: CPUID, TSC rate, the boot entry state. Called by machine.ts and cpu-contract.ts while its
// thread is parked; JS thread. The thread itself is native (VcpuLoop); its exits are in exits.ts. Spec: KVM api.rst, KVM_SET_CPUID2 ff.
import {
  KVM_GET_REGS,
  KVM_GET_SREGS,
  KVM_GET_SUPPORTED_CPUID,
  KVM_GET_TSC_KHZ,
  KVM_SET_CPUID2,
  KVM_SET_REGS,
  KVM_SET_SREGS,
  KVM_SET_TSC_KHZ,
  kvm_cpuid_entry2,
  kvm_cpuid2,
  kvm_regs,
  kvm_sregs,
} from '../native/abi/kvm.ts';
import type { CpuidEntry } from './api.ts';
import { applySregs, encodeRegs } from './boot/encode-registers.ts';
import type { BootRegisters } from './boot/registers.ts';
import { getStruct, type IoctlPort, type StructIoctl, setStruct } from './kvm-struct.ts';

const REGS: StructIoctl = { name: 'REGS', get: KVM_GET_REGS, set: KVM_SET_REGS, size: kvm_regs.size };
const SREGS: StructIoctl = { name: 'SREGS', get: KVM_GET_SREGS, set: KVM_SET_SREGS, size: kvm_sregs.size };
/** KVM_MAX_CPUID_ENTRIES of Linux; more than that KVM does not answer. */
const MAX_CPUID = 256;

/** KVM_GET_SUPPORTED_CPUID of /dev/kvm. */
export function supportedCpuid(addon: IoctlPort, kvm: number): CpuidEntry[] {
  const bytes = new Uint8Array(kvm_cpuid2.size + MAX_CPUID * kvm_cpuid_entry2.size);
  const view = new DataView(bytes.buffer);
  view.setUint32(kvm_cpuid2.nent, MAX_CPUID, true);
  addon.ioctl('KVM_GET_SUPPORTED_CPUID', kvm, KVM_GET_SUPPORTED_CPUID, bytes);
  return Array.from({ length: view.getUint32(kvm_cpuid2.nent, true) }, (_, i) => {
    const at = kvm_cpuid2.size + i * kvm_cpuid_entry2.size;
    const field = (name: keyof Omit<typeof kvm_cpuid_entry2, 'size' | 'padding'>) =>
      view.getUint32(at + kvm_cpuid_entry2[name], true);
    return {
      function: field('function'),
      index: field('index'),
      flags: field('flags'),
      eax: field('eax'),
      ebx: field('ebx'),
      ecx: field('ecx'),
      edx: field('edx'),
    };
  });
}

/** struct kvm_cpuid2 with its entries. */
export function encodeCpuid(entries: readonly CpuidEntry[]): Uint8Array {
  const bytes = new Uint8Array(kvm_cpuid2.size + entries.length * kvm_cpuid_entry2.size);
  const view = new DataView(bytes.buffer);
  view.setUint32(kvm_cpuid2.nent, entries.length, true);
  for (const [i, entry] of entries.entries()) {
    const at = kvm_cpuid2.size + i * kvm_cpuid_entry2.size;
    for (const name of ['function', 'index', 'flags', 'eax', 'ebx', 'ecx', 'edx'] as const) {
      view.setUint32(at + kvm_cpuid_entry2[name], entry[name] >>> 0, true);
    }
  }
  return bytes;
}

/** Once, before the vCPU first runs. */
export function setCpuid(addon: IoctlPort, vcpu: number, entries: readonly CpuidEntry[]): void {
  addon.ioctl('KVM_SET_CPUID2', vcpu, KVM_SET_CPUID2, encodeCpuid(entries));
}

export function tscKhz(addon: IoctlPort, vcpu: number): number {
  return addon.ioctl('KVM_GET_TSC_KHZ', vcpu, KVM_GET_TSC_KHZ, 0);
}

export function setTscKhz(addon: IoctlPort, vcpu: number, khz: number): void {
  addon.ioctl('KVM_SET_TSC_KHZ', vcpu, KVM_SET_TSC_KHZ, khz);
}

/** The boot vCPU's entry state. What `boot` does not name stays as a fresh vCPU has it (APIC base, ...). */
export function setBootRegisters(addon: IoctlPort, vcpu: number, boot: BootRegisters): void {
  const sregs = getStruct(addon, vcpu, SREGS);
  applySregs(boot.sregs, sregs);
  setStruct(addon, vcpu, SREGS, sregs);
  setStruct(addon, vcpu, REGS, encodeRegs(boot.regs));
}
