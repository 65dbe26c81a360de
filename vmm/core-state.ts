// The state that KVM keeps for a machine: vCPUs (vcpu-state.ts), PIC, IOAPIC, PIT, TSC offsets and clock, in an order where each step has
// its reason. Called by machine.ts while all vCPU threads are parked; JS thread. Spec: KVM api.rst, section 4; vcpu.rst, KVM_VCPU_TSC_CTRL.
import {
  KVM_GET_CLOCK,
  KVM_GET_DEVICE_ATTR,
  KVM_GET_IRQCHIP,
  KVM_GET_PIT2,
  KVM_IRQCHIP_IOAPIC,
  KVM_IRQCHIP_PIC_MASTER,
  KVM_IRQCHIP_PIC_SLAVE,
  KVM_KVMCLOCK_CTRL,
  KVM_SET_CLOCK,
  KVM_SET_DEVICE_ATTR,
  KVM_SET_IRQCHIP,
  KVM_SET_PIT2,
  KVM_VCPU_TSC_CTRL,
  KVM_VCPU_TSC_OFFSET,
  kvm_clock_data,
  kvm_device_attr,
  kvm_irqchip,
  kvm_pit_state2,
} from '../native/abi/kvm.ts';
import type { KvmNode } from '../native/addon.ts';
import { StateError, SysError } from '../native/errno.ts';
import type { CoreState } from './api.ts';
import { getStruct, type StructIoctl, setStruct } from './kvm-struct.ts';
import { checkVcpu, loadVcpu, saveVcpu, type VcpuAbilities, type VcpuState } from './vcpu-state.ts';

const IRQCHIP: StructIoctl = { name: 'IRQCHIP', get: KVM_GET_IRQCHIP, set: KVM_SET_IRQCHIP, size: kvm_irqchip.size };
const PIT2: StructIoctl = { name: 'PIT2', get: KVM_GET_PIT2, set: KVM_SET_PIT2, size: kvm_pit_state2.size };
const CLOCK: StructIoctl = { name: 'CLOCK', get: KVM_GET_CLOCK, set: KVM_SET_CLOCK, size: kvm_clock_data.size };
/** Master before slave before IOAPIC; each says in its first word which it is. */
const CHIPS = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC] as const;

/** The parts of the machine that hold this state. */
export interface CoreParts {
  readonly addon: Pick<KvmNode, 'ioctl'>;
  readonly vm: number;
  readonly vcpus: readonly number[];
  readonly abilities: VcpuAbilities;
}

interface Checked {
  readonly vcpus: readonly VcpuState[];
  readonly irqchips: readonly Uint8Array[];
  readonly pit: Uint8Array;
  /** TSC of vCPU i minus TSC of vCPU 0. */
  readonly tscDeltas: readonly bigint[];
  readonly clockNs: bigint;
}

/** `clockNs`: kvmclock as it stood when the pause began. */
export function saveCore(parts: CoreParts, clockNs: bigint): CoreState {
  const { addon, vm } = parts;
  // The timers tick on while the vCPUs stand still, and their interrupts flow PIT -> PIC and IOAPIC -> LAPIC. Saved in the direction of
  // the flow, a tick in between may be seen twice, which a guest takes for latency; the other way it would be lost.
  const pit = getStruct(addon, vm, PIT2);
  const irqchips = CHIPS.map((chip) =>
    getStruct(addon, vm, IRQCHIP, (bytes) => putWord(bytes, kvm_irqchip.chip_id, chip)),
  );
  const vcpus = parts.vcpus.map((fd) => saveVcpu(addon, fd, parts.abilities));
  const offsets = parts.vcpus.map((fd) => tscOffset(addon, fd));
  const first = offsets[0] ?? null;
  const tscDeltas = offsets.map((offset) => (offset === null || first === null ? 0n : offset - first));
  return { vcpus, irqchips, pit, tscDeltas, clockNs };
}

/** Looks at all of it before it changes anything; returns the saved kvmclock. `tsc`: false for a reset. */
export function loadCore(parts: CoreParts, state: CoreState, options: { tsc: boolean }): bigint {
  const checked = checkCore(parts, state);
  const { addon, vm } = parts;
  for (const [index, vcpu] of checked.vcpus.entries()) {
    loadVcpu(addon, parts.vcpus[index]!, vcpu, { sregs2: parts.abilities.sregs2, tsc: options.tsc });
  }
  // Each vCPU's TSC was read a little later than the one before. As offsets they are exact, and a guest's vCPUs agree again.
  if (options.tsc) restoreTscDeltas(parts, checked);
  // The IOAPIC after the LAPICs: loading it delivers what is pending into them.
  try {
    for (const chip of checked.irqchips) setStruct(addon, vm, IRQCHIP, chip);
    // The PIT after the chips: it may tick at once.
    setStruct(addon, vm, PIT2, checked.pit);
  } catch (cause) {
    throw new StateError('this KVM refuses the saved interrupt controllers', { cause });
  }
  return checked.clockNs;
}

function checkCore(parts: CoreParts, state: CoreState): Checked {
  const { vcpus, irqchips, pit, tscDeltas, clockNs } = state;
  const count = parts.vcpus.length;
  if (!Array.isArray(vcpus) || vcpus.length !== count) throw new StateError(`core: the state of ${count} vCPUs wanted`);
  if (!Array.isArray(irqchips) || irqchips.length !== CHIPS.length) throw new StateError('core: three irqchips wanted');
  for (const [index, chip] of irqchips.entries()) {
    if (!(chip instanceof Uint8Array) || chip.length !== kvm_irqchip.size) {
      throw new StateError(`core: irqchip ${index} should be ${kvm_irqchip.size} bytes`);
    }
    if (getWord(chip, kvm_irqchip.chip_id) !== CHIPS[index])
      throw new StateError(`core: irqchip ${index} says it is another`);
  }
  if (!(pit instanceof Uint8Array) || pit.length !== kvm_pit_state2.size) throw new StateError('core: no PIT state');
  if (!Array.isArray(tscDeltas) || tscDeltas.length !== count)
    throw new StateError('core: a TSC difference a vCPU wanted');
  const deltas = tscDeltas.map(asBigint);
  if (deltas.some((delta) => BigInt.asIntN(64, delta) !== delta))
    throw new StateError('core: TSC difference out of range');
  const clock = asBigint(clockNs);
  if (clock < 0n || clock >= 2n ** 63n) throw new StateError('core: the clock is out of range');
  return {
    vcpus: vcpus.map((vcpu, index) => checkVcpu(vcpu, index, parts.abilities)),
    irqchips,
    pit,
    tscDeltas: deltas,
    clockNs: clock,
  };
}

function asBigint(value: unknown): bigint {
  if (typeof value === 'bigint') return value;
  // msgpack has one kind of integer; small ones may come back as numbers.
  if (typeof value === 'number' && Number.isSafeInteger(value)) return BigInt(value);
  throw new StateError('core: a number wanted');
}

/** KVM's clock: what the guest's kvmclock shows, nanoseconds. */
export function readClock(parts: Pick<CoreParts, 'addon' | 'vm'>): bigint {
  const bytes = getStruct(parts.addon, parts.vm, CLOCK);
  return new DataView(bytes.buffer).getBigUint64(kvm_clock_data.clock, true);
}

export function writeClock(parts: Pick<CoreParts, 'addon' | 'vm'>, ns: bigint): void {
  const bytes = new Uint8Array(kvm_clock_data.size);
  new DataView(bytes.buffer).setBigUint64(kvm_clock_data.clock, ns, true);
  setStruct(parts.addon, parts.vm, CLOCK, bytes);
}

/** Tells the guest's soft-lockup watchdog that it was paused. EINVAL: this guest has not switched kvmclock on. */
export function announcePause(parts: CoreParts): void {
  for (const fd of parts.vcpus) {
    try {
      parts.addon.ioctl('KVM_KVMCLOCK_CTRL', fd, KVM_KVMCLOCK_CTRL, 0);
    } catch (error) {
      if (!(error instanceof SysError && error.code === 'EINVAL')) throw error;
    }
  }
}

function restoreTscDeltas(parts: CoreParts, checked: Checked): void {
  const first = parts.vcpus[0] === undefined ? null : tscOffset(parts.addon, parts.vcpus[0]);
  if (first === null) return;
  for (const [index, fd] of parts.vcpus.entries()) {
    if (index === 0) continue;
    const bytes = new Uint8Array(8);
    new DataView(bytes.buffer).setBigInt64(0, BigInt.asIntN(64, first + checked.tscDeltas[index]!), true);
    tscAttribute(parts.addon, fd, bytes, 'SET');
  }
}

/** Guest TSC minus host TSC; null where KVM (before 5.16) or the hardware has no such attribute. */
function tscOffset(addon: Pick<KvmNode, 'ioctl'>, vcpu: number): bigint | null {
  const bytes = new Uint8Array(8);
  try {
    tscAttribute(addon, vcpu, bytes, 'GET');
  } catch (error) {
    if (error instanceof SysError) return null;
    throw error;
  }
  return new DataView(bytes.buffer).getBigInt64(0, true);
}

function tscAttribute(addon: Pick<KvmNode, 'ioctl'>, vcpu: number, bytes: Uint8Array, way: 'GET' | 'SET'): void {
  const attribute = new Uint8Array(kvm_device_attr.size);
  const view = new DataView(attribute.buffer);
  view.setUint32(kvm_device_attr.group, KVM_VCPU_TSC_CTRL, true);
  view.setBigUint64(kvm_device_attr.attr, BigInt(KVM_VCPU_TSC_OFFSET), true);
  const request = way === 'GET' ? KVM_GET_DEVICE_ATTR : KVM_SET_DEVICE_ATTR;
  addon.ioctl(`KVM_${way}_DEVICE_ATTR`, vcpu, request, attribute, [{ at: kvm_device_attr.addr, bytes }]);
}

function putWord(bytes: Uint8Array, at: number, value: number): void {
  new DataView(bytes.buffer, bytes.byteOffset).setUint32(at, value, true);
}

function getWord(bytes: Uint8Array, at: number): number {
  return new DataView(bytes.buffer, bytes.byteOffset).getUint32(at, true);
}
