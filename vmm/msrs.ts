// A vCPU's MSRs: which of KVM's list can move at all, and reading and writing them. Called by core-state.ts and cpu-contract.ts; JS
// thread. Spec: KVM api.rst, KVM_GET_MSR_INDEX_LIST, KVM_GET_MSRS, KVM_SET_MSRS.
import {
  KVM_GET_MSR_INDEX_LIST,
  KVM_GET_MSRS,
  KVM_SET_MSRS,
  kvm_msr_entry,
  kvm_msr_list,
  kvm_msrs,
} from '../native/abi/kvm.ts';
import { StateError } from '../native/errno.ts';
import type { IoctlPort } from './kvm-struct.ts';

// Intel SDM 4, table 2-2
export const IA32_TSC = 0x10;
export const IA32_TSC_DEADLINE = 0x6e0;

const MAX_LISTED = 1024;
const ENTRY = kvm_msr_entry.size;

/** KVM_GET_MSR_INDEX_LIST of /dev/kvm. */
export function listedMsrs(addon: IoctlPort, kvm: number): number[] {
  const bytes = new Uint8Array(kvm_msr_list.size + 4 * MAX_LISTED);
  const view = new DataView(bytes.buffer);
  view.setUint32(kvm_msr_list.nmsrs, MAX_LISTED, true);
  addon.ioctl('KVM_GET_MSR_INDEX_LIST', kvm, KVM_GET_MSR_INDEX_LIST, bytes);
  const count = view.getUint32(kvm_msr_list.nmsrs, true);
  return Array.from({ length: count }, (_, i) => view.getUint32(kvm_msr_list.size + 4 * i, true));
}

/**
 * Those of `listed` that this vCPU's CPUID lets us read and write back. KVM lists what the host could offer: an MSR of a feature that
 * the guest's CPUID lacks is refused, and stops the whole call at its place. Asked once, on a fresh vCPU.
 */
export function movableMsrs(addon: IoctlPort, vcpu: number, listed: readonly number[]): number[] {
  // The TSC's two are not written for a try: a write of the TSC is what KVM synchronizes vCPUs by.
  const timing: readonly number[] = listed.filter((index) => index === IA32_TSC || index === IA32_TSC_DEADLINE);
  let wanted = listed.filter((index) => !timing.includes(index));
  for (;;) {
    const { bytes, done } = transfer(addon, vcpu, 'GET', entries(wanted));
    if (done < wanted.length) {
      wanted = wanted.filter((_, i) => i !== done);
      continue;
    }
    const written = transfer(addon, vcpu, 'SET', bytes.slice(kvm_msrs.size)).done;
    if (written === wanted.length) return [...timing, ...wanted];
    wanted = wanted.filter((_, i) => i !== written);
  }
}

/** struct kvm_msr_entry after struct kvm_msr_entry, in the order of `indices`. */
export function readMsrs(addon: IoctlPort, vcpu: number, indices: readonly number[]): Uint8Array {
  const { bytes, done } = transfer(addon, vcpu, 'GET', entries(indices));
  if (done !== indices.length) {
    throw new StateError(`cannot read MSR 0x${indices[done]!.toString(16)}, which was readable at the start`);
  }
  return bytes.slice(kvm_msrs.size);
}

export function writeMsrs(addon: IoctlPort, vcpu: number, saved: Uint8Array): void {
  const { done } = transfer(addon, vcpu, 'SET', saved);
  if (done * ENTRY !== saved.length) {
    const [index, value] = msrAt(saved, done);
    throw new StateError(`this KVM refuses 0x${value.toString(16)} for MSR 0x${index.toString(16)}`);
  }
}

export function msrCount(saved: Uint8Array): number {
  return Math.floor(saved.length / ENTRY);
}

export function msrAt(saved: Uint8Array, at: number): [index: number, value: bigint] {
  const view = new DataView(saved.buffer, saved.byteOffset, saved.byteLength);
  return [
    view.getUint32(at * ENTRY + kvm_msr_entry.index, true),
    view.getBigUint64(at * ENTRY + kvm_msr_entry.data, true),
  ];
}

export function msrEntry(index: number, value: bigint): Uint8Array {
  const bytes = new Uint8Array(ENTRY);
  const view = new DataView(bytes.buffer);
  view.setUint32(kvm_msr_entry.index, index, true);
  view.setBigUint64(kvm_msr_entry.data, value, true);
  return bytes;
}

/** The saved value of one MSR, or null. */
export function findMsr(saved: Uint8Array, index: number): bigint | null {
  for (let at = 0; at < msrCount(saved); at++) {
    const [found, value] = msrAt(saved, at);
    if (found === index) return value;
  }
  return null;
}

/** `saved` without the MSRs that `drop` names. */
export function withoutMsrs(saved: Uint8Array, drop: readonly number[]): Uint8Array {
  const kept: Uint8Array[] = [];
  for (let at = 0; at < msrCount(saved); at++) {
    if (!drop.includes(msrAt(saved, at)[0])) kept.push(saved.subarray(at * ENTRY, (at + 1) * ENTRY));
  }
  const bytes = new Uint8Array(kept.length * ENTRY);
  for (const [at, entry] of kept.entries()) bytes.set(entry, at * ENTRY);
  return bytes;
}

function entries(indices: readonly number[]): Uint8Array {
  const bytes = new Uint8Array(indices.length * ENTRY);
  for (const [at, index] of indices.entries()) bytes.set(msrEntry(index, 0n), at * ENTRY);
  return bytes;
}

/** Both calls stop at the first MSR that they refuse and return how many came before it. */
function transfer(
  addon: IoctlPort,
  vcpu: number,
  way: 'GET' | 'SET',
  list: Uint8Array,
): { readonly bytes: Uint8Array; readonly done: number } {
  const bytes = new Uint8Array(kvm_msrs.size + list.length);
  new DataView(bytes.buffer).setUint32(kvm_msrs.nmsrs, list.length / ENTRY, true);
  bytes.set(list, kvm_msrs.size);
  const done = addon.ioctl(`KVM_${way}_MSRS`, vcpu, way === 'GET' ? KVM_GET_MSRS : KVM_SET_MSRS, bytes);
  return { bytes, done };
}
