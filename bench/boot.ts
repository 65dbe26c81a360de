// npm run bench -- boot: from exec of bin/ferry, or of Debian's QEMU 7.2, to the guest's init's first line, in one lab host, taking turns;
// medians of 5, quiet. Debian's 6.1 cloud kernel as bzImage for all, then the same extracted vmlinux for all. main-job.md, "Bench
// definitions"; facts: boot-peers. Everything that is read lies in the lab host's tmpfs, and a first round is not counted: caches are warm.
// The outer process builds the image and has itself run in the lab host (lab-run.ts). FERRY_BENCH_RUNS makes it shorter.
import { mkdirSync, mkdtempSync, writeFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { buildGuest } from '../images/guest/build.ts';
import { cacheRoot } from '../lab/root.ts';
import { isBzImage, parseBzImage } from '../vmm/boot/bzimage.ts';
import { unpackVmlinux } from '../vmm/boot/unpack.ts';
import { bootOnce, copyFerry, copyIn, type Vmm, vmms } from './boot-vmm.ts';
import { runInLab } from './lab-run.ts';
import { line, median } from './line.ts';

const RUNS = process.env['FERRY_BENCH_RUNS'] ?? '5';
const TARGET = 1;
/** What the process in the lab host boots, as JSON. */
const ORDER = 'FERRY_BENCH_BOOT';

interface Order {
  readonly vmlinuz: string;
  readonly vmlinux: string;
  readonly initrd: string;
  readonly runs: number;
}

async function unpack(vmlinuz: string): Promise<Buffer> {
  const file = await open(vmlinuz);
  try {
    const head = new Uint8Array(4096);
    await file.read(head, 0, head.length, 0);
    const header = isBzImage(head) ? parseBzImage(head, (await file.stat()).size) : 'no bzImage';
    const vmlinux = typeof header === 'string' ? { note: header } : await unpackVmlinux(file, header);
    if (!Buffer.isBuffer(vmlinux)) throw new Error(`bench boot: ${vmlinuz}: ${vmlinux.note}`);
    return vmlinux;
  } finally {
    await file.close();
  }
}

async function outside(): Promise<void> {
  const { vmlinuz, initrd } = await buildGuest(cacheRoot());
  const dir = join('out', 'bench');
  mkdirSync(dir, { recursive: true });
  const vmlinux = join(process.cwd(), dir, 'vmlinux');
  writeFileSync(vmlinux, await unpack(vmlinuz));
  const order: Order = { vmlinuz, vmlinux, initrd, runs: Number(RUNS) };
  if (!runInLab(process.argv[1] as string, { [ORDER]: JSON.stringify(order) })) process.exitCode = 1;
}

async function inLab(order: Order): Promise<void> {
  const dir = mkdtempSync('/tmp/bench-boot-');
  const ferry = copyFerry(process.cwd(), dir);
  const initrd = copyIn(order.initrd, dir);
  const kernels = { bzImage: copyIn(order.vmlinuz, dir), vmlinux: copyIn(order.vmlinux, dir) };
  for (const [name, kernel] of Object.entries(kernels)) {
    const [ours, ...peers] = vmms(ferry, { kernel, initrd, cache: join(dir, 'cache') }) as [Vmm, ...Vmm[]];
    const all = [ours, ...peers];
    const times = new Map<Vmm, number[]>(all.map((vmm) => [vmm, []]));
    for (let run = -1; run < order.runs; run++) {
      for (const vmm of all) {
        const ms = await bootOnce(vmm);
        if (run >= 0) times.get(vmm)?.push(ms);
        console.error(`boot ${name} ${vmm.name}: ${ms.toFixed(0)} ms${run < 0 ? ' (not counted)' : ''}`);
      }
    }
    for (const peer of peers) {
      line({
        bench: 'boot',
        case: `${name}${peer.suffix}`,
        ours: median(times.get(ours) as number[]),
        peer: peer.name,
        theirs: median(times.get(peer) as number[]),
        unit: 'ms',
        better: 'lower',
        target: TARGET,
      });
    }
  }
}

const order = process.env[ORDER];
(order === undefined ? outside() : inLab(JSON.parse(order) as Order)).catch((error: unknown) => {
  console.error(error);
  process.exitCode = 1;
});
