// ioctlAsync with calls that really block: KVM_RUN of guests that spin until memory tells them to stop. The JS thread and Node's own
// thread pool (four threads: one blocking call each would stop all of fs) go on meanwhile.
import { readFile } from 'node:fs/promises';
import { expect, it } from 'vitest';
import * as abi from '../../native/abi/kvm.ts';
import { kvmNode } from '../../native/addon.ts';
import { openKvm, setRealModeSegments, writeRegisters } from '../../native/kvm.ts';
import { assemble, CODE_AT, hasKvm } from './native-guest.ts';

const BLOCKED_CALLS = 6;

it.skipIf(!hasKvm)('six blocked ioctls hold up neither the JS thread nor fs', async () => {
  const addon = kvmNode();
  const kvm = openKvm();
  const vm = kvm.createVm();
  addon.ioctl('KVM_SET_TSS_ADDR', vm.fd, abi.KVM_SET_TSS_ADDR, 0xfffbd000);
  const ram = addon.createRam(65536, { hugePages: false, populate: false });
  ram.copyIn(CODE_AT, assemble(['1: pause\n cmpb $0, 0x2000\n je 1b\n hlt']));
  vm.setSlot({ slot: 0, gpa: 0, size: 65536, backing: ram, offset: 0, readOnly: false, logDirty: false });
  const fds = Array.from({ length: BLOCKED_CALLS }, (_, index) => {
    const fd = addon.ioctl('KVM_CREATE_VCPU', vm.fd, abi.KVM_CREATE_VCPU, index);
    setRealModeSegments(fd, 0);
    writeRegisters(fd, { rip: BigInt(CODE_AT), rflags: 2n });
    return fd;
  });
  let ended = 0;
  const runs = fds.map((fd) =>
    addon.ioctlAsync('KVM_RUN', fd, abi.KVM_RUN, 0).then((result) => {
      ended++;
      return result;
    }),
  );
  for (let i = 0; i < 10; i++) expect((await readFile('/proc/self/stat')).length).toBeGreaterThan(0);
  expect(ended).toBe(0);
  ram.copyIn(0x2000, Uint8Array.of(1));
  expect(await Promise.all(runs)).toEqual(fds.map(() => 0));
  for (const fd of fds) addon.closeFd(fd);
  vm.close();
  kvm.close();
  ram.close();
});
