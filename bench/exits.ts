// What an exit costs: port and MMIO reads of a real guest on /dev/kvm, answered by the fast path and in TypeScript, against the smallest
// KVM_RUN loop in C with the same guest, taking turns. Nanoseconds per exit, medians of 5; on this machine's /dev/kvm and again in a lab
// host (lab-run.ts). main-job.md, "Bench definitions"; the targets of the -ts cases are our own.
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as abi from '../native/abi/kvm.ts';
import { kvmNode } from '../native/addon.ts';
import { openKvm, setRealModeSegments, writeRegisters } from '../native/kvm.ts';
import { runInLab } from './lab-run.ts';
import { line, median } from './line.ts';

/** Inside the lab host we are run by ourselves with this set. */
const IN_LAB = process.env['FERRY_BENCH_IN_LAB'] === '1';
const ITERATIONS = IN_LAB ? 4000 : 20_000;
const TURNS = 5;
const PORT = 0x60;
const MMIO = 0xd0010;
/** Answers come from JS in bursts: the loop stays hot where a second CPU runs the guest meanwhile. */
const HOT_WINDOW_US = kvmNode().cpuCount() > 1 ? 20 : 0;

// 1: in $0x60, %al; dec %ecx; jnz 1b; out %al, $0xf4
const PIO_CODE = [0xe4, 0x60, 0x66, 0x49, 0x75, 0xfa, 0xe6, 0xf4];
// mov $0xd000, %ax; mov %ax, %es; 1: mov %es:0x10, %al; dec %ecx; jnz 1b; out %al, $0xf4
const MMIO_CODE = [0xb8, 0x00, 0xd0, 0x8e, 0xc0, 0x26, 0xa0, 0x10, 0x00, 0x66, 0x49, 0x75, 0xf8, 0xe6, 0xf4];

interface Case {
  readonly name: string;
  readonly code: readonly number[];
  readonly fast: 'pio' | 'mmio' | null;
  readonly target: number;
}
/** In the lab one CPU does all, and JavaScript is emulated as everything is. */
const TS_TARGET = IN_LAB ? 5 : 3;
const CASES: readonly Case[] = [
  { name: 'pio-fast', code: PIO_CODE, fast: 'pio', target: 1.3 },
  { name: 'mmio-fast', code: MMIO_CODE, fast: 'mmio', target: 1.3 },
  { name: 'pio-ts', code: PIO_CODE, fast: null, target: TS_TARGET },
  { name: 'mmio-ts', code: MMIO_CODE, fast: null, target: TS_TARGET },
];

/** One run of the guest by our loop; nanoseconds per exit. */
async function ours({ code, fast }: Case): Promise<number> {
  const addon = kvmNode();
  const kvm = openKvm();
  const vm = kvm.createVm();
  addon.ioctl('KVM_SET_TSS_ADDR', vm.fd, abi.KVM_SET_TSS_ADDR, 0xfffbd000);
  const ram = addon.createRam(65536, { hugePages: false, populate: false });
  ram.copyIn(0x1000, Uint8Array.from(code));
  vm.setSlot({ slot: 0, gpa: 0, size: 65536, backing: ram, offset: 0, readOnly: false, logDirty: false });
  let done = () => {};
  const end = new Promise<void>((resolve) => {
    done = resolve;
  });
  const { io, mmio, exit_reason } = abi.kvm_run;
  const exit = (): boolean => {
    if (run.getUint32(exit_reason, true) === abi.KVM_EXIT_MMIO) {
      run.setUint8(mmio.data, 0x5a);
      return true;
    }
    if (run.getUint16(io.port, true) === 0xf4) {
      done();
      return false;
    }
    // The low half of data_offset: no BigInt per exit.
    run.setUint8(run.getUint32(io.data_offset, true), 0x5a);
    return true;
  };
  const failed = (_index: number, errno: number) => {
    throw new Error(`KVM_RUN: errno ${errno}`);
  };
  const loop = addon.createVcpuLoop({ exit, posted() {}, failed }, { hotWindowUs: HOT_WINDOW_US });
  const vcpu = loop.addVcpu(vm.fd, 0, kvm.runSize);
  const run = new DataView(vcpu.run);
  const window = { shadow: Uint8Array.of(0x5a), reads: [0], posts: [], file: null };
  if (fast !== null) loop.addFast(fast, fast === 'pio' ? PORT : MMIO, 1, window);
  setRealModeSegments(vcpu.fd, 0);
  writeRegisters(vcpu.fd, { rip: 0x1000n, rflags: 2n, rcx: BigInt(ITERATIONS) });
  const start = process.hrtime.bigint();
  loop.start();
  await end;
  const elapsed = Number(process.hrtime.bigint() - start);
  const { exits, fastReads } = loop.stats;
  if (exits + fastReads !== ITERATIONS + 1) throw new Error(`${exits} exits and ${fastReads} fast reads`);
  await loop.close();
  vm.close();
  kvm.close();
  ram.close();
  return elapsed / ITERATIONS;
}

async function main(): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'ferry-exits-'));
  try {
    const peer = join(folder, 'peer');
    execFileSync('gcc', ['-O2', '-Wall', '-o', peer, 'bench/exits-peer.c']);
    for (const one of CASES) {
      const code = join(folder, one.name);
      writeFileSync(code, Uint8Array.from(one.code));
      const mine: number[] = [];
      const theirs: number[] = [];
      for (let turn = 0; turn < TURNS; turn++) {
        mine.push(await ours(one));
        theirs.push(Number(execFileSync(peer, [code, `${ITERATIONS}`], { encoding: 'utf8' })));
      }
      line({
        bench: 'exits',
        case: IN_LAB ? `lab-${one.name}` : one.name,
        ours: median(mine),
        peer: 'C KVM_RUN loop',
        theirs: median(theirs),
        unit: 'ns/exit',
        better: 'lower',
        target: one.target,
      });
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

function again(): void {
  if (IN_LAB) return;
  const env = {
    FERRY_BENCH_IN_LAB: '1',
    FERRY_ADDON: process.env['FERRY_ADDON'] ?? join(process.cwd(), 'build/Release/kvm_node.node'),
  };
  if (!runInLab(process.argv[1] as string, env)) process.exitCode = 1;
}

main().then(again, (error: unknown) => {
  console.error(error);
  process.exitCode = 1;
});
