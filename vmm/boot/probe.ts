// "KVM too weak for Linux": runs a guest of a few instructions in ring 0 that a KVM which only interprets ring 0 cannot run. CPUID is no
// witness: such hosts report CX16 and SSE2 all the same (measured). Called by machine.ts before a Linux kernel is loaded; JS thread, a
// VM of its own that is gone afterwards. The same guest sets XCR0: under QEMU 7.2's TCG, whose SVM does not intercept XSETBV, KVM never hears
// of it, and a guest that used XSAVE would neither be saved whole nor see CPUID 0xd agree with its XCR0. KVM api.rst, KVM_EXIT_INTERNAL_ERROR; Intel SDM 2: CMPXCHG16B, MOVQ, MOVDQU.
import {
  KVM_CREATE_VCPU,
  KVM_CREATE_VM,
  KVM_EXIT_IO,
  KVM_GET_SREGS,
  KVM_GET_VCPU_MMAP_SIZE,
  KVM_GET_XCRS,
  KVM_RUN,
  KVM_SET_CPUID2,
  KVM_SET_IDENTITY_MAP_ADDR,
  KVM_SET_REGS,
  KVM_SET_SREGS,
  KVM_SET_TSS_ADDR,
  KVM_SET_USER_MEMORY_REGION,
  kvm_cpuid_entry2,
  kvm_cpuid2,
  kvm_run,
  kvm_sregs,
  kvm_userspace_memory_region,
  kvm_xcrs,
} from '../../native/abi/kvm.ts';
import type { GuestRam, KvmNode } from '../../native/addon.ts';
import { IDENTITY_MAP_ADDR, TSS_ADDR } from '../layout.ts';
import { applySregs, encodeRegs } from './encode-registers.ts';
import { flatGdt } from './memory-map.ts';
import { long64 } from './registers.ts';

const PAGE = 4096;
const GDT = 0x500;
const PML4 = 0x1000;
const CODE = 0x4000;
const DATA = 0x5000;
const RAM_SIZE = 0x10000;
const DONE_PORT = 0xf4;
const DONE = 0x5a;
/** CPUID 1 ecx bit 26; what the guest writes into XCR0, which is 1 after a reset. */
const XSAVE = 1 << 26;
const CR4_OSXSAVE = 1n << 18n;
const XCR0_X87_SSE = 3n;

export interface KvmFitness {
  /** Null: fit. Else why not, as one sentence with the remedy. */
  readonly weakness: string | null;
  /** KVM has seen what the guest set in XCR0. */
  readonly xsave: boolean;
}

/** `cpuid`: struct kvm_cpuid2 as the guest will get it. */
export async function probeKvm(addon: KvmNode, kvmFd: number, cpuid: Uint8Array): Promise<KvmFitness> {
  const offersXsave = hasXsave(cpuid);
  const opened: (() => void)[] = [];
  try {
    const ram = addon.createRam(RAM_SIZE, { hugePages: false, populate: false });
    opened.push(() => ram.close());
    writeGuest(ram, offersXsave);
    const vm = addon.ioctl('KVM_CREATE_VM', kvmFd, KVM_CREATE_VM, 0);
    opened.push(() => addon.closeFd(vm));
    const vcpu = createVcpu(addon, vm, ram, { cpuid, offersXsave });
    opened.push(() => addon.closeFd(vcpu));
    const run = addon.mapFd(vcpu, 0, addon.ioctl('KVM_GET_VCPU_MMAP_SIZE', kvmFd, KVM_GET_VCPU_MMAP_SIZE, 0), true);
    opened.push(() => run.unmap());
    await addon.ioctlAsync('KVM_RUN', vcpu, KVM_RUN, 0);
    const weakness = verdict(new DataView(run.view));
    return { weakness, xsave: offersXsave && weakness === null && xcr0(addon, vcpu) === XCR0_X87_SSE };
  } finally {
    for (const close of opened.reverse()) close();
  }
}

function verdict(run: DataView): string | null {
  const reason = run.getUint32(kvm_run.exit_reason, true);
  const isDone =
    reason === KVM_EXIT_IO &&
    run.getUint16(kvm_run.io.port, true) === DONE_PORT &&
    run.getUint8(Number(run.getBigUint64(kvm_run.io.data_offset, true))) === DONE;
  if (isDone) return null;
  return (
    `this host's /dev/kvm cannot run Linux: instructions that its kernel needs in ring 0 (cmpxchg16b, movq) end in KVM exit ${reason}; ` +
    'use a host with hardware virtualization, or `ferry lab up` for a lab host whose KVM can'
  );
}

function hasXsave(cpuid: Uint8Array): boolean {
  const view = new DataView(cpuid.buffer, cpuid.byteOffset, cpuid.byteLength);
  for (let i = 0; i < view.getUint32(kvm_cpuid2.nent, true); i++) {
    const at = kvm_cpuid2.size + i * kvm_cpuid_entry2.size;
    if (view.getUint32(at + kvm_cpuid_entry2.function, true) === 1)
      return (view.getUint32(at + kvm_cpuid_entry2.ecx, true) & XSAVE) !== 0;
  }
  return false;
}

function xcr0(addon: KvmNode, vcpu: number): bigint {
  const bytes = new Uint8Array(kvm_xcrs.size);
  addon.ioctl('KVM_GET_XCRS', vcpu, KVM_GET_XCRS, bytes);
  // struct kvm_xcr: xcr, reserved, value; the first is XCR0.
  return new DataView(bytes.buffer).getBigUint64(kvm_xcrs.xcrs + 8, true);
}

interface ProbeCpu {
  readonly cpuid: Uint8Array;
  readonly offersXsave: boolean;
}

function createVcpu(addon: KvmNode, vm: number, ram: GuestRam, { cpuid, offersXsave }: ProbeCpu): number {
  const address = new DataView(new ArrayBuffer(8));
  address.setBigUint64(0, BigInt(IDENTITY_MAP_ADDR), true);
  addon.ioctl('KVM_SET_IDENTITY_MAP_ADDR', vm, KVM_SET_IDENTITY_MAP_ADDR, new Uint8Array(address.buffer));
  addon.ioctl('KVM_SET_TSS_ADDR', vm, KVM_SET_TSS_ADDR, TSS_ADDR);
  const region = new DataView(new ArrayBuffer(kvm_userspace_memory_region.size));
  region.setBigUint64(kvm_userspace_memory_region.memory_size, BigInt(RAM_SIZE), true);
  addon.ioctl('KVM_SET_USER_MEMORY_REGION', vm, KVM_SET_USER_MEMORY_REGION, new Uint8Array(region.buffer), [
    { at: kvm_userspace_memory_region.userspace_addr, ram, offset: 0, length: RAM_SIZE },
  ]);
  const vcpu = addon.ioctl('KVM_CREATE_VCPU', vm, KVM_CREATE_VCPU, 0);
  addon.ioctl('KVM_SET_CPUID2', vcpu, KVM_SET_CPUID2, cpuid.slice());
  const { regs, sregs } = long64(CODE, DATA, PML4, { base: BigInt(GDT), limit: 31 });
  const bytes = new Uint8Array(kvm_sregs.size);
  addon.ioctl('KVM_GET_SREGS', vcpu, KVM_GET_SREGS, bytes);
  // CR4.OSFXSR and OSXMMEXCPT, without which SSE instructions fault everywhere.
  applySregs({ ...sregs, cr4: sregs.cr4 | 0x600n | (offersXsave ? CR4_OSXSAVE : 0n) }, bytes);
  addon.ioctl('KVM_SET_SREGS', vcpu, KVM_SET_SREGS, bytes);
  addon.ioctl('KVM_SET_REGS', vcpu, KVM_SET_REGS, encodeRegs(regs));
  return vcpu;
}

const SET_XCR0 = [
  ...[0x31, 0xc9], // xor ecx, ecx
  ...[0x31, 0xd2], // xor edx, edx
  ...[0xb8, Number(XCR0_X87_SSE), 0x00, 0x00, 0x00], // mov eax, 3
  ...[0x0f, 0x01, 0xd1], // xsetbv
];

/** RSI points at 16 zero bytes of data. No loop: it ends in one way or another. */
const GUEST = [
  ...[0x31, 0xc0], // xor eax, eax
  ...[0x31, 0xd2], // xor edx, edx
  ...[0xbb, 0x01, 0x00, 0x00, 0x00], // mov ebx, 1
  ...[0x31, 0xc9], // xor ecx, ecx
  ...[0xf0, 0x48, 0x0f, 0xc7, 0x0e], // lock cmpxchg16b [rsi]
  ...[0x75, 0x13], // jnz end: it must have matched
  ...[0x66, 0x48, 0x0f, 0x6e, 0xc3], // movq xmm0, rbx
  ...[0x66, 0x48, 0x0f, 0x7e, 0xc2], // movq rdx, xmm0
  ...[0x48, 0x39, 0xd3], // cmp rbx, rdx
  ...[0x75, 0x04], // jnz end
  ...[0xb0, DONE], // mov al, DONE
  ...[0xe6, DONE_PORT], // out DONE_PORT, al
  0xf4, // end: hlt
];

function writeGuest(ram: GuestRam, setsXcr0: boolean): void {
  const tables = new DataView(new ArrayBuffer(3 * PAGE));
  tables.setBigUint64(0, BigInt(PML4 + PAGE) | 3n, true);
  tables.setBigUint64(PAGE, BigInt(PML4 + 2 * PAGE) | 3n, true);
  tables.setBigUint64(2 * PAGE, 0x83n, true); // the first 2 MiB
  ram.copyIn(PML4, new Uint8Array(tables.buffer));
  ram.copyIn(GDT, flatGdt(true));
  ram.copyIn(CODE, Uint8Array.from(setsXcr0 ? [...SET_XCR0, ...GUEST] : GUEST));
}
