// Rule: `ferry lab up --kernel` boots the user's own kernel with his modules, and names what that kernel lacks. The kernel here is the one of
// the lab image, given as a stranger's: its vmlinux, the tree that its modules were installed in, and our driver for edu as the user's module.
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { parseExtraModule } from '../../images/lab/own-kernel.ts';
import { buildLabImage, type Lab, prepareLab, startLab } from '../../lab/lab.ts';
import { labUnavailable } from '../../lab/packages.ts';
import { cacheRoot } from '../../lab/root.ts';

const unavailable = labUnavailable();
if (unavailable !== null) console.log(`skipped: own-kernel: ${unavailable}`);

describe.skipIf(unavailable !== null)("a lab host with the user's own kernel", () => {
  const scratch = mkdtempSync(join(tmpdir(), 'ferry-own-kernel-'));
  const said: string[] = [];
  const say = (line: string) => said.push(line);
  let kernelDir: string;
  let release: string;
  let config: string;
  let driver: string;
  let lab: Lab | null = null;

  beforeAll(async () => {
    const image = await buildLabImage(() => {});
    release = image.release;
    driver = join(image.modules, 'edu-vfio-pci.ko');
    kernelDir = image.vmlinux.replace(/\/vmlinux$/, '');
    config = join(kernelDir, 'headers/usr/src', `linux-headers-${release}`, '.config');
    expect(existsSync(config), 'the configuration in the headers').toBe(true);
  });
  afterAll(async () => {
    await lab?.close();
    rmSync(scratch, { recursive: true, force: true });
  });

  const own = (over: object = {}) => ({
    kernel: { kernel: join(kernelDir, 'vmlinux'), modules: join(kernelDir, 'root'), config, ...over },
    modules: [parseExtraModule(`${driver},dma_mask=0xffffffffffffffff`)],
  });

  it('boots it, loads its modules and the given one with its parameters, and has the devices', async () => {
    lab = await startLab({ devices: ['edu'], own: own(), say });
    const host = lab.host(0);
    expect(
      await host.run('uname -r; cat /sys/module/edu_vfio_pci/parameters/dma_mask; ls /dev/kvm /dev/vfio/vfio'),
    ).toBe(`${release}\n18446744073709551615\n/dev/kvm\n/dev/vfio/vfio\n`);
    expect(host.consoleLog()).not.toContain('LAB init:');
    await lab.close();
    lab = null;
  });

  it('is not begun with a kernel that lacks what a lab host needs: each option is named', async () => {
    const poor = join(scratch, 'config');
    writeFileSync(poor, readFileSync(config, 'latin1').replace(/^CONFIG_(9P_FS|INTEL_IOMMU)=.*$/gm, ''));
    await expect(prepareLab({ own: own({ config: poor }) }, say)).rejects.toThrow(
      /vmlinux cannot be a lab host: it lacks CONFIG_INTEL_IOMMU \(the IOMMU\), CONFIG_9P_FS \(/,
    );
    await expect(prepareLab({ own: own({ modules: null }) }, say)).rejects.toThrow(
      /as modules: give their tree with --modules DIR/,
    );
    expect(readdirSync(cacheRoot()).filter((name) => name.includes('.tmp'))).toEqual([]);
  });

  it('is not begun with modules of another kernel, or none where they were said to be', async () => {
    await expect(prepareLab({ own: own({ modules: scratch }) }, say)).rejects.toThrow(
      /no lib\/modules\/\S+\/modules\.dep in it; run `make modules_install INSTALL_MOD_PATH=/,
    );
    const other = join(scratch, 'other.ko');
    writeFileSync(
      other,
      readFileSync(driver)
        .toString('latin1')
        .replace(`vermagic=${release}`, `vermagic=${release.replace('6', '7')}`),
      'latin1',
    );
    await expect(prepareLab({ own: { ...own(), modules: [parseExtraModule(other)] } }, say)).rejects.toThrow(
      /other\.ko is built for 7\S+, the kernel is 6/,
    );
  });

  it('says it when the configuration of a kernel is nowhere to be found', async () => {
    said.length = 0;
    await prepareLab({ own: own({ config: null, kernel: join(kernelDir, 'vmlinux') }) }, say);
    expect(said.join('\n')).toMatch(/no configuration found .*--kernel-config FILE names it/);
  });
});
