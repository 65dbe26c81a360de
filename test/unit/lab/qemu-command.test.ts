// Rules of a lab host's command line: one CPU (QEMU 7.2's MTTCG), each device at the address that is told, the server end of the link first.
import { describe, expect, it } from 'vitest';
import { bzImagePayload } from '../../../images/lab/vmlinux.ts';
import { backingFiles, type HostPlan, placeDevices, qemuArguments } from '../../../lab/qemu-command.ts';

function plan(index: number): HostPlan {
  return {
    name: 'host-a',
    index,
    dir: '/labs/x',
    kernel: '/v',
    initrd: '/i',
    repo: '/repo',
    cache: '/cache',
    memoryMiB: 1024,
    devices: placeDevices(['nvme', 'edu', 'edu', 'e1000e']),
    linkSocket: '/labs/link.sock',
    extra: ['-S'],
  };
}

describe('a lab host', () => {
  it('gives the first of a kind its fixed address and further ones free slots', () => {
    expect(placeDevices(['edu', 'nvme', 'edu', 'edu', 'bochs-display', 'e1000e']).map((each) => each.bdf)).toEqual([
      '0000:00:11.0',
      '0000:00:10.0',
      '0000:00:14.0',
      '0000:00:15.0',
      '0000:00:13.0',
      '0000:00:12.0',
    ]);
  });

  it('has one CPU, and a device at each address that was placed', () => {
    const args = qemuArguments(plan(0));
    expect(args[args.indexOf('-smp') + 1]).toBe('1');
    for (const { kind, bdf } of plan(0).devices) {
      const found = args.filter((arg) => arg.startsWith(`${kind},`) && arg.includes(`addr=${bdf.slice(8)}`));
      expect(found).toHaveLength(1);
    }
    expect(backingFiles(plan(0)).map((each) => each.path)).toEqual(['/labs/x/nvme0.img']);
  });

  it('listens on the link at the first host only, with different MAC addresses', () => {
    const [a, b] = [qemuArguments(plan(0)).join(' '), qemuArguments(plan(1)).join(' ')];
    expect(a).toContain('stream,id=link,server=on');
    expect(b).toContain('stream,id=link,server=off');
    expect(a).toContain('mac=52:54:00:00:02:11');
    expect(b).toContain('mac=52:54:00:00:02:12');
  });
});

describe('a bzImage', () => {
  it('gives the payload that its header names, and is refused when it is none or too short', () => {
    const image = Buffer.alloc(4096);
    image[0x1f1] = 2;
    image.write('HdrS', 0x202, 'latin1');
    image.writeUInt32LE(0x10, 0x248);
    image.writeUInt32LE(8, 0x24c);
    image.write('PAYLOAD!', 3 * 512 + 0x10, 'latin1');
    expect(bzImagePayload(image).toString()).toBe('PAYLOAD!');
    image.writeUInt32LE(4096, 0x24c);
    expect(() => bzImagePayload(image)).toThrow(/truncated/);
    expect(() => bzImagePayload(Buffer.alloc(4096))).toThrow(/no HdrS/);
  });
});
