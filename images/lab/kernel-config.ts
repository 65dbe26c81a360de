// What a lab host needs of a kernel that somebody brings along, as data, and where its configuration is found. Called by own-kernel.ts.
// Linux: kernel/configs.c (the text between IKCFG_ST and IKCFG_ED is a gzip of .config).
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { gunzipSync } from 'node:zlib';

/** y: built in; m: built in or a module. `why` is for the message. */
export interface NeededOption {
  readonly option: string;
  readonly as: 'y' | 'm';
  readonly why: string;
}

/** Without one of these the host does not come up, or has nothing to offer. */
export const NEEDED: readonly NeededOption[] = [
  { option: 'BLK_DEV_INITRD', as: 'y', why: 'the lab boots from an initrd' },
  { option: 'BINFMT_SCRIPT', as: 'y', why: "the initrd's init is a script" },
  { option: 'DEVTMPFS', as: 'y', why: '/dev' },
  { option: 'TMPFS', as: 'y', why: '/tmp and the upper layer of /' },
  { option: 'SERIAL_8250_CONSOLE', as: 'y', why: 'the console' },
  { option: 'INTEL_IOMMU', as: 'y', why: 'the IOMMU' },
  { option: 'IRQ_REMAP', as: 'y', why: 'safe interrupts of passed-through devices' },
  { option: 'VIRTIO_PCI', as: 'm', why: 'the network and the shared files' },
  { option: 'VIRTIO_NET', as: 'm', why: 'the network' },
  { option: 'NET_9P_VIRTIO', as: 'm', why: "the outer machine's files" },
  { option: '9P_FS', as: 'm', why: "the outer machine's files" },
  { option: 'OVERLAY_FS', as: 'm', why: 'a / that can be written' },
  { option: 'KVM_AMD', as: 'm', why: "guests (the lab's CPU has SVM)" },
  { option: 'VFIO', as: 'm', why: 'passthrough' },
  { option: 'VFIO_PCI', as: 'm', why: 'passthrough' },
  { option: 'VFIO_IOMMU_TYPE1', as: 'm', why: 'passthrough by group and container' },
];

/** Without these a part of what Ferry can do is missing: said, not refused. */
export const USEFUL: readonly NeededOption[] = [
  { option: 'IOMMUFD', as: 'm', why: "iommufd, and reading a device's DMA log (IOMMUFD_DRIVER)" },
  { option: 'VFIO_DEVICE_CDEV', as: 'y', why: 'devices by /dev/vfio/devices' },
  { option: 'VFIO_MDEV', as: 'm', why: 'mediated devices: vfio-bringup, mtty' },
  { option: 'TUN', as: 'm', why: 'networks of guests' },
];

export type KernelConfig = ReadonlyMap<string, string>;

/** The options of a .config: name without CONFIG_ -> value. */
export function parseKernelConfig(text: string): KernelConfig {
  const found = new Map<string, string>();
  for (const [, name, value] of text.matchAll(/^CONFIG_(\w+)=(.*)$/gm)) found.set(name!, value!);
  return found;
}

/** Which of `wanted` the kernel lacks. */
export function missingOptions(config: KernelConfig, wanted: readonly NeededOption[]): NeededOption[] {
  return wanted.filter(({ option, as }) => {
    const value = config.get(option);
    return value !== 'y' && !(as === 'm' && value === 'm');
  });
}

/** The configuration that CONFIG_IKCONFIG leaves in the kernel; null: none. */
export function embeddedConfig(vmlinux: Buffer): string | null {
  const start = vmlinux.indexOf('IKCFG_ST\x1f\x8b', 0, 'latin1');
  if (start < 0) return null;
  const end = vmlinux.indexOf('IKCFG_ED', start, 'latin1');
  try {
    return gunzipSync(vmlinux.subarray(start + 8, end < 0 ? undefined : end)).toString('latin1');
  } catch {
    return null;
  }
}

/** Beside the kernel, as distributions and the kernel's build tree have it; null: not there. */
export async function configBeside(kernel: string, release: string): Promise<string | null> {
  const places = [join(dirname(kernel), `config-${release}`), join(dirname(kernel), '.config')];
  if (/\/arch\/x86(_64)?\/boot\/bzImage$/.test(kernel)) places.push(join(dirname(kernel), '../../../.config'));
  const place = places.find((each) => existsSync(each));
  return place === undefined ? null : readFile(place, 'latin1');
}
