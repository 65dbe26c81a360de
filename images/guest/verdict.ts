// Reads what the guest's workload printed and judges it: ticks over the union of the consoles that the guest had in turn (source,
// destination, back again ...), and the workload's own counters, in all and per console. Called by cli/demo.ts and test/lab; node only.
// The lines are those of images/guest/workload/tick.c: "tick n= t=", "stat n= name=value ...", "verdict ok= ...", "error kind= ...".

export interface GuestCounts {
  readonly ticks: number;
  readonly memoryChecks: number;
  readonly memoryErrors: number;
  readonly dmas: number;
  readonly dmaChecks: number;
  readonly dmaErrors: number;
  readonly irqs: number;
  readonly irqErrors: number;
  readonly regChecks: number;
  readonly regErrors: number;
  readonly clockReads: number;
  readonly clockBack: number;
  /** By vfio-bringup alone. */
  readonly dmaBytes: number;
  /** Out of mtty's serial port and back. */
  readonly serialBytes: number;
  readonly serialErrors: number;
}

export interface GuestVerdict extends GuestCounts {
  /** Missing, repeated and out-of-order counters, and time stamps that went back. */
  readonly lostTicks: number;
  /** Greatest step of the guest's own clock from one tick to the next. */
  readonly maxGapMs: number;
  /** What each console alone added: [source, destination, ...]. */
  readonly consoles: readonly GuestCounts[];
  /** The workload's last word; null: it has not been asked yet. */
  readonly ok: boolean | null;
  /** Error lines as they were printed. */
  readonly errors: readonly string[];
}

const COUNTERS = [
  'memoryChecks',
  'memoryErrors',
  'dmas',
  'dmaChecks',
  'dmaErrors',
  'irqs',
  'irqErrors',
  'regChecks',
  'regErrors',
  'clockReads',
  'clockBack',
  'dmaBytes',
  'serialBytes',
  'serialErrors',
] as const;
type Counter = (typeof COUNTERS)[number];
type Counts = Record<Counter | 'ticks', number>;

const TICK = /^tick n=(\d+) t=(\d+)$/;
const COUNTS = /^(stat|verdict) /;

function noCounts(): Counts {
  return Object.fromEntries(['ticks', ...COUNTERS].map((name) => [name, 0])) as Counts;
}

/** A line with the console in which it ended: a hand-over may cut a line in two, its rest then comes on the next console. */
function* linesOf(consoles: readonly string[]): Generator<{ text: string; console: number }> {
  let begun = '';
  for (const [console, text] of consoles.entries()) {
    const parts = (begun + text).split('\n');
    begun = parts.pop() ?? '';
    for (const part of parts) yield { text: part.replace(/\r$/, ''), console };
  }
}

/** `consoles`: everything printed, complete from the guest's start, in the order in which the guest ran there. */
export function judge(consoles: readonly string[]): GuestVerdict {
  const perConsole = consoles.map(noCounts);
  const latest = noCounts();
  const errors: string[] = [];
  let ok: boolean | null = null;
  let [lostTicks, maxGapNs, lastTick, lastTime] = [0, 0n, 0, -1n];
  for (const { text, console } of linesOf(consoles)) {
    const counts = perConsole[console] ?? noCounts();
    const tick = TICK.exec(text);
    if (tick !== null) {
      const [n, time] = [Number(tick[1]), BigInt(tick[2] ?? 0)];
      latest.ticks++;
      counts.ticks++;
      lostTicks += n > lastTick ? n - lastTick - 1 : 1;
      if (time < lastTime) lostTicks++;
      else if (lastTime >= 0n && time - lastTime > maxGapNs) maxGapNs = time - lastTime;
      lastTick = Math.max(lastTick, n);
      lastTime = time;
    } else if (COUNTS.test(text)) {
      for (const name of COUNTERS) {
        const value = counterIn(text, name);
        if (value === null) continue;
        counts[name] += value - latest[name];
        latest[name] = value;
      }
      if (text.startsWith('verdict ')) ok = / ok=1 /.test(text);
    } else if (text.startsWith('error ')) {
      errors.push(text);
    }
  }
  return { ...latest, lostTicks, maxGapMs: Number(maxGapNs / 1000n) / 1000, consoles: perConsole, ok, errors };
}

function counterIn(line: string, name: string): number | null {
  const found = new RegExp(` ${name}=(\\d+)(?: |$)`).exec(line);
  return found === null ? null : Number(found[1]);
}

/** One sentence for each thing that is wrong; empty when the workload is content and was at work on every console. */
export function faultsOf(
  verdict: GuestVerdict,
  wanted: { readonly edu: boolean; readonly bringup?: boolean; readonly mtty?: boolean },
): string[] {
  const faults: string[] = [];
  if (verdict.ok !== true)
    faults.push(verdict.ok === null ? 'the workload gave no verdict' : 'the workload found errors');
  if (verdict.lostTicks > 0) faults.push(`${verdict.lostTicks} ticks were lost, repeated or out of order`);
  for (const name of COUNTERS.filter((c) => /Errors$|Back$/.test(c))) {
    if (verdict[name] > 0) faults.push(`${name} is ${verdict[name]}`);
  }
  const work: (Counter | 'ticks')[] = ['ticks', 'memoryChecks'];
  if (wanted.edu || wanted.bringup) work.push('dmaChecks', 'irqs', 'regChecks');
  if (wanted.bringup) work.push('dmaBytes');
  if (wanted.mtty) work.push('irqs', 'regChecks', 'serialBytes');
  for (const [i, counts] of verdict.consoles.entries()) {
    for (const name of work) if (counts[name] === 0) faults.push(`${name} stayed 0 on console ${i + 1}`);
  }
  return faults;
}
