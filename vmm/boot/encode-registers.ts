// A boot vCPU's registers as struct kvm_regs and struct kvm_sregs. Called by vmm's vCPU code at power-on and reset, and by probe.ts.
// Offsets: native/abi/kvm.ts. sregs are applied over what KVM_GET_SREGS gave, because apic_base and the rest are a fresh vCPU's own.
import { kvm_dtable, kvm_regs, kvm_segment, kvm_sregs } from '../../native/abi/kvm.ts';
import type { BootRegs, BootSregs, DescriptorTable, SegmentRegister } from './registers.ts';

export function encodeRegs(regs: BootRegs): Uint8Array {
  const view = new DataView(new ArrayBuffer(kvm_regs.size));
  for (const name of ['rip', 'rflags', 'rax', 'rbx', 'rsi'] as const)
    view.setBigUint64(kvm_regs[name], regs[name], true);
  return new Uint8Array(view.buffer);
}

/** Changes `sregs`, the bytes of a struct kvm_sregs, in place. */
export function applySregs(boot: BootSregs, sregs: Uint8Array): void {
  const view = new DataView(sregs.buffer, sregs.byteOffset, sregs.byteLength);
  writeSegment(view, kvm_sregs.cs, boot.cs);
  for (const name of ['ds', 'es', 'fs', 'gs', 'ss'] as const) writeSegment(view, kvm_sregs[name], boot.data);
  writeSegment(view, kvm_sregs.tr, boot.tr);
  writeTable(view, kvm_sregs.gdt, boot.gdt);
  writeTable(view, kvm_sregs.idt, boot.idt);
  for (const name of ['cr0', 'cr3', 'cr4', 'efer'] as const) view.setBigUint64(kvm_sregs[name], boot[name], true);
}

function writeSegment(view: DataView, at: number, segment: SegmentRegister): void {
  view.setBigUint64(at + kvm_segment.base, segment.base, true);
  view.setUint32(at + kvm_segment.limit, segment.limit, true);
  view.setUint16(at + kvm_segment.selector, segment.selector, true);
  for (const name of ['type', 'present', 'dpl', 'db', 's', 'l', 'g', 'avl'] as const) {
    view.setUint8(at + kvm_segment[name], segment[name]);
  }
  view.setUint8(at + kvm_segment.unusable, 0);
}

function writeTable(view: DataView, at: number, table: DescriptorTable): void {
  view.setBigUint64(at + kvm_dtable.base, table.base, true);
  view.setUint16(at + kvm_dtable.limit, table.limit, true);
}
