// Rule: what `ferry vfio trace` records of a real device in a lab host is told in words, and is played back outside of the lab with the same
// outcome: `ferry vfio info` by ptrace and by Ferry's own door, and a C program that migrates edu.
import { execFileSync, spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { readTrace } from '../../../devices/vfio/trace/trace-file.ts';
import type { LabHost } from '../../../lab/host.ts';
import type { Lab } from '../../../lab/lab.ts';
import { repoRoot } from '../../../lab/root.ts';

/** Measured: 10 s for what takes longest. */
const LIMIT_MS = 120_000;
const FERRY = join(repoRoot(), 'bin/ferry');

/** The program that tests our driver for edu: it saves, loads and logs by itself. Against the lab kernel's vfio.h. */
function compileCheck(lab: Lab): void {
  const source = join(repoRoot(), 'images/kmod/edu-vfio-pci/test');
  const share = lab.host(0).share;
  mkdirSync(join(share, 'include/linux'), { recursive: true });
  cpSync(join(lab.image.uapi, 'linux/vfio.h'), join(share, 'include/linux/vfio.h'));
  const files = readdirSync(source).filter((each) => each.endsWith('.c'));
  const flags = ['-O2', '-static', '-D__user=', `-I${join(share, 'include')}`];
  execFileSync('gcc-12', [...flags, '-o', join(share, 'check'), ...files.map((each) => join(source, each))]);
}

export function vfioTrace(given: () => Lab): void {
  describe('a trace of a real device', () => {
    let lab: Lab;
    let host: LabHost;
    let bdf: string;

    beforeAll(async () => {
      lab = given();
      host = lab.host(0);
      bdf = host.bdf('edu');
      compileCheck(lab);
      await host.run([FERRY, 'vfio', 'bind', bdf, '--driver', 'edu-vfio-pci'], { timeoutMs: LIMIT_MS });
    });

    /** On this machine, where there is no such device. */
    function replay(...args: string[]): { status: number | null; stdout: string; stderr: string } {
      return spawnSync(FERRY, ['vfio', 'replay', ...args], { encoding: 'utf8' });
    }
    const calls = (name: string) => readTrace(join(host.share, name)).calls.map(({ call }) => call);

    it("of ferry vfio info gives the same again, whether ptrace or Ferry's own door recorded it", async () => {
      const info = [FERRY, 'vfio', 'info', bdf];
      const plain = await host.run(info, { timeoutMs: LIMIT_MS });
      expect(plain).toContain('a guest with it can be moved');
      const foreign = await host.run([FERRY, 'vfio', 'trace', '-o', '/hw/foreign.trace', '--', ...info], {
        timeoutMs: LIMIT_MS,
      });
      const own = await host.run([...info, '--vfio-trace', '/hw/own.trace'], { timeoutMs: LIMIT_MS });
      expect([foreign, own]).toEqual([plain, plain]);
      for (const name of ['foreign.trace', 'own.trace']) {
        expect(replay(join(host.share, name))).toMatchObject({ status: 0, stdout: plain, stderr: '' });
      }
      const ioctls = (name: string) =>
        calls(name).flatMap(({ call, on, what, errno, answer }) =>
          call === 'ioctl' ? [{ on, what, errno, answer }] : [],
        );
      expect(ioctls('foreign.trace')).toEqual(ioctls('own.trace'));
      expect(ioctls('own.trace')).toContainEqual(
        expect.objectContaining({
          on: `device ${bdf}`,
          what: 'VFIO_DEVICE_FEATURE(GET MIGRATION)',
          answer: { flags: 'STOP_COPY|P2P|PRE_COPY' },
        }),
      );
    });

    it('of a program that migrates it has the states, the data fd and its bytes, and is walked by our own code', async () => {
      const group = (await host.run(`basename $(readlink /sys/bus/pci/devices/${bdf}/iommu_group)`)).trim();
      const traced = [
        FERRY,
        'vfio',
        'trace',
        '-o',
        '/hw/walk.trace',
        '--data',
        '--',
        '/hw/check',
        group,
        bdf,
        'precopy',
      ];
      expect(await host.run(traced, { timeoutMs: LIMIT_MS })).toBe('ok precopy\n');
      const seen = calls('walk.trace');
      const made = seen.find(({ what }) => what.includes('SET MIG_DEVICE_STATE device_state=PRE_COPY'));
      expect(made?.made?.on).toBe(`data 1 of ${bdf}`);
      const read = seen.find(({ on, call, result }) => call === 'read' && on === made?.made?.on && result > 0);
      expect(Buffer.from(read?.payload?.data ?? '', 'base64')).toHaveLength(read?.result ?? -1);
      expect(seen.some(({ what, answer }) => what === 'VFIO_MIG_GET_PRECOPY_INFO' && answer?.['initial_bytes'])).toBe(
        true,
      );
      const { stdout } = replay(join(host.share, 'walk.trace'));
      expect(stdout).toContain('RUNNING -> PRE_COPY\n');
      expect(stdout).toMatch(/stream: \d+ bytes in \d+ reads, then ENOMSG/);
      const list = spawnSync(FERRY, ['vfio', 'trace', '--show', join(host.share, 'walk.trace')], { encoding: 'utf8' });
      expect(list.stdout).toContain(
        `device ${bdf}: VFIO_DEVICE_FEATURE(SET MIG_DEVICE_STATE device_state=STOP_COPY) = 0`,
      );
    });
  });
}
