// Real VFIO in a lab host, without a guest: QEMU's edu by stock vfio-pci through devices/vfio - registers, INTx with resample, MSI, DMA
// through VT-d, the container's dirty pages - and `ferry vfio bind`/`unbind` on a real sysfs.
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import type { Lab } from '../../../lab/lab.ts';
import { repoRoot } from '../../../lab/root.ts';
import { bundleProgram } from '../programs/bundle.ts';

export function vfioEdu(given: () => Lab): void {
  describe('edu by stock vfio-pci', () => {
    let lab: Lab;
    let program: string;
    const env = { FERRY_ADDON: join(repoRoot(), 'build/Release/kvm_node.node') };
    const run = async (name: string, bdf: string) =>
      JSON.parse(await lab.host(0).run(['node', name, bdf], { env, timeoutMs: 120_000 })) as Record<string, unknown>;

    beforeAll(async () => {
      lab = given();
      program = await bundleProgram('vfio-edu', lab.host(0).share);
    });

    it('is refused in one line while no driver has it, then bound', async () => {
      const bdf = lab.host(0).bdf('edu');
      const refused = await lab.host(0).exec(['node', program, bdf], { env });
      expect(refused.code).not.toBe(0);
      expect(refused.stderr).toContain(
        `${bdf} is bound to no driver, not to a VFIO one: run \`ferry vfio bind ${bdf}\` first`,
      );
      const bind = await bundleProgram('vfio-bind', lab.host(0).share);
      expect(await run(bind, bdf)).toEqual({ bound: 'vfio-pci', restored: null, left: [], again: 'vfio-pci' });
    });

    it('has its registers, interrupts, DMA and dirty pages', async () => {
      const seen = await run(program, lab.host(0).bdf('edu'));
      expect(seen).toMatchObject({
        canReset: false,
        migration: false,
        dmaLog: false,
        decodeOff: 'SysError',
        id: 0x010000ed,
        live: 0xffffedcb,
        mapped: 0x010000ed,
        factorial: 120,
        intx: { first: 1, whileMasked: 0, again: 1, status: 1, quiet: 0 },
        msiResult: 0,
        msi: { count: 1, status: 1 },
        dmaEqual: true,
        // An IOMMU-backed device: type1 reports every mapped page at every query.
        containerPages: [4096, 4096],
        unmapped: [4096, 4096],
        mappedAgain: true,
        closed: true,
      });
      expect(seen['regions']).toContainEqual(
        expect.objectContaining({ index: 0, size: 0x100000, areas: [{ start: 0, length: 0x100000 }] }),
      );
      expect(seen['iovaRanges']).toEqual([
        { start: 0, length: 0xfee00000 },
        { start: 0xfef00000, length: 2 ** 39 - 0xfef00000 },
      ]);
    });

    it('can be opened again: nothing of the first time is left', async () => {
      expect(await run(program, lab.host(0).bdf('edu'))).toMatchObject({ dmaEqual: true, closed: true });
    });
  });
}
