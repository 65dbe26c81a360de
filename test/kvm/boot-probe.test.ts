// Rules: the probe says of this host's KVM what its CPU says (a host without vmx or svm only interprets ring 0), leaves no fd behind,
// and KVM takes the CPUID that we make for every vCPU of 1 to 16.
import { closeSync, existsSync, openSync, readdirSync, readFileSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  KVM_CREATE_VCPU,
  KVM_CREATE_VM,
  KVM_GET_SUPPORTED_CPUID,
  KVM_SET_CPUID2,
  kvm_cpuid_entry2,
  kvm_cpuid2,
} from '../../native/abi/kvm.ts';
import { kvmNode } from '../../native/addon.ts';
import type { CpuidEntry } from '../../vmm/api.ts';
import { cpuidOfVcpu, guestCpuid } from '../../vmm/boot/cpuid.ts';
import { probeKvm } from '../../vmm/boot/probe.ts';

const FIELDS = ['function', 'index', 'flags', 'eax', 'ebx', 'ecx', 'edx'] as const;

function decode(bytes: Uint8Array): CpuidEntry[] {
  const view = new DataView(bytes.buffer);
  return Array.from({ length: view.getUint32(0, true) }, (_, i) => {
    const at = kvm_cpuid2.entries + i * kvm_cpuid_entry2.size;
    const entry = Object.fromEntries(FIELDS.map((f) => [f, view.getUint32(at + kvm_cpuid_entry2[f], true)]));
    return entry as unknown as CpuidEntry;
  });
}

function encode(entries: readonly CpuidEntry[]): Uint8Array {
  const view = new DataView(new ArrayBuffer(kvm_cpuid2.entries + entries.length * kvm_cpuid_entry2.size));
  view.setUint32(0, entries.length, true);
  for (const [i, entry] of entries.entries()) {
    const at = kvm_cpuid2.entries + i * kvm_cpuid_entry2.size;
    for (const f of FIELDS) view.setUint32(at + kvm_cpuid_entry2[f], entry[f], true);
  }
  return new Uint8Array(view.buffer);
}

const hasKvm = existsSync('/dev/kvm');
if (!hasKvm) console.log('skipped: there is no /dev/kvm');

describe.skipIf(!hasKvm)('KVM probe and CPUID on /dev/kvm', () => {
  let kvm = -1;
  let supported: CpuidEntry[] = [];
  beforeAll(() => {
    kvm = openSync('/dev/kvm', 'r+');
    const bytes = new Uint8Array(kvm_cpuid2.entries + 256 * kvm_cpuid_entry2.size);
    new DataView(bytes.buffer).setUint32(0, 256, true);
    kvmNode().ioctl('KVM_GET_SUPPORTED_CPUID', kvm, KVM_GET_SUPPORTED_CPUID, bytes);
    supported = decode(bytes);
  });
  afterAll(() => closeSync(kvm));

  test('the probe agrees with the CPU, and leaves nothing open', async () => {
    const cpuid = encode(guestCpuid(supported, { cpus: 1, tscDeadlineTimer: false, xsave: true }));
    await probeKvm(kvmNode(), kvm, cpuid);
    const before = readdirSync('/proc/self/fd').length;
    const { weakness: answer } = await probeKvm(kvmNode(), kvm, cpuid);
    expect(readdirSync('/proc/self/fd').length).toBe(before);
    const isHardware = /^flags\s.*\b(vmx|svm)\b/m.test(readFileSync('/proc/cpuinfo', 'utf8'));
    if (isHardware) expect(answer).toBeNull();
    else expect(answer).toMatch(/cannot run Linux.*`ferry lab up`/);
  });

  test.each([1, 3, 16])('KVM takes our CPUID for each of %i vCPUs', (cpus) => {
    const entries = guestCpuid(supported, { cpus, tscDeadlineTimer: true, xsave: true });
    const vm = kvmNode().ioctl('KVM_CREATE_VM', kvm, KVM_CREATE_VM, 0);
    for (let index = 0; index < cpus; index++) {
      const vcpu = kvmNode().ioctl('KVM_CREATE_VCPU', vm, KVM_CREATE_VCPU, index);
      kvmNode().ioctl('KVM_SET_CPUID2', vcpu, KVM_SET_CPUID2, encode(cpuidOfVcpu(entries, index)));
      kvmNode().closeFd(vcpu);
    }
    kvmNode().closeFd(vm);
  });
});
