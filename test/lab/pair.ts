// A pair of lab hosts with edu bound to our variant driver on both, and guests in them: `ferry run`, `ferry receive`, `ferry migrate`, there
// and back as often as a test wants. One pair serves a whole test file. Each ferry process has a control socket and a port of its own.
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import type { ConsoleLog } from '../../cli/demo-console.ts';
import type { DemoDevice } from '../../cli/demo-report.ts';
import { bindEdu, startGuestProcess } from '../../cli/demo-run.ts';
import { buildGuest, type GuestImage } from '../../images/guest/build.ts';
import type { RemoteProcess } from '../../lab/client.ts';
import type { ExecResult, LabHost } from '../../lab/host.ts';
import { type Lab, startLab } from '../../lab/lab.ts';
import { LINK_ADDRESS } from '../../lab/link.ts';
import { labUnavailable } from '../../lab/packages.ts';
import { cacheRoot, repoRoot } from '../../lab/root.ts';
import type { MigrationOutcome } from '../../migration/api.ts';
import { buildFlatGuest } from '../guests/build.ts';

/** Measured: 6 s from exec to the first tick on a quiet machine. */
export const BOOT_LIMIT_MS = 90_000;
/** Measured: 5-8 s for a move of 256 MiB, device and all. */
export const MOVE_LIMIT_MS = 90_000;
/** Measured: 2 s from `end` to power-off. */
export const END_LIMIT_MS = 60_000;

/** memmap= keeps the DMA ring's pages from the kernel: only the device writes them (main-job.md, the guest's workload). A tick is 60 exits,
 *  a line of counters 500: as often as in the demo they take half of a lab host's CPU. */
const PACE = 'memmap=2M$0xe000000 tick=400 stat=2000 clock=200';
/** What a kernel does for safety alone costs a third of its start under emulation (measured: 5.5 s of CPU, not 8.5). boot.test boots without. */
const LIGHT = 'mitigations=off init_on_alloc=0 apparmor=0 audit=0 cgroup_disable=memory';
export const WORKLOAD = `console=ttyS0 quiet panic=-1 ${LIGHT} ${PACE}`;

/** Null: the pair can be had. */
export function pairUnavailable(): string | null {
  const bundle = join(repoRoot(), 'dist/ferry.cjs');
  return labUnavailable() ?? (existsSync(bundle) ? null : 'dist/ferry.cjs is missing: npm run build');
}

export type SideIndex = 0 | 1;

export interface Side {
  readonly host: LabHost;
  readonly edu: DemoDevice;
}

/** A ferry process that runs a guest, ran it, or waits for one. */
export interface Guest {
  readonly at: SideIndex;
  readonly process: RemoteProcess;
  /** Its stdout: the guest's console alone. */
  readonly console: ConsoleLog;
  stderr(): string;
  /** unix:PATH of its control socket. */
  readonly control: string;
  /** Where it listens, as the other side must say it; null for `ferry run`. */
  readonly uri: string | null;
}

export interface Move extends ExecResult {
  /** What `ferry migrate --json` printed; null: it printed none. */
  readonly outcome: MigrationOutcome | null;
}

export interface GuestOptions {
  /** More arguments of `ferry run` or `ferry receive`. */
  readonly options?: readonly string[];
  /** Instead of edu. */
  readonly devices?: readonly string[];
  /** Instead of the image without vfio-bringup's driver. */
  readonly image?: GuestImage;
  /** Of run(); the ring of edu's DMA needs the default. */
  readonly memory?: string;
}

export class Pair {
  readonly lab: Lab;
  readonly sides: readonly [Side, Side];
  #made = 0;
  readonly #started: Guest[] = [];

  private constructor(lab: Lab, sides: readonly [Side, Side]) {
    this.lab = lab;
    this.sides = sides;
  }

  static async start(): Promise<Pair> {
    const lab = await startLab({ hosts: 2, devices: ['edu'] });
    try {
      const [a, b] = [lab.host(0), lab.host(1)];
      const [eduA, eduB] = await Promise.all([bindEdu(a), bindEdu(b)]);
      return new Pair(lab, [
        { host: a, edu: eduA },
        { host: b, edu: eduB },
      ]);
    } catch (error) {
      await lab.close();
      throw error;
    }
  }

  /** Ends what a test has left: a guest that came to grief must not keep the device from the next one. */
  async dismiss(): Promise<void> {
    for (const { process } of this.#started.splice(0)) {
      process.disconnect();
      await process.done.catch(() => undefined);
    }
  }

  close(): Promise<void> {
    return this.lab.close();
  }

  /** Boots the workload; resolves at its first tick. `append` goes behind WORKLOAD. */
  async run(at: SideIndex, append = '', { options = [], devices, ...given }: GuestOptions = {}): Promise<Guest> {
    const image = given.image ?? (await buildGuest(cacheRoot()));
    const guest = this.#start(at, null, [
      'run',
      ...['--kernel', image.vmlinuz, '--initrd', image.initrd, '--append', `${WORKLOAD} ${append}`],
      ...['--memory', given.memory ?? '256M'],
      ...this.#devices(at, devices),
      ...options,
    ]);
    await guest.console.until('the first tick of the guest', ({ ticks }) => ticks > 0, BOOT_LIMIT_MS);
    return guest;
  }

  /** Boots a flat guest of test/guests; resolves when it has said `word`. */
  async runFlat(at: SideIndex, name: string, append: string, word: string, options: GuestOptions = {}): Promise<Guest> {
    const guest = this.#start(at, null, [
      ...['run', '--kernel', buildFlatGuest(name), '--append', append, '--memory', '64M'],
      ...this.#devices(at, options.devices),
      ...(options.options ?? []),
    ]);
    await guest.console.until(word, ({ text }) => text.includes(word), BOOT_LIMIT_MS);
    return guest;
  }

  /** Resolves when it listens. */
  async receive(at: SideIndex, { options = [], devices }: GuestOptions = {}): Promise<Guest> {
    const port = 4000 + this.#made;
    const guest = this.#start(at, `tcp:${LINK_ADDRESS[at]}:${port}`, [
      ...['receive', `tcp:0.0.0.0:${port}`],
      ...this.#devices(at, devices),
      ...options,
    ]);
    await untilSaid(guest, 'waiting for a guest');
    return guest;
  }

  /** `ferry migrate --json` to its end, whatever that is. `uri`: a guest of receive(), or another address. */
  async migrate(from: Guest, to: Guest | string, args: readonly string[] = []): Promise<Move> {
    const uri = typeof to === 'string' ? to : (to.uri ?? '');
    const result = await this.ferry(from.at, 'migrate', from.control, uri, '--json', ...args);
    return {
      ...result,
      outcome: result.stdout.startsWith('{') ? (JSON.parse(result.stdout) as MigrationOutcome) : null,
    };
  }

  /** Any other verb in one of the hosts. */
  ferry(at: SideIndex, ...args: readonly string[]): Promise<ExecResult> {
    return this.sides[at].host.exec([join(repoRoot(), 'bin/ferry'), ...args], { timeoutMs: MOVE_LIMIT_MS });
  }

  /** Waits until the guest has run on for so long, by its own clock; 0: until its next tick. */
  async runsOn(guest: Guest, seconds = 0): Promise<void> {
    const { console } = guest;
    const from = console.ticks;
    const ran = () =>
      (console.tickLines.at(-1)?.guestMs ?? 0) - (console.tickLines[Math.max(from - 1, 0)]?.guestMs ?? 0);
    const done = () => console.ticks > from && ran() >= seconds * 1000;
    await console.until(`the guest's next ${seconds} s`, done, BOOT_LIMIT_MS);
  }

  /** Asks the workload for its verdict, which ends with power-off. Resolves with the exit code. */
  async end(guest: Guest): Promise<number | null> {
    guest.process.stdin.write('end\n');
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_resolve, reject) => {
      const tell = () =>
        reject(new Error(`the guest did not end: ${guest.stderr()}${guest.console.text.slice(-1000)}`));
      timer = setTimeout(tell, END_LIMIT_MS);
    });
    try {
      return (await Promise.race([guest.process.done, late])).code;
    } finally {
      clearTimeout(timer);
    }
  }

  #devices(at: SideIndex, devices: readonly string[] | undefined): string[] {
    const given = devices ?? [`vfio-pci,host=${this.sides[at].edu.bdf}`];
    return given.flatMap((device) => ['--device', device]);
  }

  #start(at: SideIndex, uri: string | null, args: readonly string[]): Guest {
    const control = `unix:/run/guest-${this.#made++}.sock`;
    const started = startGuestProcess(this.sides[at].host, [...args, '--control', control]);
    const guest = { at, control, uri, ...started };
    this.#started.push(guest);
    return guest;
  }
}

/** Waits for words on a ferry's stderr. */
export async function untilSaid(guest: Guest, words: string, limitMs = BOOT_LIMIT_MS): Promise<void> {
  const limit = performance.now() + limitMs;
  let ended = false;
  const over = () => {
    ended = true;
  };
  guest.process.done.then(over, over);
  while (!guest.stderr().includes(words)) {
    if (ended) throw new Error(`ferry ended without saying "${words}": ${guest.stderr()}`);
    if (performance.now() > limit) throw new Error(`"${words}" was not said in time: ${guest.stderr()}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
