// One vCPU's set-up and registers: CPUID, the boot entry state, RIP for messages. Called by machine.ts and cpu-contract.ts while its
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
  kvm_dtable,
  kvm_regs,
  kvm_segment,
  kvm_sregs,
} from '../native/abi/kvm.ts';
import type { CpuidEntry } from './api.ts';
import type { BootRegisters, DescriptorTable, SegmentRegister } from './boot/registers.ts';
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

/** Once, before the vCPU first runs. */
export function setCpuid(addon: IoctlPort, vcpu: number, entries: readonly CpuidEntry[]): void {
  const bytes = new Uint8Array(kvm_cpuid2.size + entries.length * kvm_cpuid_entry2.size);
  const view = new DataView(bytes.buffer);
  view.setUint32(kvm_cpuid2.nent, entries.length, true);
  for (const [i, entry] of entries.entries()) {
    const at = kvm_cpuid2.size + i * kvm_cpuid_entry2.size;
    for (const name of ['function', 'index', 'flags', 'eax', 'ebx', 'ecx', 'edx'] as const) {
      view.setUint32(at + kvm_cpuid_entry2[name], entry[name] >>> 0, true);
    }
  }
  addon.ioctl('KVM_SET_CPUID2', vcpu, KVM_SET_CPUID2, bytes);
}

export function tscKhz(addon: IoctlPort, vcpu: number): number {
  return addon.ioctl('KVM_GET_TSC_KHZ', vcpu, KVM_GET_TSC_KHZ, 0);
}

export function setTscKhz(addon: IoctlPort, vcpu: number, khz: number): void {
  addon.ioctl('KVM_SET_TSC_KHZ', vcpu, KVM_SET_TSC_KHZ, khz);
}

export function rip(addon: IoctlPort, vcpu: number): bigint {
  return new DataView(getStruct(addon, vcpu, REGS).buffer).getBigUint64(kvm_regs.rip, true);
}

/** The boot vCPU's entry state. What `boot` does not name stays as a fresh vCPU has it (APIC base, ...). */
export function setBootRegisters(addon: IoctlPort, vcpu: number, boot: BootRegisters): void {
  const sregs = getStruct(addon, vcpu, SREGS);
  const view = new DataView(sregs.buffer);
  putSegment(view, kvm_sregs.cs, boot.sregs.cs);
  for (const name of ['ds', 'es', 'fs', 'gs', 'ss'] as const) putSegment(view, kvm_sregs[name], boot.sregs.data);
  putSegment(view, kvm_sregs.tr, boot.sregs.tr);
  putTable(view, kvm_sregs.gdt, boot.sregs.gdt);
  putTable(view, kvm_sregs.idt, boot.sregs.idt);
  for (const name of ['cr0', 'cr3', 'cr4', 'efer'] as const) {
    view.setBigUint64(kvm_sregs[name], boot.sregs[name], true);
  }
  setStruct(addon, vcpu, SREGS, sregs);
  const regs = new Uint8Array(kvm_regs.size);
  const values = new DataView(regs.buffer);
  for (const name of ['rip', 'rflags', 'rax', 'rbx', 'rsi'] as const) {
    values.setBigUint64(kvm_regs[name], boot.regs[name], true);
  }
  setStruct(addon, vcpu, REGS, regs);
}

function putSegment(view: DataView, at: number, segment: SegmentRegister): void {
  view.setBigUint64(at + kvm_segment.base, segment.base, true);
  view.setUint32(at + kvm_segment.limit, segment.limit, true);
  view.setUint16(at + kvm_segment.selector, segment.selector, true);
  for (const name of ['type', 'present', 'dpl', 'db', 's', 'l', 'g', 'avl'] as const) {
    view.setUint8(at + kvm_segment[name], segment[name]);
  }
  view.setUint8(at + kvm_segment.unusable, segment.present === 0 ? 1 : 0);
}

function putTable(view: DataView, at: number, table: DescriptorTable): void {
  view.setBigUint64(at + kvm_dtable.base, table.base, true);
  view.setUint16(at + kvm_dtable.limit, table.limit, true);
}
