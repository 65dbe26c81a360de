// npm run bench -- memory: what the VMM itself takes: Pss without the mappings of guest RAM, of a 256 MiB guest at its prompt and at the
// peak of a migration, at the source and at the destination, in one lab host (its two processes and this one share the text of Node, as
// two guests on a host do). MiB, against the limit of main-job.md, "Bench definitions". Medians of 3; FERRY_BENCH_RUNS makes it shorter.
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { buildGuest } from '../images/guest/build.ts';
import { cacheRoot } from '../lab/root.ts';
import { copyFerry, copyIn } from './boot-vmm.ts';
import { runInLab } from './lab-run.ts';
import { line, median } from './line.ts';

const RUNS = process.env['FERRY_BENCH_RUNS'] ?? '3';
const LIMIT_MIB = 64;
const ORDER = 'FERRY_BENCH_MEMORY';
const LIMIT_MS = 180_000;
const SAMPLE_MS = 20;
/** The writer dirties 8 MiB a second, so that there is more than one round. */
const APPEND = 'console=ttyS0 quiet panic=-1 mode=workload edu=0 rate=8M writer=64M memmap=2M$0xe000000';

interface Order {
  readonly vmlinuz: string;
  readonly initrd: string;
  readonly runs: number;
}

/** MiB of a process that are its own or its share, without guest RAM. */
function vmmMiB(pid: number): number {
  let kib = 0;
  let guest = false;
  for (const text of readFileSync(`/proc/${pid}/smaps`, 'latin1').split('\n')) {
    if (/^[0-9a-f]+-[0-9a-f]+ /.test(text)) guest = /ferry-ram \(deleted\)$/.test(text);
    else if (!guest && text.startsWith('Pss:')) kib += Number.parseInt(text.slice(4), 10);
  }
  return kib / 1024;
}

class Ferry {
  readonly child: ChildProcess;
  text = '';
  peak = 0;

  constructor(program: string, args: readonly string[]) {
    this.child = spawn(program, args, { stdio: ['pipe', 'pipe', 'pipe'] });
    for (const stream of [this.child.stdout, this.child.stderr])
      stream?.on('data', (bytes: Buffer) => {
        this.text += bytes.toString('latin1');
      });
  }

  get ended(): boolean {
    return this.child.exitCode !== null || this.child.signalCode !== null;
  }

  sample(): number {
    const now = this.ended ? 0 : vmmMiB(this.child.pid as number);
    this.peak = Math.max(this.peak, now);
    return now;
  }

  async until(what: string, met: () => boolean): Promise<void> {
    const limit = performance.now() + LIMIT_MS;
    while (!met()) {
      if (this.ended || performance.now() > limit)
        throw new Error(`bench memory: no ${what}: ${this.text.slice(-2000)}`);
      await sleep(SAMPLE_MS);
    }
  }

  stop(): Promise<void> {
    if (this.ended) return Promise.resolve();
    return new Promise((resolve) => {
      this.child.once('exit', () => resolve());
      this.child.kill('SIGKILL');
    });
  }
}

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

interface Sizes {
  readonly prompt: number;
  readonly source: number;
  readonly destination: number;
}

async function measure(program: string, dir: string, files: { kernel: string; initrd: string }): Promise<Sizes> {
  const [control, uri] = [`unix:${join(dir, 'qmp')}`, `unix:${join(dir, 'move')}`];
  const args = ['--kernel', files.kernel, '--initrd', files.initrd, '--append', APPEND, '--memory', '256M'];
  const source = new Ferry(program, ['run', ...args, '--control', control]);
  const destination = new Ferry(program, ['receive', uri]);
  try {
    await destination.until('listener', () => destination.text.includes('waiting for a guest'));
    await source.until('tick', () => /^tick /m.test(source.text));
    await sleep(1000);
    const prompt = source.sample();
    const move = new Ferry(program, ['migrate', control, uri, '--downtime-limit', '1000']);
    await move.until('end of the migration', () => {
      source.sample();
      destination.sample();
      return move.ended;
    });
    if (move.child.exitCode !== 0) throw new Error(`bench memory: ${move.text}`);
    await destination.until('tick at the destination', () => /^tick /m.test(destination.text));
    return { prompt, source: source.peak, destination: destination.peak };
  } finally {
    await Promise.all([source.stop(), destination.stop()]);
  }
}

async function inLab(order: Order): Promise<void> {
  const dir = mkdtempSync('/tmp/bench-memory-');
  const program = copyFerry(process.cwd(), dir);
  const files = { kernel: copyIn(order.vmlinuz, dir), initrd: copyIn(order.initrd, dir) };
  const all: Sizes[] = [];
  for (let run = 0; run < order.runs; run++) {
    const sizes = await measure(program, mkdtempSync(join(dir, 'run-')), files);
    console.error(`memory: ${JSON.stringify(sizes)}`);
    all.push(sizes);
  }
  const cases = {
    prompt: 'prompt',
    source: 'migration-peak-source',
    destination: 'migration-peak-destination',
  } as const;
  for (const [key, name] of Object.entries(cases)) {
    line({
      bench: 'memory',
      case: name,
      ours: median(all.map((sizes) => sizes[key as keyof Sizes])),
      peer: 'limit',
      theirs: LIMIT_MIB,
      unit: 'MiB',
      better: 'lower',
      target: 1,
    });
  }
}

async function outside(): Promise<void> {
  const { vmlinuz, initrd } = await buildGuest(cacheRoot());
  const order: Order = { vmlinuz, initrd, runs: Number(RUNS) };
  if (!runInLab(process.argv[1] as string, { [ORDER]: JSON.stringify(order) })) process.exitCode = 1;
}

const order = process.env[ORDER];
(order === undefined ? outside() : inLab(JSON.parse(order) as Order)).catch((error: unknown) => {
  console.error(error);
  process.exitCode = 1;
});
