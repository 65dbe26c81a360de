// A machine's state taken out of one machine and put into another, in one process; and what core-state refuses. Rules: issue 2 item 4,
// main-job.md "Clock", vmm/vcpu-state.ts (each order there has its test here).
import { afterEach, describe, expect, it } from 'vitest';
import { KVM_CREATE_VCPU } from '../../native/abi/kvm.ts';
import { kvmNode } from '../../native/addon.ts';
import { StateError } from '../../native/errno.ts';
import { cpuidOfVcpu } from '../../vmm/boot/cpuid.ts';
import { type CoreParts, loadCore, readClock, saveCore, writeClock } from '../../vmm/core-state.ts';
import { compareContracts, hostCpuid, readContract, tscAgrees } from '../../vmm/cpu-contract.ts';
import { findMsr, IA32_TSC, IA32_TSC_DEADLINE, msrEntry, writeMsrs } from '../../vmm/msrs.ts';
import { setCpuid } from '../../vmm/vcpu.ts';
import type { VcpuState } from '../../vmm/vcpu-state.ts';
import { Vm } from '../../vmm/vm.ts';
import { bootFlat, type FlatMachine, type FlatOptions, flatConfig, incomingFlat } from './flat-machine.ts';

const addon = kvmNode();
const undo: (() => void | Promise<void>)[] = [];
afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step();
});

async function boot(guest: string, options: FlatOptions): Promise<FlatMachine> {
  const flat = await bootFlat(guest, options);
  undo.push(() => flat.machine.close());
  await flat.machine.start();
  return flat;
}

/** Everything of a paused machine into a new one: RAM, devices, core, as a migration would. */
async function move(from: FlatMachine, guest: string, options: FlatOptions): Promise<FlatMachine> {
  const to = await incomingFlat(flatConfig(guest, options), from.machine.cpuContract, options);
  undo.push(() => to.machine.close());
  const chunk = new Uint8Array(2 ** 20);
  for (let at = 0; at < from.machine.ram.size; at += chunk.length) {
    from.machine.ram.copyOut(at, chunk);
    to.machine.ram.copyIn(at, chunk);
  }
  const devices = from.machine.devices.map((device) => device.state?.save() ?? null);
  const core = from.machine.saveCore();
  for (const [index, device] of to.machine.devices.entries()) {
    if (device.state !== null) device.state.load(devices[index], device.state.version);
  }
  to.machine.loadCore(core);
  return to;
}

describe('a running guest moved between two machines', () => {
  it('goes on: its timer ticks, its pages verify, its clock never goes back', async () => {
    const options = { append: 'pages=64 tick=5000' };
    let flat = await boot('worker', options);
    await flat.said(/tick n=10 /);
    let console = '';
    for (let hop = 0; hop < 5; hop++) {
      await flat.machine.pause('finish-migrate');
      const next = await move(flat, 'worker', options);
      await flat.machine.close();
      console += flat.text();
      await next.machine.start();
      expect(next.machine.state).toBe('running');
      await next.said(/tick n=\d*5 /);
      flat = next;
    }
    flat.type('q');
    const verdict = await flat.said(/verdict ticks=(\d+) checks=(\d+) errors=(\d+) back=(\d+)/);
    expect(verdict.slice(3)).toEqual(['0', '0']);
    // A line may begin at the source and end at the destination, so the consoles are read as one.
    const numbers = [...(console + flat.text()).matchAll(/tick n=(\d+) /g)].map((match) => Number(match[1]));
    expect(numbers, 'no tick lost or repeated').toEqual(numbers.map((_, i) => numbers[0]! + i));
    expect(Number(verdict[2])).toBeGreaterThan(64);
  });

  it('four vCPUs agree on the clock before and after', async () => {
    const options = { append: 'cpus=4 rounds=400', cpus: 4 };
    const flat = await boot('smp', options);
    await new Promise((resolve) => setTimeout(resolve, 30));
    await flat.machine.pause('finish-migrate');
    const next = await move(flat, 'smp', options);
    await flat.machine.close();
    await next.machine.start();
    expect(await next.machine.ended).toMatchObject({ reason: 'guest-shutdown', exitCode: 1 });
    expect(flat.text() + next.text()).toMatch(/verdict cpus=4 reads=1600 back=0/);
  });

  it('the clock stands still in a pause; with catch-up it goes on', async () => {
    const seen = async (clock: 'stop' | 'catch-up') => {
      const flat = await boot('worker', { append: 'pages=8 tick=5000', clock });
      await flat.said(/tick n=3 /);
      await flat.machine.pause('paused');
      const before = Number(
        flat
          .text()
          .match(/ns=(\d+) /g)
          ?.at(-1)
          ?.slice(3),
      );
      await new Promise((resolve) => setTimeout(resolve, 1500));
      flat.skip();
      await flat.machine.start();
      // The line under way may tell of a clock read before the pause.
      await flat.said(/\n.*\n/);
      const after = Number((await flat.said(/tick n=\d+ ns=(\d+) /))[1]);
      return (after - before) / 1e6;
    };
    expect(await seen('stop')).toBeLessThan(1000);
    expect(await seen('catch-up')).toBeGreaterThan(1400);
  });
});

/** A VM with vCPUs and nothing else, for what only ioctls can show. */
function bare(cpus: number): CoreParts {
  const vm = new Vm(addon);
  undo.push(() => vm.close());
  const cpuid = hostCpuid(addon, vm, { cpus, xsave: true });
  const vcpus = Array.from({ length: cpus }, (_, index) => {
    const fd = addon.ioctl('KVM_CREATE_VCPU', vm.fd, KVM_CREATE_VCPU, index);
    undo.push(() => addon.closeFd(fd));
    setCpuid(addon, fd, cpuidOfVcpu(cpuid, index));
    return fd;
  });
  const { msrs } = readContract(addon, vm, vcpus[0]!, cpuid);
  return { addon, vm: vm.fd, vcpus, abilities: { ...vm.abilities, msrs } };
}

const vcpuOf = (state: ReturnType<typeof saveCore>, index = 0) => (state['vcpus'] as VcpuState[])[index]!;
const TIMER_DEADLINE_MASKED = 0x50030; // LVT timer: TSC-deadline mode (bits 18:17 = 10b), masked, vector 0x30. SDM 3, 11.5.1

describe('order of loading', () => {
  it('an armed TSC deadline survives: LAPIC in deadline mode before the deadline is written', () => {
    const from = bare(1);
    const armed = saveCore(from, 0n);
    const lapic = new Uint8Array(vcpuOf(armed).lapic);
    new DataView(lapic.buffer).setUint32(0x320, TIMER_DEADLINE_MASKED, true);
    const state = { ...armed, vcpus: [{ ...vcpuOf(armed), lapic }] };
    loadCore(from, state, { tsc: true });
    const deadline = findMsr(vcpuOf(armed).msrs, IA32_TSC)! + 10n ** 13n;
    writeMsrs(addon, from.vcpus[0]!, msrEntry(IA32_TSC_DEADLINE, deadline));
    const saved = saveCore(from, 0n);
    expect(findMsr(vcpuOf(saved).msrs, IA32_TSC_DEADLINE), 'armed at the source').toBe(deadline);
    const to = bare(1);
    loadCore(to, saved, { tsc: true });
    expect(findMsr(vcpuOf(saveCore(to, 0n)).msrs, IA32_TSC_DEADLINE)).toBe(deadline);
  });

  it('TSCs go on from their saved values, and those of all vCPUs agree', () => {
    const from = bare(4);
    const saved = saveCore(from, 0n);
    const to = bare(4);
    loadCore(to, saved, { tsc: true });
    const loaded = saveCore(to, 0n);
    expect(loaded['tscDeltas']).toEqual(saved['tscDeltas']);
    const before = findMsr(vcpuOf(saved).msrs, IA32_TSC)!;
    const after = findMsr(vcpuOf(loaded).msrs, IA32_TSC)!;
    expect(after).toBeGreaterThan(before);
    expect(after - before).toBeLessThan(10n ** 10n);
  });

  it('what was loaded is what is saved again, but for what runs on by itself', () => {
    const from = bare(2);
    const saved = saveCore(from, 77n);
    const to = bare(2);
    expect(loadCore(to, saved, { tsc: true })).toBe(77n);
    const again = saveCore(to, 77n);
    for (const index of [0, 1]) {
      const { msrs: _a, ...one } = vcpuOf(saved, index);
      const { msrs: _b, ...two } = vcpuOf(again, index);
      expect(two).toEqual(one);
    }
    expect(again['irqchips']).toEqual(saved['irqchips']);
  });

  it('the clock is set to what was saved', () => {
    const parts = bare(1);
    writeClock(parts, 123_000_000_000n);
    const now = readClock(parts);
    expect(now).toBeGreaterThanOrEqual(123_000_000_000n);
    expect(now).toBeLessThan(133_000_000_000n);
  });
});

describe('garbage', () => {
  it('is a StateError, and nothing has been changed by it', () => {
    const parts = bare(2);
    const saved = saveCore(parts, 1n);
    const first = vcpuOf(saved);
    const vcpus = saved['vcpus'] as VcpuState[];
    const withVcpu = (change: object) => ({ ...saved, vcpus: [vcpus[0], { ...vcpus[1], ...change }] });
    const wrong: Record<string, unknown>[] = [
      {},
      { ...saved, vcpus: [first] },
      { ...saved, vcpus: 'x' },
      { ...saved, irqchips: [] },
      { ...saved, irqchips: [...(saved['irqchips'] as Uint8Array[])].reverse() },
      { ...saved, pit: new Uint8Array(3) },
      { ...saved, tscDeltas: [0n] },
      { ...saved, tscDeltas: [0n, 2n ** 70n] },
      { ...saved, clockNs: -1n },
      { ...saved, clockNs: 'now' },
      withVcpu({ regs: new Uint8Array(10) }),
      withVcpu({ lapic: null }),
      withVcpu({ mpState: new Uint8Array([9, 0, 0, 0]) }),
      withVcpu({ msrs: new Uint8Array(15) }),
      withVcpu({ msrs: msrEntry(0xdead_beef, 1n) }),
      withVcpu({ xcrs: new Uint8Array(392).fill(0xff) }),
    ];
    const marked = new Uint8Array(first.regs);
    new DataView(marked.buffer).setBigUint64(0, 0x1234n, true);
    loadCore(parts, { ...saved, vcpus: [{ ...first, regs: marked }, vcpus[1]] }, { tsc: false });
    for (const [index, state] of wrong.entries()) {
      expect(() => loadCore(parts, state, { tsc: true }), `case ${index}`).toThrow(StateError);
      expect(vcpuOf(saveCore(parts, 0n)).regs, `case ${index}`).toEqual(marked);
    }
  });
});

describe('CpuContract', () => {
  it('this host fits itself; what it lacks is named', () => {
    const vm = new Vm(addon);
    undo.push(() => vm.close());
    const cpuid = hostCpuid(addon, vm, { cpus: 1, xsave: true });
    const fd = addon.ioctl('KVM_CREATE_VCPU', vm.fd, KVM_CREATE_VCPU, 0);
    undo.push(() => addon.closeFd(fd));
    setCpuid(addon, fd, cpuid);
    const here = readContract(addon, vm, fd, cpuid);
    expect(compareContracts(here, here, false)).toEqual([]);
    const without = (leaf: number, register: 'ecx' | 'edx', bit: number) => ({
      ...here,
      cpuid: cpuid.map((entry) =>
        entry.function === leaf ? { ...entry, [register]: entry[register] & ~(1 << bit) } : entry,
      ),
    });
    expect(compareContracts(here, without(1, 'edx', 26), false)).toEqual([
      'the CPU here (as KVM offers it) lacks sse2',
    ]);
    const lacks = compareContracts(
      { ...here, msrs: [...here.msrs, 0x4242], xcr0: here.xcr0 | (2n ** 60n) },
      here,
      false,
    );
    expect(lacks.join('\n')).toMatch(/XCR0[\s\S]*0x4242/);
  });

  it('a TSC more than 250 ppm away is refused unless KVM scales', () => {
    expect([tscAgrees(2_000_000, 2_000_500), tscAgrees(2_000_000, 2_000_501)]).toEqual([true, false]);
    const contract = { cpuid: [], xcr0: 0n, xsaveSize: 4096, msrs: [], tscKhz: 2_000_000 };
    const other = { ...contract, tscKhz: 2_001_000 };
    expect(compareContracts(contract, other, false)).toHaveLength(1);
    expect(compareContracts(contract, other, true)).toEqual([]);
  });
});
