// The door to native/ for whoever uses the KVM binding by itself: the addon and the small typed KVM over it. The rooms above import the
// files they mean; this is the only index.ts of the tree.
export { kvmNode } from './addon.ts';
export { SysError, VmmError } from './errno.ts';
export { type Kvm, openKvm, readRegisters, setRealModeSegments, type Vm, writeRegisters } from './kvm.ts';
