// Tiny real-mode machines for the tests of the addon: 64 KiB of RAM at 0, code put together by `as` at test time, one entry point a vCPU.
// What lies above 64 KiB is MMIO (segment d000 is at 0xd0000).
import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as abi from '../../native/abi/kvm.ts';
import { type GuestRam, kvmNode, type Vcpu, type VcpuLoop, type VcpuLoopHandlers } from '../../native/addon.ts';
import { openKvm, setRealModeSegments, writeRegisters } from '../../native/kvm.ts';

export const hasKvm = existsSync('/dev/kvm');
if (!hasKvm) console.log('skipped: there is no /dev/kvm');

const RAM_SIZE = 65536;
export const CODE_AT = 0x1000;
/** Labels cpu0, cpu1, ... are where the vCPUs start. */
export const ENTRY_STRIDE = 0x400;

/** AT&T syntax, 16-bit. Each cpuN block is placed at CODE_AT + N * ENTRY_STRIDE. */
export function assemble(blocks: readonly string[]): Uint8Array {
  const folder = mkdtempSync(join(tmpdir(), 'ferry-guest-'));
  try {
    const source = join(folder, 'guest.s');
    const text = blocks.map((block, n) => `.org ${n * ENTRY_STRIDE}\ncpu${n}:\n${block}\n`).join('');
    writeFileSync(source, `.code16\n.text\n${text}`);
    execFileSync('as', ['--32', '-o', join(folder, 'guest.o'), source]);
    execFileSync('objcopy', ['-O', 'binary', '-j', '.text', join(folder, 'guest.o'), join(folder, 'guest.bin')]);
    return new Uint8Array(readFileSync(join(folder, 'guest.bin')));
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

export interface Guest {
  readonly ram: GuestRam;
  readonly memory: DataView;
  readonly loop: VcpuLoop;
  readonly vcpus: readonly Vcpu[];
  /** kvm_run of each vCPU. */
  readonly runs: readonly DataView[];
  close(): Promise<void>;
}

export interface GuestOptions {
  readonly blocks: readonly string[];
  readonly irqchip?: boolean;
  readonly hotWindowUs?: number;
}

export function makeGuest(options: GuestOptions, handlers: Partial<VcpuLoopHandlers>): Guest {
  const addon = kvmNode();
  const kvm = openKvm();
  const vm = kvm.createVm();
  addon.ioctl('KVM_SET_TSS_ADDR', vm.fd, abi.KVM_SET_TSS_ADDR, 0xfffbd000);
  if (options.irqchip) addon.ioctl('KVM_CREATE_IRQCHIP', vm.fd, abi.KVM_CREATE_IRQCHIP, 0);
  const ram = addon.createRam(RAM_SIZE, { hugePages: false, populate: false });
  ram.copyIn(CODE_AT, assemble(options.blocks));
  vm.setSlot({ slot: 0, gpa: 0, size: RAM_SIZE, backing: ram, offset: 0, readOnly: false, logDirty: false });
  const unexpected = (what: string) => () => {
    throw new Error(`unexpected ${what}`);
  };
  const loop = addon.createVcpuLoop(
    {
      exit: handlers.exit ?? unexpected('exit'),
      posted: handlers.posted ?? unexpected('posted write'),
      failed: handlers.failed ?? unexpected('failure of KVM_RUN'),
    },
    { hotWindowUs: options.hotWindowUs ?? 0 },
  );
  const vcpus = options.blocks.map((_, index) => {
    const vcpu = loop.addVcpu(vm.fd, index, kvm.runSize);
    // An AP of a machine with an irqchip waits for INIT and SIPI otherwise.
    if (options.irqchip) addon.ioctl('KVM_SET_MP_STATE', vcpu.fd, abi.KVM_SET_MP_STATE, new Uint8Array(4));
    setRealModeSegments(vcpu.fd, 0);
    writeRegisters(vcpu.fd, { rip: BigInt(CODE_AT + index * ENTRY_STRIDE), rflags: 2n, rsp: 0x800n });
    return vcpu;
  });
  return {
    ram,
    memory: new DataView(ram.window(0)),
    loop,
    vcpus,
    runs: vcpus.map((vcpu) => new DataView(vcpu.run)),
    async close() {
      await loop.close();
      vm.close();
      kvm.close();
      ram.close();
    },
  };
}

/** One decoded exit of a port or MMIO access. */
export interface SeenAccess {
  readonly kind: 'in' | 'out' | 'mmio-read' | 'mmio-write' | 'other';
  readonly address: number;
  readonly width: number;
  readonly count: number;
  /** Where in kvm_run its data lies. */
  readonly dataAt: number;
}

export function accessOf(run: DataView): SeenAccess {
  const { io, mmio, exit_reason } = abi.kvm_run;
  const reason = run.getUint32(exit_reason, true);
  if (reason === abi.KVM_EXIT_IO) {
    return {
      kind: run.getUint8(io.direction) === abi.KVM_EXIT_IO_OUT ? 'out' : 'in',
      address: run.getUint16(io.port, true),
      width: run.getUint8(io.size_at),
      count: run.getUint32(io.count, true),
      dataAt: Number(run.getBigUint64(io.data_offset, true)),
    };
  }
  if (reason === abi.KVM_EXIT_MMIO) {
    return {
      kind: run.getUint8(mmio.is_write) ? 'mmio-write' : 'mmio-read',
      address: Number(run.getBigUint64(mmio.phys_addr, true)),
      width: run.getUint32(mmio.len, true),
      count: 1,
      dataAt: mmio.data,
    };
  }
  return { kind: 'other', address: reason, width: 0, count: 0, dataAt: 0 };
}
