// What a vCPU left KVM_RUN for, and who answers: the only switch on exit_reason. Called by the vCPU loop on the JS thread, once an
// exit; reads and writes struct kvm_run through one DataView per vCPU and allocates nothing. Spec: KVM api.rst, section 5 (kvm_run).
import type { Width } from '../devices/contract.ts';
import {
  KVM_EXIT_DIRTY_RING_FULL,
  KVM_EXIT_FAIL_ENTRY,
  KVM_EXIT_INTERNAL_ERROR,
  KVM_EXIT_INTR,
  KVM_EXIT_IO,
  KVM_EXIT_IO_OUT,
  KVM_EXIT_MMIO,
  KVM_EXIT_SHUTDOWN,
  KVM_EXIT_SYSTEM_EVENT,
  KVM_INTERNAL_ERROR_EMULATION,
  KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES,
  KVM_SYSTEM_EVENT_CRASH,
  KVM_SYSTEM_EVENT_RESET,
  KVM_SYSTEM_EVENT_SHUTDOWN,
  kvm_run,
} from '../native/abi/kvm.ts';
import type { Bus } from './bus.ts';

/** What an exit may do to the machine as a whole. Each stops the vCPUs before it returns, so the answered vCPU does not run on. */
export interface ExitEnds {
  /** Triple fault, or the guest asked KVM for it. */
  reset(): void;
  shutdown(): void;
  crash(): void;
  /** The vCPU cannot go on; one line for the user. */
  internalError(detail: string): void;
  /** RIP of a vCPU that waits in an exit. */
  rip(vcpu: number): bigint;
}

export class Exits {
  readonly #bus: Bus;
  readonly #ends: ExitEnds;
  readonly #ringFull: () => void;
  readonly #runs: DataView[] = [];

  constructor(bus: Bus, ends: ExitEnds, ringFull: () => void) {
    this.#bus = bus;
    this.#ends = ends;
    this.#ringFull = ringFull;
  }

  /** `run` is the vCPU's mmapped struct kvm_run. */
  add(index: number, run: ArrayBuffer): void {
    this.#runs[index] = new DataView(run);
  }

  /** True: answered, the vCPU may go on. */
  handle(index: number): boolean {
    const run = this.#runs[index]!;
    const reason = run.getUint32(kvm_run.exit_reason, true);
    switch (reason) {
      case KVM_EXIT_IO:
        this.#portAccess(run);
        return true;
      case KVM_EXIT_MMIO:
        this.#mmioAccess(run);
        return true;
      case KVM_EXIT_INTR:
        return true;
      case KVM_EXIT_DIRTY_RING_FULL:
        this.#ringFull();
        return true;
      case KVM_EXIT_SHUTDOWN:
        // A triple fault: the processor shuts down, and a PC's board answers with a reset. Intel SDM 3, 6.15 (double fault).
        this.#ends.reset();
        return true;
      case KVM_EXIT_SYSTEM_EVENT:
        this.#systemEvent(run.getUint32(kvm_run.system_event.type, true));
        return true;
      default:
        this.#ends.internalError(this.#describe(index, run, reason));
        return true;
    }
  }

  #portAccess(run: DataView): void {
    const port = run.getUint16(kvm_run.io.port, true);
    const width = run.getUint8(kvm_run.io.size_at) as Width;
    const count = run.getUint32(kvm_run.io.count, true);
    // An offset within the mapped area, far below 2^32: its low half is all of it.
    let at = run.getUint32(kvm_run.io.data_offset, true);
    const out = run.getUint8(kvm_run.io.direction) === KVM_EXIT_IO_OUT;
    // count > 1 is string I/O (INS/OUTS): the same port again and again.
    for (let i = 0; i < count; i++, at += width) {
      if (out) {
        const value = width === 1 ? run.getUint8(at) : width === 2 ? run.getUint16(at, true) : run.getUint32(at, true);
        this.#bus.writePort(port, width, value);
      } else {
        const value = this.#bus.readPort(port, width);
        if (width === 1) run.setUint8(at, value);
        else if (width === 2) run.setUint16(at, value, true);
        else run.setUint32(at, value, true);
      }
    }
  }

  #mmioAccess(run: DataView): void {
    // Guest-physical addresses have at most 52 bits, so high * 2^32 + low is exact.
    const gpa = run.getUint32(kvm_run.mmio.phys_addr + 4, true) * 2 ** 32 + run.getUint32(kvm_run.mmio.phys_addr, true);
    const length = run.getUint32(kvm_run.mmio.len, true);
    if (run.getUint8(kvm_run.mmio.is_write) !== 0) this.#bus.writeMmio(gpa, length, run, kvm_run.mmio.data);
    else this.#bus.readMmio(gpa, length, run, kvm_run.mmio.data);
  }

  #systemEvent(type: number): void {
    if (type === KVM_SYSTEM_EVENT_SHUTDOWN) this.#ends.shutdown();
    else if (type === KVM_SYSTEM_EVENT_RESET) this.#ends.reset();
    else if (type === KVM_SYSTEM_EVENT_CRASH) this.#ends.crash();
    else this.#ends.internalError(`KVM reported system event ${type}, which is unknown here`);
  }

  #describe(index: number, run: DataView, reason: number): string {
    const where = `vCPU ${index} at RIP 0x${this.#ends.rip(index).toString(16)}`;
    if (reason === KVM_EXIT_FAIL_ENTRY) {
      const code = run.getBigUint64(kvm_run.fail_entry.hardware_entry_failure_reason, true);
      return `${where}: the processor refused to enter the guest (KVM_EXIT_FAIL_ENTRY, reason 0x${code.toString(16)})`;
    }
    if (reason !== KVM_EXIT_INTERNAL_ERROR)
      return `${where}: KVM_RUN ended with exit reason ${reason}, which is unknown here`;
    const suberror = run.getUint32(kvm_run.internal.suberror, true);
    return `${where}: KVM_EXIT_INTERNAL_ERROR, suberror ${suberror}${suberrorName(suberror)}${instruction(run)}`;
  }
}

// linux/kvm.h, KVM_INTERNAL_ERROR_*
const SUBERRORS = ['', 'emulation', 'simultaneous exceptions', 'event delivery', 'unexpected exit reason'];
function suberrorName(suberror: number): string {
  const name = SUBERRORS[suberror] ?? '';
  return name === '' ? '' : ` (${name})`;
}

/** The instruction that KVM could not emulate, where it says so. linux/kvm.h, struct kvm_run.emulation_failure */
function instruction(run: DataView): string {
  if (run.getUint32(kvm_run.internal.suberror, true) !== KVM_INTERNAL_ERROR_EMULATION) return '';
  // ndata counts the u64s that follow; flags and the instruction are three of them.
  if (run.getUint32(kvm_run.internal.ndata, true) < 3) return '';
  const flags = run.getUint32(kvm_run.emulation_failure.flags, true);
  if ((flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) === 0) return '';
  const size = Math.min(15, run.getUint8(kvm_run.emulation_failure.insn_size));
  const bytes = Array.from({ length: size }, (_, i) =>
    run
      .getUint8(kvm_run.emulation_failure.insn_bytes + i)
      .toString(16)
      .padStart(2, '0'),
  );
  return `, instruction ${bytes.join(' ')}`;
}
