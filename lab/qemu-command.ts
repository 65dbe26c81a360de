// The command line of the QEMU that is a lab host, and the PCI devices in it. Pure; called by lab/host.ts. TCG with SVM and an emulated
// VT-d. `-smp 1`: QEMU 7.2's multi-threaded TCG loses writes to code that another CPU patches, which kills a Linux with two CPUs in seconds.
import { join } from 'node:path';

export type LabDeviceKind = 'edu' | 'nvme' | 'e1000e' | 'bochs-display';

export interface LabDevice {
  readonly kind: LabDeviceKind;
  /** Its address in the lab host: 0000:00:11.0. */
  readonly bdf: string;
  /** QEMU's id. */
  readonly id: string;
}

export interface HostPlan {
  readonly name: string;
  /** 0 or 1: which end of the link. */
  readonly index: number;
  readonly dir: string;
  /** vmlinux (entered by PVH) or bzImage. */
  readonly kernel: string;
  readonly initrd: string;
  readonly repo: string;
  readonly cache: string;
  readonly memoryMiB: number;
  readonly devices: readonly LabDevice[];
  /** The socket of the link to the other host; null: none. */
  readonly linkSocket: string | null;
  readonly extra: readonly string[];
}

const FIRST_SLOT: Record<LabDeviceKind, number> = { nvme: 0x10, edu: 0x11, e1000e: 0x12, 'bochs-display': 0x13 };
const FURTHER_SLOTS = 0x14;

/** Gives each device its slot: the first of a kind has a fixed one, further ones come after. */
export function placeDevices(kinds: readonly LabDeviceKind[]): LabDevice[] {
  let next = FURTHER_SLOTS;
  const seen = new Map<LabDeviceKind, number>();
  return kinds.map((kind) => {
    const count = seen.get(kind) ?? 0;
    seen.set(kind, count + 1);
    const slot = count === 0 ? FIRST_SLOT[kind] : next++;
    return { kind, bdf: `0000:00:${slot.toString(16).padStart(2, '0')}.0`, id: `${kind}${count}` };
  });
}

/** Files that have to exist before QEMU starts: path and size. */
export function backingFiles(plan: HostPlan): { path: string; size: number }[] {
  return plan.devices
    .filter((each) => each.kind === 'nvme')
    .map((each) => ({ path: join(plan.dir, `${each.id}.img`), size: 64 << 20 }));
}

function deviceArguments(plan: HostPlan, { kind, bdf, id }: LabDevice): string[] {
  const at = `addr=${bdf.slice(8)}`;
  switch (kind) {
    case 'edu':
      // The default mask of 28 bits would reach 256 MiB only.
      return ['-device', `edu,id=${id},${at},dma_mask=0xffffffffffffffff`];
    case 'nvme':
      return [
        '-drive',
        `file=${join(plan.dir, `${id}.img`)},if=none,id=${id}-drive,format=raw,cache=writeback`,
        '-device',
        `nvme,id=${id},drive=${id}-drive,serial=${id},${at}`,
      ];
    case 'e1000e':
      return ['-netdev', `user,id=${id}-net,restrict=on`, '-device', `e1000e,id=${id},netdev=${id}-net,${at},romfile=`];
    case 'bochs-display':
      return ['-device', `bochs-display,id=${id},${at}`];
  }
}

function share(tag: string, path: string, options: string): string[] {
  return [
    '-fsdev',
    `local,id=${tag},path=${path},security_model=none,multidevs=remap${options}`,
    '-device',
    `virtio-9p-pci,fsdev=${tag},mount_tag=${tag}`,
  ];
}

function linkArguments(plan: HostPlan): string[] {
  if (plan.linkSocket === null) return [];
  const server = plan.index === 0 ? 'on' : 'off';
  return [
    '-netdev',
    `stream,id=link,server=${server},addr.type=unix,addr.path=${plan.linkSocket}`,
    '-device',
    `virtio-net-pci,id=link-nic,netdev=link,mac=52:54:00:00:02:1${plan.index + 1},romfile=`,
  ];
}

/**
 * Without ERMS the kernels of the lab host and of its guests clear and copy memory by the word: TCG runs `rep stosb` and `rep movsb` a byte
 * at a time (measured: clearing pages 4 times slower, read(2) 25 times). Specs: Intel SDM 2A, CPUID 7 ebx bit 9.
 */
const CPU = 'max,+svm,+npt,-erms';

/** no_timer_check: on a busy machine the kernel's short test of the timer interrupt sees none and panics (Linux kernel-parameters.txt). */
const APPEND = 'console=ttyS0 panic=-1 oops=panic intel_iommu=on iommu=pt quiet no_timer_check';

/** Everything after the program's name. */
export function qemuArguments(plan: HostPlan): string[] {
  return [
    ...['-name', plan.name, '-nodefaults', '-nographic', '-no-reboot'],
    ...['-accel', 'tcg,thread=multi', '-smp', '1', '-M', 'q35', '-cpu', CPU, '-m', `${plan.memoryMiB}M`],
    ...['-serial', `file:${join(plan.dir, 'serial.log')}`],
    // QEMU serves one client a socket: the first is the owner's, the second is for `ferry lab link` and a curious user.
    ...['qmp.sock', 'qmp-2.sock'].flatMap((name) => ['-qmp', `unix:${join(plan.dir, name)},server=on,wait=off`]),
    ...['-device', 'intel-iommu,intremap=on,caching-mode=on'],
    ...share('hostroot', '/', ',readonly=on'),
    ...share('hostwork', join(plan.dir, 'work'), ''),
    ...share('repo', plan.repo, ',readonly=on'),
    ...share('cache', plan.cache, ',readonly=on'),
    // Port 0: the kernel chooses, `info usernet` says which.
    ...['-netdev', 'user,id=ctl,restrict=on,hostfwd=tcp:127.0.0.1:0-10.0.2.15:7000'],
    ...['-device', 'virtio-net-pci,netdev=ctl,mac=52:54:00:00:01:01,romfile='],
    ...linkArguments(plan),
    ...plan.devices.flatMap((each) => deviceArguments(plan, each)),
    ...['-kernel', plan.kernel, '-initrd', plan.initrd],
    // panic=-1 with -no-reboot: a crashed lab host is a QEMU that has ended.
    ...['-append', APPEND],
    ...plan.extra,
  ];
}
