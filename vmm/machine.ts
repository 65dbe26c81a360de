// The composition root: puts a machine's parts together, the same way for a boot and for an incoming migration (build-then-load).
// Called by cli, control and migration; JS thread. Whatever was opened is closed again when a step fails.
import type { DeviceHost } from '../devices/contract.ts';
import { type KvmNode, kvmNode } from '../native/addon.ts';
import { VmmError } from '../native/errno.ts';
import type { CpuContract, Machine, MachineConfig, MachineHost } from './api.ts';
import { Board, reservedRanges } from './board.ts';
import { cpuidOfVcpu } from './boot/cpuid.ts';
import { type BootImage, openBoot } from './boot/load.ts';
import { prefault } from './boot/prefault.ts';
import { probeKvm } from './boot/probe.ts';
import { Bus } from './bus.ts';
import { hostCpuid } from './cpu-contract.ts';
import { MergingTracker } from './dirty.ts';
import { Exits } from './exits.ts';
import { GuestRequests } from './guest-requests.ts';
import { Interrupts } from './irq.ts';
import { enableKvmLog, openKvmLog } from './kvm-dirty.ts';
import { LiveMachine } from './live-machine.ts';
import { Memory } from './memory.ts';
import type { PreparedRam } from './prepared-ram.ts';
import { Processors } from './processors.ts';
import { encodeCpuid } from './vcpu.ts';
import { Vm } from './vm.ts';

/** How long the JS thread stays hot after an answer: most exits come in bursts (facts: node-performance, section 1). */
const HOT_WINDOW_US = 20;

/** Prelaunch; the kernel is in RAM when config.boot is there. */
export async function buildMachine(config: MachineConfig, host: MachineHost): Promise<Machine> {
  const undo: Undo = [];
  try {
    const boot = config.boot === null ? null : await openBoot(config.boot);
    if (boot !== null) undo.push(() => boot.close());
    const { vm, xsave } = await openVm(config, boot, undo);
    // kvm-unit-tests' guests end through it (facts: boot-peers).
    const debugExit = config.debugExit || boot?.kind === 'multiboot';
    const { machine, memory, processors } = await assemble(
      { ...config, debugExit },
      host,
      { vm, boot, contract: null, xsave, prepared: null },
      undo,
    );
    // Not before: a host or a device that is refused gets one line.
    for (const note of boot?.notes ?? []) host.log.warn({}, note);
    if (boot !== null) {
      const loaded = await boot.load({ memory, cpus: config.cpus, fresh: true });
      processors.boot(loaded);
      await prefault(kvmNode(), processors.vcpus[0]!.fd, loaded.filled);
    }
    return machine;
  } catch (error) {
    await unwind(undo);
    throw error;
  }
}

/** Inmigrate, with empty RAM: `prepared`, if it fits. The caller has seen checkCpuContract(cpu) to be empty. */
export async function buildForIncoming(
  config: MachineConfig,
  cpu: CpuContract,
  host: MachineHost,
  prepared: PreparedRam | null = null,
): Promise<Machine> {
  const undo: Undo = [];
  try {
    const vm = new Vm(kvmNode());
    undo.push(() => vm.close());
    const { machine, memory, processors } = await assemble(
      config,
      host,
      { vm, boot: null, contract: cpu, xsave: true, prepared },
      undo,
    );
    // RAM that is there already (pinned for a device, or allocated ahead) is mapped into the guest now, while it still runs at the
    // source: some 700 faults before its first instruction here were 60 ms of every pause (measured in nested hosts).
    if (machine.ram.resident() >= config.memory) {
      const ranges = memory.ranges.map(({ gpa, size }) => ({ start: gpa, length: size }));
      await prefault(kvmNode(), processors.vcpus[0]!.fd, ranges);
    }
    return machine;
  } catch (error) {
    await unwind(undo);
    throw error;
  }
}

type Undo = (() => void | Promise<void>)[];

async function unwind(undo: Undo): Promise<void> {
  for (const step of undo.reverse()) await step();
}

async function openVm(config: MachineConfig, boot: BootImage | null, undo: Undo): Promise<{ vm: Vm; xsave: boolean }> {
  const addon = kvmNode();
  const vm = new Vm(addon);
  undo.push(() => vm.close());
  if (boot === null || boot.kind === 'multiboot') return { vm, xsave: true };
  const cpuid = encodeCpuid(cpuidOfVcpu(hostCpuid(addon, vm, { cpus: config.cpus, xsave: true }), 0));
  const { weakness, xsave } = await probeKvm(addon, vm.kvm, cpuid);
  if (weakness !== null) throw new VmmError('kvm-too-weak', weakness);
  return { vm, xsave };
}

interface Basis {
  readonly vm: Vm;
  readonly boot: BootImage | null;
  readonly contract: CpuContract | null;
  readonly xsave: boolean;
  readonly prepared: PreparedRam | null;
}

async function assemble(config: MachineConfig, host: MachineHost, basis: Basis, undo: Undo) {
  const addon = kvmNode();
  const { vm } = basis;
  const prepared = basis.prepared?.take(config.memory) ?? null;
  const ram = prepared ?? addon.createRam(config.memory, { hugePages: true, populate: false });
  undo.push(() => ram.close());
  if (config.preallocate && prepared === null) await ram.populate(0, config.memory);
  const memory = new Memory(addon, vm.slots, ram, vm.abilities.memorySlots);
  // These three are made below; no exit happens before start().
  let machine: LiveMachine;
  const loop = addon.createVcpuLoop(
    {
      exit: (index) => {
        try {
          return exits.handle(index);
        } catch (error) {
          machine.deviceFailed(error);
          return true;
        }
      },
      posted: (range, offset, width, value) => {
        try {
          bus.posted(range, offset, width, value);
        } catch (error) {
          machine.deviceFailed(error);
        }
      },
      failed: (index, errno) => machine.vcpuFailed(index, errno),
    },
    { hotWindowUs: addon.cpuCount() > 1 ? HOT_WINDOW_US : 0 },
  );
  undo.push(() => loop.close());
  const bus = new Bus(loop, reservedRanges(config.memory));
  const irq = new Interrupts(addon, vm.fd, vm.abilities.gsis);
  irq.commit();
  enableKvmLog(vm, config.dirtyLog);
  const processors = new Processors(addon, vm, loop, config, basis);
  const requests = new GuestRequests(
    (vcpu) => processors.rip(vcpu),
    () => machine.serveSoon(),
  );
  const kvmLog = openKvmLog({ addon, vm, memory }, config.dirtyLog);
  undo.push(() => kvmLog.close());
  for (const vcpu of processors.vcpus) kvmLog.addVcpu(vcpu.fd);
  const exits = new Exits(bus, requests, () => kvmLog.ringFull());
  for (const vcpu of processors.vcpus) exits.add(vcpu.index, vcpu.run);
  const deviceHost = makeDeviceHost({ addon, host, irq, bus, memory, vm, requests });
  const board = await Board.build({ host: deviceHost, config, registry: host.registry, consoleOut: host.consoleOut });
  undo.push(() => board.close());
  host.consoleIn((bytes) => {
    if (!machine.closed) board.serial.receive(bytes);
  });
  const dirty = new MergingTracker({
    pages: memory.pages,
    ranges: memory.ranges.map((range) => ({ start: range.gpa, length: range.size })),
    own: [kvmLog, memory.hostWrites],
    devices: () => board.devices.flatMap((device) => (device.dirty === null ? [] : [device.dirty])),
    createBitmap: (pages) => addon.createBitmap(pages),
    log: host.log,
  });
  machine = new LiveMachine({
    ...{ config, log: host.log, vm, memory, loop, processors, board, requests, dirty, boot: basis.boot },
    state: basis.contract === null ? 'prelaunch' : 'inmigrate',
  });
  return { machine, memory, processors };
}

interface DeviceHostParts {
  readonly addon: KvmNode;
  readonly host: MachineHost;
  readonly irq: Interrupts;
  readonly bus: Bus;
  readonly memory: Memory;
  readonly vm: Vm;
  readonly requests: GuestRequests;
}

function makeDeviceHost({ addon, host, irq, bus, memory, vm, requests }: DeviceHostParts): DeviceHost {
  return {
    log: host.log,
    irq,
    bus,
    memory,
    ram: memory.ram,
    slots: memory,
    kvmVfio: vm.kvmVfio,
    now: () => process.hrtime.bigint(),
    requestReset: (reason) => requests.requestReset(reason),
    requestEnd: (reason, exitCode) => requests.requestEnd(reason, exitCode),
    watch: (fd, callback) => addon.watchEvent(fd, callback),
  };
}
