// Maps what the loaders wrote into the guest before it runs: one call instead of an exit to the host kernel for every page that the
// kernel touches, which cost a nested guest a third of its start or more (measured, busy machine). Called by machine.ts after a load, before start().
// KVM api.rst, KVM_PRE_FAULT_MEMORY (Linux 6.11). A KVM that cannot do it loses nothing: the pages fault in one by one.
import type { GpaRange } from '../../devices/contract.ts';
import { KVM_PRE_FAULT_MEMORY, kvm_pre_fault_memory } from '../../native/abi/kvm.ts';
import type { KvmNode } from '../../native/addon.ts';

const PAGE = 4096;

/** `vcpu` is parked. Resolves to the number of bytes that are mapped now. */
export async function prefault(
  addon: Pick<KvmNode, 'ioctlAsync'>,
  vcpu: number,
  ranges: readonly GpaRange[],
): Promise<number> {
  const view = new DataView(new ArrayBuffer(kvm_pre_fault_memory.size));
  const bytes = new Uint8Array(view.buffer);
  let mapped = 0;
  for (const range of ranges) {
    const start = Math.floor(range.start / PAGE) * PAGE;
    let left = Math.ceil((range.start + range.length) / PAGE) * PAGE - start;
    view.setBigUint64(kvm_pre_fault_memory.gpa, BigInt(start), true);
    view.setBigUint64(kvm_pre_fault_memory.size_at, BigInt(left), true);
    while (left > 0) {
      try {
        await addon.ioctlAsync('KVM_PRE_FAULT_MEMORY', vcpu, KVM_PRE_FAULT_MEMORY, bytes);
      } catch {
        return mapped; // no such call, or not for this kind of VM
      }
      // It may stop early, with the rest in the struct; no progress at all would be for ever.
      const rest = Number(view.getBigUint64(kvm_pre_fault_memory.size_at, true));
      if (rest >= left) return mapped;
      mapped += left - rest;
      left = rest;
    }
  }
  return mapped;
}
