// One VM of KVM: its fd with the in-kernel interrupt controllers and PIT, and what this KVM can do. Made by
// machine.ts and cpu-contract.ts; JS thread. Spec: KVM api.rst, sections 3 to 5.
import {
  KVM_CAP_IRQ_ROUTING,
  KVM_CAP_NR_MEMSLOTS,
  KVM_CAP_SREGS2,
  KVM_CAP_TSC_CONTROL,
  KVM_CAP_TSC_DEADLINE_TIMER,
  KVM_CAP_XCRS,
  KVM_CAP_XSAVE2,
  KVM_CREATE_DEVICE,
  KVM_CREATE_IRQCHIP,
  KVM_CREATE_PIT2,
  KVM_DEV_TYPE_VFIO,
  KVM_DEV_VFIO_FILE,
  KVM_DEV_VFIO_FILE_ADD,
  KVM_DEV_VFIO_FILE_DEL,
  KVM_ENABLE_CAP,
  KVM_PIT_SPEAKER_DUMMY,
  KVM_SET_DEVICE_ATTR,
  KVM_SET_IDENTITY_MAP_ADDR,
  KVM_SET_TSS_ADDR,
  kvm_create_device,
  kvm_device_attr,
  kvm_enable_cap,
  kvm_pit_config,
} from '../native/abi/kvm.ts';
import type { KvmNode } from '../native/addon.ts';
import { type Kvm, openKvm, type Vm as VmFd } from '../native/kvm.ts';
import { IDENTITY_MAP_ADDR, TSS_ADDR } from './layout.ts';

const XSAVE_SIZE = 4096;

/** What this KVM offers, as far as it makes a difference here. */
export interface KvmAbilities {
  readonly sregs2: boolean;
  readonly xcrs: boolean;
  readonly xsaveSize: number;
  readonly tscControl: boolean;
  readonly tscDeadlineTimer: boolean;
  readonly memorySlots: number;
  readonly gsis: number;
}

export class Vm {
  /** Of /dev/kvm and of the VM. */
  readonly kvm: number;
  readonly fd: number;
  readonly runSize: number;
  readonly slots: Pick<VmFd, 'setSlot' | 'removeSlot'>;
  readonly abilities: KvmAbilities;
  readonly #addon: KvmNode;
  readonly #device: Kvm;
  readonly #vm: VmFd;
  #vfio: number | null = null;

  constructor(addon: KvmNode) {
    this.#addon = addon;
    this.#device = openKvm();
    try {
      this.#vm = this.#device.createVm();
    } catch (error) {
      this.#device.close();
      throw error;
    }
    this.kvm = this.#device.fd;
    this.fd = this.#vm.fd;
    this.runSize = this.#device.runSize;
    this.slots = this.#vm;
    this.abilities = this.#readAbilities();
    this.#board();
  }

  /** KVM_DEV_TYPE_VFIO, made when the first group comes: KVM then knows of the device's DMA coherency. linux vfio.rst of KVM. */
  readonly kvmVfio = {
    add: (fd: number) => this.#vfioFile(KVM_DEV_VFIO_FILE_ADD, fd),
    remove: (fd: number) => this.#vfioFile(KVM_DEV_VFIO_FILE_DEL, fd),
  };

  check(capability: number): number {
    return this.#vm.check(capability);
  }

  /** KVM_ENABLE_CAP of the VM, with one argument. */
  enable(name: string, capability: number, argument: number): void {
    const bytes = new Uint8Array(kvm_enable_cap.size);
    const view = new DataView(bytes.buffer);
    view.setUint32(kvm_enable_cap.cap, capability, true);
    view.setBigUint64(kvm_enable_cap.args, BigInt(argument), true);
    this.#addon.ioctl(`KVM_ENABLE_CAP(${name})`, this.fd, KVM_ENABLE_CAP, bytes);
  }

  close(): void {
    if (this.#vfio !== null) this.#addon.closeFd(this.#vfio);
    this.#vm.close();
    this.#device.close();
  }

  #readAbilities(): KvmAbilities {
    const check = (capability: number) => this.#vm.check(capability);
    return {
      sregs2: check(KVM_CAP_SREGS2) > 0,
      xcrs: check(KVM_CAP_XCRS) > 0,
      xsaveSize: Math.max(XSAVE_SIZE, check(KVM_CAP_XSAVE2)),
      tscControl: check(KVM_CAP_TSC_CONTROL) > 0,
      tscDeadlineTimer: check(KVM_CAP_TSC_DEADLINE_TIMER) > 0,
      memorySlots: check(KVM_CAP_NR_MEMSLOTS),
      gsis: check(KVM_CAP_IRQ_ROUTING),
    };
  }

  /** All before the first vCPU: KVM wants the irqchip to be there when vCPUs get their LAPICs. */
  #board(): void {
    const identity = new Uint8Array(8);
    new DataView(identity.buffer).setBigUint64(0, BigInt(IDENTITY_MAP_ADDR), true);
    this.#addon.ioctl('KVM_SET_IDENTITY_MAP_ADDR', this.fd, KVM_SET_IDENTITY_MAP_ADDR, identity);
    this.#addon.ioctl('KVM_SET_TSS_ADDR', this.fd, KVM_SET_TSS_ADDR, TSS_ADDR);
    this.#addon.ioctl('KVM_CREATE_IRQCHIP', this.fd, KVM_CREATE_IRQCHIP, 0);
    const pit = new Uint8Array(kvm_pit_config.size);
    // Port 0x61 too: Linux calibrates its TSC by it.
    new DataView(pit.buffer).setUint32(kvm_pit_config.flags, KVM_PIT_SPEAKER_DUMMY, true);
    this.#addon.ioctl('KVM_CREATE_PIT2', this.fd, KVM_CREATE_PIT2, pit);
  }

  #vfioFile(attribute: number, fd: number): void {
    if (this.#vfio === null) {
      const create = new Uint8Array(kvm_create_device.size);
      const view = new DataView(create.buffer);
      view.setUint32(kvm_create_device.type, KVM_DEV_TYPE_VFIO, true);
      this.#addon.ioctl('KVM_CREATE_DEVICE', this.fd, KVM_CREATE_DEVICE, create);
      this.#vfio = view.getUint32(kvm_create_device.fd, true);
    }
    const bytes = new Uint8Array(kvm_device_attr.size);
    const view = new DataView(bytes.buffer);
    view.setUint32(kvm_device_attr.group, KVM_DEV_VFIO_FILE, true);
    view.setBigUint64(kvm_device_attr.attr, BigInt(attribute), true);
    const file = new Uint8Array(4);
    new DataView(file.buffer).setInt32(0, fd, true);
    const patches = [{ at: kvm_device_attr.addr, bytes: file }];
    this.#addon.ioctl('KVM_DEV_VFIO_FILE', this.#vfio, KVM_SET_DEVICE_ATTR, bytes, patches);
  }
}
