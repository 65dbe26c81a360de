// A small typed KVM binding over the addon, usable by itself: open /dev/kvm with readable refusals, make a VM, give it memory, make
// vCPUs, read and write their registers. Called by vmm/machine.ts and by anybody who wants a ten-line VM (test/kvm/native-example.test.ts).
// JS thread, cold paths. Spec: KVM api.rst.
import { closeSync, openSync } from 'node:fs';
import * as abi from './abi/kvm.ts';
import { type GuestRam, type HostMapping, kvmNode, type Patch } from './addon.ts';
import { errnoName, SysError, VmmError } from './errno.ts';

/** One KVM memory slot: guest-physical [gpa, gpa+size) over bytes of guest RAM or of a mapping. size 0 removes the slot. */
export interface MemorySlot {
  readonly slot: number;
  readonly gpa: number;
  readonly size: number;
  readonly backing: GuestRam | HostMapping;
  readonly offset: number;
  readonly readOnly: boolean;
  readonly logDirty: boolean;
}

/** /dev/kvm. */
export interface Kvm {
  readonly fd: number;
  /** KVM_GET_VCPU_MMAP_SIZE: the `runSize` of VcpuLoop.addVcpu. */
  readonly runSize: number;
  /** KVM_CHECK_EXTENSION: 0 when it is not there. */
  check(capability: number): number;
  createVm(): Vm;
  close(): void;
}

export interface Vm {
  readonly fd: number;
  /** KVM_CHECK_EXTENSION of the VM, which may know more than /dev/kvm does. */
  check(capability: number): number;
  setSlot(slot: MemorySlot): void;
  removeSlot(slot: number): void;
  close(): void;
}

/** General registers, in the order of struct kvm_regs. */
export const REGISTERS = [
  ...['rax', 'rbx', 'rcx', 'rdx', 'rsi', 'rdi', 'rsp', 'rbp'],
  ...['r8', 'r9', 'r10', 'r11', 'r12', 'r13', 'r14', 'r15', 'rip', 'rflags'],
] as const;
export type RegisterName =
  | `r${'a' | 'b' | 'c' | 'd'}x`
  | 'rsi'
  | 'rdi'
  | 'rsp'
  | 'rbp'
  | `r${8 | 9 | 10 | 11 | 12 | 13 | 14 | 15}`
  | 'rip'
  | 'rflags';
export type Registers = Record<RegisterName, bigint>;

/** Opens /dev/kvm, or throws a VmmError that says what to do. */
export function openKvm(path = '/dev/kvm'): Kvm {
  const fd = openDevice(path);
  const { ioctl } = kvmNode();
  const version = apiVersion(fd, path);
  if (version !== abi.KVM_API_VERSION) {
    closeSync(fd);
    throw new VmmError(
      'KVM_VERSION',
      `${path} speaks KVM API ${version}, we speak ${abi.KVM_API_VERSION}: use Linux 2.6.22 or later`,
    );
  }
  return {
    fd,
    runSize: ioctl('KVM_GET_VCPU_MMAP_SIZE', fd, abi.KVM_GET_VCPU_MMAP_SIZE, 0),
    check: (capability) => ioctl('KVM_CHECK_EXTENSION', fd, abi.KVM_CHECK_EXTENSION, capability),
    createVm: () => wrapVm(ioctl('KVM_CREATE_VM', fd, abi.KVM_CREATE_VM, 0)),
    close: () => closeSync(fd),
  };
}

function openDevice(path: string): number {
  try {
    return openSync(path, 'r+');
  } catch (cause) {
    const code = (cause as NodeJS.ErrnoException).code ?? String(cause);
    const remedy =
      code === 'ENOENT'
        ? 'this host has no KVM: enable virtualisation in its firmware and load kvm_intel or kvm_amd, or try `ferry lab`'
        : code === 'EACCES' || code === 'EPERM'
          ? 'you may not use it: join its group (usually `adduser $USER kvm`, then log in again) or run as root'
          : 'see dmesg for why';
    throw new VmmError('KVM_OPEN', `cannot open ${path} (${code}): ${remedy}`, { cause });
  }
}

function apiVersion(fd: number, path: string): number {
  try {
    return kvmNode().ioctl('KVM_GET_API_VERSION', fd, abi.KVM_GET_API_VERSION, 0);
  } catch (cause) {
    closeSync(fd);
    const found = cause instanceof SysError ? errnoName(cause.errno) : String(cause);
    throw new VmmError('KVM_OPEN', `${path} is not KVM (KVM_GET_API_VERSION: ${found}): name the KVM device`, {
      cause,
    });
  }
}

function wrapVm(fd: number): Vm {
  const { ioctl, closeFd } = kvmNode();
  const region = new DataView(new ArrayBuffer(abi.kvm_userspace_memory_region.size));
  const layout = abi.kvm_userspace_memory_region;
  const set = (slot: number, gpa: number, size: number, flags: number, patches: readonly Patch[]) => {
    region.setUint32(layout.slot, slot, true);
    region.setUint32(layout.flags, flags, true);
    region.setBigUint64(layout.guest_phys_addr, BigInt(gpa), true);
    region.setBigUint64(layout.memory_size, BigInt(size), true);
    const bytes = new Uint8Array(region.buffer);
    ioctl('KVM_SET_USER_MEMORY_REGION', fd, abi.KVM_SET_USER_MEMORY_REGION, bytes, patches);
  };
  return {
    fd,
    check: (capability) => ioctl('KVM_CHECK_EXTENSION', fd, abi.KVM_CHECK_EXTENSION, capability),
    setSlot({ slot, gpa, size, backing, offset, readOnly, logDirty }) {
      const flags = (readOnly ? abi.KVM_MEM_READONLY : 0) | (logDirty ? abi.KVM_MEM_LOG_DIRTY_PAGES : 0);
      const at = layout.userspace_addr;
      const patch: Patch =
        'window' in backing
          ? { at, ram: backing, offset, length: size }
          : { at, mapping: backing, offset, length: size };
      set(slot, gpa, size, flags, [patch]);
    },
    removeSlot: (slot) => set(slot, 0, 0, 0, []),
    close: () => closeFd(fd),
  };
}

/** KVM_GET_REGS. */
export function readRegisters(vcpuFd: number): Registers {
  const view = new DataView(new ArrayBuffer(abi.kvm_regs.size));
  kvmNode().ioctl('KVM_GET_REGS', vcpuFd, abi.KVM_GET_REGS, new Uint8Array(view.buffer));
  return Object.fromEntries(REGISTERS.map((name) => [name, view.getBigUint64(abi.kvm_regs[name], true)])) as Registers;
}

/** KVM_SET_REGS of the named ones, the others as they are. */
export function writeRegisters(vcpuFd: number, registers: Partial<Registers>): void {
  const view = new DataView(new ArrayBuffer(abi.kvm_regs.size));
  const bytes = new Uint8Array(view.buffer);
  kvmNode().ioctl('KVM_GET_REGS', vcpuFd, abi.KVM_GET_REGS, bytes);
  for (const [name, value] of Object.entries(registers)) {
    view.setBigUint64(abi.kvm_regs[name as RegisterName], value, true);
  }
  kvmNode().ioctl('KVM_SET_REGS', vcpuFd, abi.KVM_SET_REGS, bytes);
}

/** A vCPU fresh from reset starts at f000:fff0; this puts it into real mode with all segments at `base` (a multiple of 16). */
export function setRealModeSegments(vcpuFd: number, base: number): void {
  const view = new DataView(new ArrayBuffer(abi.kvm_sregs.size));
  const bytes = new Uint8Array(view.buffer);
  kvmNode().ioctl('KVM_GET_SREGS', vcpuFd, abi.KVM_GET_SREGS, bytes);
  for (const segment of ['cs', 'ds', 'es', 'fs', 'gs', 'ss'] as const) {
    view.setBigUint64(abi.kvm_sregs[segment] + abi.kvm_segment.base, BigInt(base), true);
    view.setUint16(abi.kvm_sregs[segment] + abi.kvm_segment.selector, base / 16, true);
  }
  kvmNode().ioctl('KVM_SET_SREGS', vcpuFd, abi.KVM_SET_SREGS, bytes);
}
