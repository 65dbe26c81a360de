// The addon usable by itself: a whole VM in a few lines, and what openKvm says when there is no KVM to be had.
import { closeSync, openSync } from 'node:fs';
import { expect, it } from 'vitest';
import { KVM_CAP_USER_MEMORY, KVM_EXIT_IO, kvm_run } from '../../native/abi/kvm.ts';
import { kvmNode, openKvm, readRegisters, setRealModeSegments, VmmError, writeRegisters } from '../../native/index.ts';
import { hasKvm } from './native-guest.ts';

it.skipIf(!hasKvm)('a guest of four instructions says "Hi" to a port that TypeScript answers', async () => {
  const kvm = openKvm();
  const vm = kvm.createVm();
  const ram = kvmNode().createRam(4096, { hugePages: false, populate: false });
  // out %al, $0xe9; mov %bl, %al; out %al, $0xe9; hlt
  ram.copyIn(0, Uint8Array.of(0xe6, 0xe9, 0x88, 0xd8, 0xe6, 0xe9, 0xf4));
  vm.setSlot({ slot: 0, gpa: 0x1000, size: 4096, backing: ram, offset: 0, readOnly: false, logDirty: false });
  let text = '';
  let halted = () => {};
  const end = new Promise<void>((resolve) => {
    halted = resolve;
  });
  const loop = kvmNode().createVcpuLoop(
    {
      exit() {
        const port = run.getUint32(kvm_run.exit_reason, true) === KVM_EXIT_IO;
        if (port) text += String.fromCharCode(run.getUint8(Number(run.getBigUint64(kvm_run.io.data_offset, true))));
        else halted();
        return port;
      },
      posted() {},
      failed: (_index, errno) => expect.unreachable(`KVM_RUN: errno ${errno}`),
    },
    { hotWindowUs: 0 },
  );
  const vcpu = loop.addVcpu(vm.fd, 0, kvm.runSize);
  const run = new DataView(vcpu.run);
  setRealModeSegments(vcpu.fd, 0);
  writeRegisters(vcpu.fd, { rip: 0x1000n, rax: 0x48n, rbx: 0x69n, rflags: 2n });
  loop.start();
  await end;
  expect(text).toBe('Hi');
  expect(kvm.check(KVM_CAP_USER_MEMORY)).toBe(1);
  await loop.pause();
  expect(readRegisters(vcpu.fd).rip).toBe(0x1007n);
  await loop.close();
  vm.close();
  kvm.close();
  ram.close();
});

it.skipIf(!hasKvm)('slots: memory that comes and goes, a slot beyond its backing is refused', () => {
  const kvm = openKvm();
  const vm = kvm.createVm();
  const ram = kvmNode().createRam(65536, { hugePages: false, populate: false });
  const slot = { slot: 0, gpa: 0, size: 65536, backing: ram, offset: 0, readOnly: false, logDirty: true };
  vm.setSlot(slot);
  expect(() => vm.setSlot({ ...slot, slot: 1, gpa: 4096 })).toThrow('KVM_SET_USER_MEMORY_REGION: EEXIST');
  expect(() => vm.setSlot({ ...slot, slot: 1, gpa: 2 ** 20, offset: 4096 })).toThrow(RangeError);
  vm.removeSlot(0);
  vm.setSlot({ ...slot, slot: 1, gpa: 4096 });
  vm.close();
  kvm.close();
  ram.close();
});

it('says what to do when there is no /dev/kvm, and when it is something else', () => {
  expect(() => openKvm('/dev/no-such-kvm')).toThrow(VmmError);
  expect(() => openKvm('/dev/no-such-kvm')).toThrow(/no KVM: enable virtualisation.*ferry lab/);
  expect(() => openKvm('/dev/null')).toThrow('/dev/null is not KVM (KVM_GET_API_VERSION: ENOTTY)');
  const before = openSync('/dev/null', 'r');
  for (let i = 0; i < 3; i++) expect(() => openKvm('/dev/null')).toThrow();
  const after = openSync('/dev/null', 'r');
  expect(after).toBe(before + 1); // no fd is left behind
  closeSync(before);
  closeSync(after);
});
