// The demo's story: two lab hosts, the guest in the first with edu passed through, moved live to the second while its workload runs.
// Called by demo.ts and by test/lab. Whatever was started here is ended here, whichever way it goes.
import { join } from 'node:path';
import { buildGuest, type GuestImage } from '../images/guest/build.ts';
import { faultsOf, judge } from '../images/guest/verdict.ts';
import type { RemoteProcess } from '../lab/client.ts';
import type { LabHost } from '../lab/host.ts';
import { type Lab, startLab } from '../lab/lab.ts';
import { cacheRoot, repoRoot } from '../lab/root.ts';
import type { MigrationOutcome } from '../migration/api.ts';
import { VmmError } from '../native/errno.ts';
import { ConsoleLog, lastLines, outerGap } from './demo-console.ts';
import { type DemoDevice, type DemoFindings, type DemoReport, demoFaults, demoReport } from './demo-report.ts';

export interface DemoOptions {
  readonly deviceLog: boolean;
  readonly downtimeLimitMs: number;
  /** How long the workload runs before the move and after it. */
  readonly secondsBefore: number;
  readonly secondsAfter: number;
  /** One line for people. */
  readonly say: (line: string) => void;
  /** The progress of `ferry migrate`, as it comes. */
  readonly progress: (text: string) => void;
}

export interface DemoResult {
  readonly report: DemoReport;
  readonly outcome: MigrationOutcome;
  /** Empty: the demo has succeeded. */
  readonly faults: readonly string[];
}

const CONTROL = '/run/guest.sock';
const PORT = 4444;
const MEMORY_MIB = 256;
// Measured: 6 s to the first tick; 10 times that.
const BOOT_LIMIT_MS = 90_000;
const END_LIMIT_MS = 60_000;
/** memmap= keeps the DMA ring's pages from the kernel: only the device writes them (main-job.md, the guest's workload). */
const APPEND = 'console=ttyS0 quiet panic=-1 memmap=2M$0xe000000';

const FERRY = () => join(repoRoot(), 'bin/ferry');

interface GuestProcess {
  readonly process: RemoteProcess;
  readonly console: ConsoleLog;
  readonly stderr: () => string;
}

/** A ferry process in a lab host whose stdout is the guest's console. */
export function startGuestProcess(host: LabHost, args: readonly string[]): GuestProcess {
  const child = host.spawn([FERRY(), ...args]);
  const console = new ConsoleLog();
  let stderr = '';
  child.stdout.on('data', (bytes: Buffer) => console.push(bytes, performance.now()));
  child.stderr.on('data', (bytes: Buffer) => {
    stderr += bytes.toString();
  });
  child.done.then(
    ({ code, signal }) => {
      const said = `ferry ${args[0]} ended with ${code ?? signal}: ${lastLines(stderr, 5)}`;
      // A guest that has panicked says why on its console.
      console.close(code === 0 ? said : `${said}; the end of its console: ${lastLines(console.text, 40)}`);
    },
    (error: Error) => console.close(error.message),
  );
  return { process: child, console, stderr: () => stderr };
}

/** Binds edu to our variant driver; says what it offers. */
export async function bindEdu(host: LabHost): Promise<DemoDevice> {
  const bdf = host.bdf('edu');
  await host.run([FERRY(), 'vfio', 'bind', bdf, '--driver', 'edu-vfio-pci']);
  const offer = JSON.parse(await host.run([FERRY(), 'vfio', 'info', bdf, '--json'])) as {
    device: { driver: string };
    migration: { abi: string; flags: string[] } | null;
    dmaLog: boolean;
  };
  return {
    bdf,
    driver: offer.device.driver,
    abi: offer.migration?.abi ?? 'none',
    flags: [...(offer.migration?.flags ?? []), ...(offer.dmaLog ? ['DMA_LOGGING'] : [])],
  };
}

async function startSource(host: LabHost, edu: DemoDevice, image: GuestImage): Promise<GuestProcess> {
  const guest = startGuestProcess(host, [
    'run',
    ...['--kernel', image.vmlinuz, '--initrd', image.initrd, '--append', APPEND],
    ...['--memory', `${MEMORY_MIB}M`, '--device', `vfio-pci,host=${edu.bdf}`, '--control', `unix:${CONTROL}`],
  ]);
  await guest.console.until('the first tick of the guest', ({ ticks }) => ticks > 0, BOOT_LIMIT_MS);
  return guest;
}

export async function startDestination(host: LabHost, edu: DemoDevice): Promise<GuestProcess> {
  const guest = startGuestProcess(host, ['receive', `tcp:0.0.0.0:${PORT}`, '--device', `vfio-pci,host=${edu.bdf}`]);
  const limit = performance.now() + BOOT_LIMIT_MS;
  while (!guest.stderr().includes('waiting for a guest')) {
    if (performance.now() > limit)
      throw new VmmError('demo', `the destination does not listen: ${guest.stderr()}`, { exitCode: 1 });
    await Promise.race([sleep(50), guest.process.done.then(failedToListen(guest))]);
  }
  return guest;
}

function failedToListen(guest: GuestProcess) {
  return () => {
    throw new VmmError('demo', `ferry receive ended: ${guest.stderr().trim()}`, { exitCode: 1 });
  };
}

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

async function migrate(host: LabHost, options: DemoOptions): Promise<MigrationOutcome> {
  const args = [
    'migrate',
    `unix:${CONTROL}`,
    `tcp:10.9.0.12:${PORT}`,
    '--json',
    '--downtime-limit',
    String(options.downtimeLimitMs),
  ];
  if (!options.deviceLog) args.push('--no-device-log');
  let said = '';
  const result = await host.exec([FERRY(), ...args], {
    onStderr: (bytes) => {
      said += bytes.toString();
      options.progress(bytes.toString());
    },
  });
  try {
    return JSON.parse(result.stdout) as MigrationOutcome;
  } catch {
    throw new VmmError('demo', `ferry migrate ended with ${result.code}: ${said.trim().split('\n').at(-1) ?? ''}`, {
      exitCode: 1,
    });
  }
}

/** Boots the lab, plays the story, closes the lab. `aborted` rejects when the user wants to stop. */
export async function runDemo(options: DemoOptions, aborted: Promise<never>): Promise<DemoResult> {
  const image = buildGuest(cacheRoot(), 'cloud', options.say);
  image.catch(() => {});
  const stop = new AbortController();
  aborted.catch(() => stop.abort());
  const booting = startLab({ hosts: 2, devices: ['edu'], say: options.say, signal: stop.signal });
  let lab: Lab | null = null;
  try {
    lab = await Promise.race([booting, aborted]);
    return await Promise.race([playDemo(lab, await image, options), aborted]);
  } finally {
    // An abort may come while the hosts still boot: then they end there.
    await (lab ?? (await booting.catch(() => null)))?.close();
  }
}

async function playDemo(lab: Lab, image: GuestImage, options: DemoOptions): Promise<DemoResult> {
  const { say } = options;
  const [source, target] = [lab.host(0), lab.host(1)];
  const [edu, otherEdu] = await Promise.all([bindEdu(source), bindEdu(target)]);
  say(`both hosts: ${edu.bdf} bound to ${edu.driver}, which offers ${edu.flags.join(', ')} (${edu.abi})`);
  const [here, there] = await Promise.all([startSource(source, edu, image), startDestination(target, otherEdu)]);
  say(`the guest runs in ${source.name}; its workload works for ${options.secondsBefore} s`);
  await Promise.race([sleep(options.secondsBefore * 1000), endedEarly(here)]);
  say(`moving it to ${target.name}`);
  const outcome = await migrate(source, options);
  if (outcome.status !== 'completed')
    throw new VmmError('demo', `the migration ${outcome.status}: ${outcome.error}`, { exitCode: 1 });
  await there.console.until('the first tick at the destination', ({ ticks }) => ticks > 0, END_LIMIT_MS);
  say(`the guest runs in ${target.name}; its workload works for another ${options.secondsAfter} s`);
  await Promise.race([sleep(options.secondsAfter * 1000), endedEarly(there)]);
  there.process.stdin.write('end\n');
  const { code } = await Promise.race([there.process.done, sleep(END_LIMIT_MS).then(() => ({ code: null }))]);
  const verdict = judge([here.console.text, there.console.text]);
  const gap = outerGap(here.console, there.console);
  return conclude({ verdict, outcome, device: edu, gap, exitCode: code }, options.deviceLog);
}

function endedEarly(guest: GuestProcess): Promise<never> {
  return guest.process.done.then(({ code, signal }) => {
    throw new VmmError(
      'demo',
      `the guest ended early with ${code ?? signal}: ${guest.stderr().trim() || guest.console.text.slice(-2000)}`,
      {
        exitCode: 1,
      },
    );
  });
}

function conclude(findings: DemoFindings, deviceLog: boolean): DemoResult {
  const report = demoReport(findings);
  const faults = [...faultsOf(findings.verdict, { edu: true }), ...demoFaults(report, deviceLog)];
  if (findings.exitCode !== 0) faults.push(`the guest's power-off ended ferry with ${findings.exitCode}, not 0`);
  return { report, outcome: findings.outcome, faults };
}
