// vmm/exits.ts on hand-made struct kvm_run pages. Rules: KVM api.rst, section 5; main-job.md "Guest ends".
import { describe, expect, it } from 'vitest';
import type { Region } from '../../../devices/contract.ts';
import {
  KVM_EXIT_DIRTY_RING_FULL,
  KVM_EXIT_FAIL_ENTRY,
  KVM_EXIT_INTERNAL_ERROR,
  KVM_EXIT_INTR,
  KVM_EXIT_IO,
  KVM_EXIT_IO_IN,
  KVM_EXIT_IO_OUT,
  KVM_EXIT_MMIO,
  KVM_EXIT_SHUTDOWN,
  KVM_EXIT_SYSTEM_EVENT,
  KVM_SYSTEM_EVENT_CRASH,
  KVM_SYSTEM_EVENT_RESET,
  KVM_SYSTEM_EVENT_SHUTDOWN,
  kvm_run,
} from '../../../native/abi/kvm.ts';
import { Bus } from '../../../vmm/bus.ts';
import { Exits } from '../../../vmm/exits.ts';

const DATA = 0x800;

function setup() {
  const asked: string[] = [];
  const log: unknown[] = [];
  let next = 0;
  const region: Region = {
    name: 'probe',
    size: 8,
    read: (offset, width) => {
      log.push(['r', offset, width]);
      return (0x11111111 * ++next) >>> 0;
    },
    write: (offset, width, value) => void log.push(['w', offset, width, value]),
    wide: null,
    fast: null,
  };
  const bus = new Bus({ addFast: () => 1, removeFast: () => {}, drainPosted: () => {} }, []);
  bus.claim({ space: 'pio', base: 0x60, region });
  bus.claim({ space: 'mmio', base: 0x1_0000_1000, region });
  const ends = {
    reset: () => void asked.push('reset'),
    shutdown: () => void asked.push('shutdown'),
    crash: () => void asked.push('crash'),
    internalError: (detail: string) => void asked.push(detail),
    rip: () => 0xffffffff81000000n,
  };
  const exits = new Exits(bus, ends, () => void asked.push('ring full'));
  const page = new ArrayBuffer(0x1000);
  exits.add(3, page);
  const run = new DataView(page);
  const exit = (reason: number) => {
    run.setUint32(kvm_run.exit_reason, reason, true);
    return exits.handle(3);
  };
  const io = (direction: number, width: number, count: number) => {
    run.setUint8(kvm_run.io.direction, direction);
    run.setUint8(kvm_run.io.size_at, width);
    run.setUint16(kvm_run.io.port, 0x60, true);
    run.setUint32(kvm_run.io.count, count, true);
    run.setBigUint64(kvm_run.io.data_offset, BigInt(DATA), true);
    return exit(KVM_EXIT_IO);
  };
  return { run, exit, io, asked, log };
}

describe('port exits', () => {
  it.each([1, 2, 4])('OUT of %d bytes', (width) => {
    const { run, io, log } = setup();
    run.setUint32(DATA, 0xddccbbaa, true);
    expect(io(KVM_EXIT_IO_OUT, width, 1)).toBe(true);
    expect(log).toEqual([['w', 0, width, [0xaa, 0xbbaa, 0, 0xddccbbaa][width - 1]]]);
  });

  it('IN puts the answer where KVM looks for it, and nothing beside it', () => {
    const { run, io } = setup();
    run.setUint32(DATA, 0, true);
    io(KVM_EXIT_IO_IN, 2, 1);
    expect(run.getUint32(DATA, true)).toBe(0x1111);
  });

  it('string I/O: the same port count times, data one after the other', () => {
    const { run, io, log } = setup();
    for (let i = 0; i < 3; i++) run.setUint16(DATA + 2 * i, 0x100 + i, true);
    io(KVM_EXIT_IO_OUT, 2, 3);
    expect(log).toEqual([0x100, 0x101, 0x102].map((value) => ['w', 0, 2, value]));
    io(KVM_EXIT_IO_IN, 4, 2);
    expect([run.getUint32(DATA, true), run.getUint32(DATA + 4, true)]).toEqual([0x11111111, 0x22222222]);
  });
});

describe('a full dirty ring', () => {
  it('is emptied, and the vCPU goes on', () => {
    const { exit, asked } = setup();
    expect(exit(KVM_EXIT_DIRTY_RING_FULL)).toBe(true);
    expect(asked).toEqual(['ring full']);
  });
});

describe('MMIO exits', () => {
  it('carry an address above 4 GiB exactly', () => {
    const { run, exit, log } = setup();
    run.setBigUint64(kvm_run.mmio.phys_addr, 0x1_0000_1004n, true);
    run.setUint32(kvm_run.mmio.len, 4, true);
    run.setUint8(kvm_run.mmio.is_write, 1);
    run.setUint32(kvm_run.mmio.data, 0xcafe, true);
    expect(exit(KVM_EXIT_MMIO)).toBe(true);
    run.setUint8(kvm_run.mmio.is_write, 0);
    exit(KVM_EXIT_MMIO);
    expect(log).toEqual([
      ['w', 4, 4, 0xcafe],
      ['r', 4, 4],
    ]);
    expect(run.getUint32(kvm_run.mmio.data, true)).toBe(0x11111111);
  });
});

describe('ends', () => {
  it('a triple fault is a reset; KVM’s system events are what they say', () => {
    const { run, exit, asked } = setup();
    exit(KVM_EXIT_SHUTDOWN);
    for (const type of [KVM_SYSTEM_EVENT_SHUTDOWN, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_CRASH, 99]) {
      run.setUint32(kvm_run.system_event.type, type, true);
      exit(KVM_EXIT_SYSTEM_EVENT);
    }
    expect(asked).toEqual(['reset', 'shutdown', 'reset', 'crash', expect.stringContaining('99')]);
  });

  it('an interrupted KVM_RUN is nothing', () => {
    const { exit, asked, log } = setup();
    expect(exit(KVM_EXIT_INTR)).toBe(true);
    expect([asked, log]).toEqual([[], []]);
  });

  it('an emulation failure names vCPU, RIP, suberror and the instruction’s bytes', () => {
    const { run, exit, asked } = setup();
    run.setUint32(kvm_run.internal.suberror, 1, true);
    run.setUint32(kvm_run.internal.ndata, 4, true);
    run.setBigUint64(kvm_run.emulation_failure.flags, 1n, true);
    run.setUint8(kvm_run.emulation_failure.insn_size, 3);
    for (const [i, byte] of [0x0f, 0xc7, 0x0e].entries()) run.setUint8(kvm_run.emulation_failure.insn_bytes + i, byte);
    exit(KVM_EXIT_INTERNAL_ERROR);
    expect(asked).toEqual([
      'vCPU 3 at RIP 0xffffffff81000000: KVM_EXIT_INTERNAL_ERROR, suberror 1 (emulation), instruction 0f c7 0e',
    ]);
  });

  it('a refused entry and an unknown reason are named with their numbers', () => {
    const { run, exit, asked } = setup();
    run.setBigUint64(kvm_run.fail_entry.hardware_entry_failure_reason, 0x80000021n, true);
    exit(KVM_EXIT_FAIL_ENTRY);
    exit(4242);
    expect(asked[0]).toContain('reason 0x80000021');
    expect(asked[1]).toContain('exit reason 4242');
  });
});
