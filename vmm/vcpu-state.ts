// One vCPU's state: save and load in an order where each step has its reason. Called by core-state.ts while the vCPU's thread is parked;
// JS thread. The structs travel as the kernel's own bytes (its ABI is stable); check() looks at all of it before anything is changed.
// Spec: KVM api.rst, section 4; Intel SDM 3, 11.5.4.1 (TSC-deadline mode).
import {
  KVM_GET_DEBUGREGS,
  KVM_GET_LAPIC,
  KVM_GET_MP_STATE,
  KVM_GET_REGS,
  KVM_GET_SREGS,
  KVM_GET_SREGS2,
  KVM_GET_VCPU_EVENTS,
  KVM_GET_XCRS,
  KVM_GET_XSAVE,
  KVM_GET_XSAVE2,
  KVM_MP_STATE_SIPI_RECEIVED,
  KVM_SET_DEBUGREGS,
  KVM_SET_LAPIC,
  KVM_SET_MP_STATE,
  KVM_SET_REGS,
  KVM_SET_SREGS,
  KVM_SET_SREGS2,
  KVM_SET_VCPU_EVENTS,
  KVM_SET_XCRS,
  KVM_SET_XSAVE,
  kvm_debugregs,
  kvm_lapic_state,
  kvm_mp_state,
  kvm_regs,
  kvm_sregs,
  kvm_sregs2,
  kvm_vcpu_events,
  kvm_xcrs,
} from '../native/abi/kvm.ts';
import { StateError } from '../native/errno.ts';
import { getStruct, type IoctlPort, type StructIoctl, setStruct } from './kvm-struct.ts';
import { findMsr, IA32_TSC, IA32_TSC_DEADLINE, msrAt, msrCount, readMsrs, withoutMsrs, writeMsrs } from './msrs.ts';

const REGS: StructIoctl = { name: 'REGS', get: KVM_GET_REGS, set: KVM_SET_REGS, size: kvm_regs.size };
const SREGS: StructIoctl = { name: 'SREGS', get: KVM_GET_SREGS, set: KVM_SET_SREGS, size: kvm_sregs.size };
const SREGS2: StructIoctl = { name: 'SREGS2', get: KVM_GET_SREGS2, set: KVM_SET_SREGS2, size: kvm_sregs2.size };
const XCRS: StructIoctl = { name: 'XCRS', get: KVM_GET_XCRS, set: KVM_SET_XCRS, size: kvm_xcrs.size };
const DEBUGREGS: StructIoctl = {
  name: 'DEBUGREGS',
  get: KVM_GET_DEBUGREGS,
  set: KVM_SET_DEBUGREGS,
  size: kvm_debugregs.size,
};
const LAPIC: StructIoctl = { name: 'LAPIC', get: KVM_GET_LAPIC, set: KVM_SET_LAPIC, size: kvm_lapic_state.size };
const MP_STATE: StructIoctl = {
  name: 'MP_STATE',
  get: KVM_GET_MP_STATE,
  set: KVM_SET_MP_STATE,
  size: kvm_mp_state.size,
};
const EVENTS: StructIoctl = {
  name: 'VCPU_EVENTS',
  get: KVM_GET_VCPU_EVENTS,
  set: KVM_SET_VCPU_EVENTS,
  size: kvm_vcpu_events.size,
};

/** What the host's KVM has, as far as it changes which structs are used. */
export interface VcpuAbilities {
  readonly sregs2: boolean;
  readonly xcrs: boolean;
  /** KVM_CAP_XSAVE2's size, or 4096. */
  readonly xsaveSize: number;
  readonly msrs: readonly number[];
}

export interface VcpuState {
  readonly mpState: Uint8Array;
  readonly regs: Uint8Array;
  readonly sregs: Uint8Array;
  /** With the PDPTRs; null where the source's KVM has no KVM_CAP_SREGS2. */
  readonly sregs2: Uint8Array | null;
  readonly xsave: Uint8Array;
  readonly xcrs: Uint8Array | null;
  readonly debugregs: Uint8Array;
  readonly lapic: Uint8Array;
  readonly msrs: Uint8Array;
  readonly events: Uint8Array;
}

function xsave(size: number): StructIoctl {
  return { name: 'XSAVE', get: size > 4096 ? KVM_GET_XSAVE2 : KVM_GET_XSAVE, set: KVM_SET_XSAVE, size };
}

export function saveVcpu(addon: IoctlPort, fd: number, abilities: VcpuAbilities): VcpuState {
  const get = (struct: StructIoctl) => getStruct(addon, fd, struct);
  return {
    // First: KVM takes a pending INIT or SIPI in when it is asked for the MP state, and that changes registers and events.
    mpState: get(MP_STATE),
    regs: get(REGS),
    sregs: get(SREGS),
    sregs2: abilities.sregs2 ? get(SREGS2) : null,
    xsave: get(xsave(abilities.xsaveSize)),
    xcrs: abilities.xcrs ? get(XCRS) : null,
    debugregs: get(DEBUGREGS),
    // LAPIC before the MSRs: a deadline timer that fires in between leaves its deadline in the MSR, and fires again at once when that
    // is loaded. The other way round it could be in neither.
    lapic: get(LAPIC),
    msrs: readMsrs(addon, fd, abilities.msrs),
    // Last: what the calls above may have taken in is in here.
    events: get(EVENTS),
  };
}

/** `tsc`: false leaves the TSC alone (a reset: it goes on counting, the same on all vCPUs). */
export function loadVcpu(
  addon: IoctlPort,
  fd: number,
  state: VcpuState,
  options: { sregs2: boolean; tsc: boolean },
): void {
  const set = (struct: StructIoctl, bytes: Uint8Array) => {
    try {
      setStruct(addon, fd, struct, bytes);
    } catch (cause) {
      throw new StateError(`this KVM refuses the saved ${struct.name}`, { cause });
    }
  };
  // MSRs before SREGS would lose nothing but EFER, which both carry; SREGS first, because they bring the APIC base, on which the
  // LAPIC's register layout (x2APIC ids) depends.
  if (options.sregs2 && state.sregs2 !== null) set(SREGS2, state.sregs2);
  else set(SREGS, state.sregs);
  // KVM_SET_REGS clears a pending exception, so it precedes the events.
  set(REGS, state.regs);
  // XCR0 first: it says which parts of the area the guest has switched on.
  if (state.xcrs !== null) set(XCRS, state.xcrs);
  set(xsave(state.xsave.length), state.xsave);
  set(DEBUGREGS, state.debugregs);
  // IA32_TSC before the deadline, which is counted on it.
  const tsc = findMsr(state.msrs, IA32_TSC);
  if (options.tsc && tsc !== null) writeMsrs(addon, fd, only(state.msrs, IA32_TSC));
  writeMsrs(addon, fd, withoutMsrs(state.msrs, [IA32_TSC, IA32_TSC_DEADLINE]));
  set(LAPIC, state.lapic);
  // IA32_TSC_DEADLINE last of the timers: KVM ignores the write unless the LAPIC's timer entry is in deadline mode already, and
  // KVM_SET_LAPIC disarms what was armed before (shown by test/kvm/machine-state.test.ts). So LAPIC goes between the two MSRs.
  if (options.tsc && findMsr(state.msrs, IA32_TSC_DEADLINE) !== null) {
    writeMsrs(addon, fd, only(state.msrs, IA32_TSC_DEADLINE));
  }
  // After SREGS and REGS, which both queue or clear what is in here.
  set(EVENTS, state.events);
  // After SREGS: KVM makes a vCPU runnable that is given the reset vector. A halted one must sleep on.
  set(MP_STATE, state.mpState);
}

/** Throws StateError; changes nothing. */
export function checkVcpu(state: unknown, index: number, abilities: VcpuAbilities): VcpuState {
  const name = `vCPU ${index}`;
  const record = (typeof state === 'object' && state !== null ? state : {}) as Record<string, unknown>;
  const sized = (key: keyof VcpuState, size: number): Uint8Array => {
    const bytes = record[key];
    if (bytes instanceof Uint8Array && bytes.length === size) return bytes;
    throw new StateError(`${name}: ${key} should be ${size} bytes`);
  };
  const checked: VcpuState = {
    mpState: sized('mpState', MP_STATE.size),
    regs: sized('regs', REGS.size),
    sregs: sized('sregs', SREGS.size),
    sregs2: record['sregs2'] === null ? null : sized('sregs2', SREGS2.size),
    xsave: sized('xsave', abilities.xsaveSize),
    xcrs: record['xcrs'] === null ? null : sized('xcrs', XCRS.size),
    debugregs: sized('debugregs', DEBUGREGS.size),
    lapic: sized('lapic', LAPIC.size),
    msrs: record['msrs'] instanceof Uint8Array ? record['msrs'] : sized('msrs', 0),
    events: sized('events', EVENTS.size),
  };
  if (word(checked.mpState, 0) > KVM_MP_STATE_SIPI_RECEIVED) {
    throw new StateError(`${name}: no such MP state as ${word(checked.mpState, 0)}`);
  }
  if (checked.xcrs !== null) checkXcrs(name, checked.xcrs);
  if (checked.msrs.length % 16 !== 0) throw new StateError(`${name}: msrs is no list of entries`);
  for (let at = 0; at < msrCount(checked.msrs); at++) {
    const [msr] = msrAt(checked.msrs, at);
    if (!abilities.msrs.includes(msr))
      throw new StateError(`${name}: MSR 0x${msr.toString(16)} is unknown to this KVM`);
  }
  return checked;
}

/** SDM 1, 13.3: bit 0 of XCR0 is always set; KVM knows XCR0 alone. */
function checkXcrs(name: string, xcrs: Uint8Array): void {
  const count = word(xcrs, kvm_xcrs.nr_xcrs);
  if (count > 16) throw new StateError(`${name}: ${count} XCRs`);
}

function only(saved: Uint8Array, index: number): Uint8Array {
  const others: number[] = [];
  for (let at = 0; at < msrCount(saved); at++) if (msrAt(saved, at)[0] !== index) others.push(msrAt(saved, at)[0]);
  return withoutMsrs(saved, others);
}

function word(bytes: Uint8Array, at: number): number {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength).getUint32(at, true);
}
