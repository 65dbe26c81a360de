// The vCPUs of a machine with what belongs to them all: CPUID, power-on state for resets, saved state, and the guest's clock, which
// stands still while they do. Made by machine.ts; JS thread. The threads are native (VcpuLoop). main-job.md, "Clock".
import type { KvmNode, Vcpu, VcpuLoop } from '../native/addon.ts';
import { readRegisters } from '../native/kvm.ts';
import type { CoreState, CpuContract, MachineConfig } from './api.ts';
import { cpuidOfVcpu } from './boot/cpuid.ts';
import type { BootRegisters } from './boot/registers.ts';
import { announcePause, type CoreParts, loadCore, readClock, saveCore, writeClock } from './core-state.ts';
import { hostCpuid, readContract } from './cpu-contract.ts';
import { setBootRegisters, setCpuid, setTscKhz } from './vcpu.ts';
import type { Vm } from './vm.ts';

/** kvmclock as it stood, and when that was by the host's CLOCK_MONOTONIC. */
interface StoppedClock {
  readonly ns: bigint;
  readonly at: bigint;
}

export interface CpuBasis {
  /** The source's, at the destination of a migration; null: this host's. */
  readonly contract: CpuContract | null;
  /** This host's KVM can give its guests XSAVE (probe.ts). */
  readonly xsave: boolean;
}

export class Processors {
  readonly contract: CpuContract;
  readonly vcpus: readonly Vcpu[];
  readonly #parts: CoreParts;
  readonly #addon: KvmNode;
  readonly #clockPolicy: MachineConfig['clock'];
  /** What the vCPUs and controllers were before the first instruction. */
  readonly #powerOn: CoreState;
  #stopped: StoppedClock | null = null;

  constructor(addon: KvmNode, vm: Vm, loop: VcpuLoop, config: MachineConfig, basis: CpuBasis) {
    const { contract, xsave } = basis;
    this.#addon = addon;
    this.#clockPolicy = config.clock;
    const cpuid = contract?.cpuid ?? hostCpuid(addon, vm, { cpus: config.cpus, xsave });
    this.vcpus = Array.from({ length: config.cpus }, (_, index) => loop.addVcpu(vm.fd, index, vm.runSize));
    for (const vcpu of this.vcpus) setCpuid(addon, vcpu.fd, cpuidOfVcpu(cpuid, vcpu.index));
    const here = readContract(addon, vm, this.vcpus[0]!.fd, cpuid);
    this.contract = contract ?? here;
    if (contract !== null && contract.tscKhz !== here.tscKhz && vm.abilities.tscControl) {
      for (const vcpu of this.vcpus) setTscKhz(addon, vcpu.fd, contract.tscKhz);
    }
    this.#parts = {
      addon,
      vm: vm.fd,
      vcpus: this.vcpus.map((vcpu) => vcpu.fd),
      abilities: {
        sregs2: vm.abilities.sregs2,
        xcrs: vm.abilities.xcrs,
        xsaveSize: this.contract.xsaveSize,
        msrs: this.contract.msrs,
      },
    };
    this.#powerOn = saveCore(this.#parts, 0n);
  }

  rip(index: number): bigint {
    return readRegisters(this.#parts.vcpus[index]!).rip;
  }

  /** As after power-on, but the TSC goes on. */
  reset(): void {
    loadCore(this.#parts, this.#powerOn, { tsc: false });
  }

  boot(registers: BootRegisters): void {
    setBootRegisters(this.#addon, this.#parts.vcpus[0]!, registers);
  }

  /** The vCPUs have just stopped. */
  stopClock(): void {
    this.#stopped = { ns: readClock(this.#parts), at: process.hrtime.bigint() };
  }

  save(): CoreState {
    return saveCore(this.#parts, this.#stopped?.ns ?? readClock(this.#parts));
  }

  load(state: CoreState): void {
    const ns = loadCore(this.#parts, state, { tsc: true });
    this.#stopped = { ns, at: process.hrtime.bigint() };
  }

  /** The vCPUs go on after `pausedNs`, or after what this host measured. KVM_SET_CLOCK comes after all MSRs: kvmclock is based on them. */
  resumeClock(pausedNs: bigint | null): void {
    const stopped = this.#stopped;
    if (stopped === null) return;
    this.#stopped = null;
    const paused = pausedNs ?? process.hrtime.bigint() - stopped.at;
    writeClock(this.#parts, stopped.ns + (this.#clockPolicy === 'catch-up' ? paused : 0n));
    announcePause(this.#parts);
  }
}
